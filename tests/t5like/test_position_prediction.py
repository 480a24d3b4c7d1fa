"""Position prediction: what the data workers shuffle, and the loss against a loop over chosen places."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import bert, gpt
from t5like.objectives import PositionPrediction
from tests.t5like.test_masked_lm import FRAMED, LENGTH, VOCAB, example

TINY = {"d_model": 16, "heads": 2, "d_ff": 24, "layers": 2, "init_std": 0.3, "dropout": 0.0}
MODEL = bert("tiny", VOCAB, head=False, **TINY)
OBJECTIVE = PositionPrediction(MODEL, LENGTH, rate=0.4).bind(FRAMED)


def test_each_token_can_be_found():
    stays = total = 0
    for seed in range(60):
        original = example(OBJECTIVE.raw_length, seed, 5)
        row = OBJECTIVE.preprocess(original, np.random.default_rng(seed), 0, True)
        text = np.concatenate([[FRAMED.cls], original["tokens"][:-5], [FRAMED.sep], [FRAMED.pad] * 5])
        count = int(row["weights"].sum())
        places, targets = row["positions"][:count], row["targets"][:count]
        assert count == round(0.4 * (original["tokens"][:-5] > 4).sum()) and (np.diff(places) > 0).all()
        np.testing.assert_array_equal(row["encoder_inputs"][targets], text[places])
        rest = np.setdiff1d(np.arange(LENGTH), places)
        np.testing.assert_array_equal(row["encoder_inputs"][rest], text[rest])
        assert sorted(targets) == sorted(places)
        np.testing.assert_array_equal(row["encoder_segments"][targets], row["encoder_segments"][places])
        stays, total = stays + (targets == places).sum(), total + count
    assert 0.35 < stays / total < 0.55  # one in ten, and of each permutation one on average: two of six
    still = dataclasses.replace(OBJECTIVE, shuffled=1e-9).preprocess(original, np.random.default_rng(0), 0, True)
    np.testing.assert_array_equal(still["encoder_inputs"], text)


def make_batch():
    """Four rows: full ones, one with padding, and one that is padding of the batch."""
    made = lambda i, p: OBJECTIVE.preprocess(example(OBJECTIVE.raw_length, i, p), np.random.default_rng(i), 0, True)
    rows = [made(i, p) for i, p in enumerate((0, 5, 0, 0))]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "index": jnp.array([[0, i] for i in range(4)], jnp.uint32), "mask": jnp.array([1.0, 1, 1, 0])}


@jax.jit
def dense(params, read, segments, place):
    """float32 [L]: the scores of the places of a row for the token of one of them."""
    hidden = MODEL.apply({"params": params["model"]}, read[None], None, segments[None], method="hidden")[0][0]
    dense, norm = params["pointer"]["dense"], params["pointer"]["norm"]
    x = jax.nn.gelu(hidden[place] @ dense["kernel"] + dense["bias"], approximate=False)
    x = (x - x.mean()) / jnp.sqrt(((x - x.mean()) ** 2).mean() + MODEL.eps)
    return hidden @ (x * norm["scale"] + norm["bias"]) / 4


def slow_loss(params, batch):
    total, count, right = 0.0, 0, 0
    for b in range(3):
        segments = np.asarray(batch["encoder_segments"][b])
        for place, target, weight in zip(*(np.asarray(batch[n][b]) for n in ("positions", "targets", "weights"))):
            if not weight:
                continue
            own = np.flatnonzero(segments == segments[place])
            scores = dense(params, batch["encoder_inputs"][b], segments, place)[own]
            total += jnp.log(jnp.exp(scores).sum()) - scores[int(np.searchsorted(own, target))]
            count, right = count + 1, right + int(own[jnp.argmax(scores)] == target)
    return total / count, (right, count)


def test_value_and_gradient():
    params, batch = jax.jit(OBJECTIVE.init)(jax.random.key(0)), make_batch()
    run = lambda p: (lambda loss: (loss.value(), loss))(
        OBJECTIVE.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    (expected, accuracy), slow = jax.value_and_grad(slow_loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["position_accuracy"], accuracy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-3), grads, slow)
    moved = batch["positions"] != batch["targets"]
    still, count = loss.metrics["position_stays"]
    assert count - still == (moved * batch["weights"] * batch["mask"][:, None]).sum() > 0


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"shuffled": 0.0}, "shuffled=0 is a share above 0, up to 1"),
        ({"model": bert("tiny", VOCAB)}, "set its head=False"),
        (
            {"model": gpt("tiny", VOCAB)},
            "position_prediction trains an Encoder, and the model is a Decoder: choose another model; MaskedNextToken, "
            "MuToR, MultiToken, NextToken, PrefixLM, ",  # each once, and no base of them
        ),
        ({"rate": 1.0}, "position_prediction: rate must lie strictly between 0 and 1, not 1"),
        ({"length": 600}, "512 learned positions"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(OBJECTIVE, **settings)
