"""MuToR against a loop over documents and tokens: each register read by itself behind the tokens before it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import gpt, t5
from t5like.objectives import MuToR, NextToken
from t5like.vocabulary import Vocabulary
from tests.t5like.test_next_token import LENGTH, VOCAB, make_batch
from tests.t5like.test_span_corruption import slow_token

MODEL = gpt("tiny", VOCAB, d_model=16, heads=2, d_ff=24, layers=2, init_std=0.3, embed_std=1.0)
VOCABULARY = Vocabulary(VOCAB, pad=0, eos=1, mask=2)
OBJECTIVE = MuToR(MODEL, LENGTH, z_loss=0.01).bind(VOCABULARY)


@jax.jit
def last(params, read, position, register):
    """float32 [V]: the logits of a register at a position of its own behind the tokens read[:register]."""
    places = jnp.arange(LENGTH + 1)
    tokens = jnp.where(places == register, 2, jnp.pad(read, (0, 1)))
    places = jnp.where(places == register, position, places)
    return MODEL.apply({"params": params["model"]}, tokens[None], positions=places[None])[0][0, register]


@jax.jit
def tokens_alone(params, read):
    return MODEL.apply({"params": params["model"]}, read[None])[0][0]


def slow_loss(params, batch):
    sums, counts = [0.0, 0.0], [0, 0]
    for b in range(3):
        segments, tokens, ahead = *(np.asarray(batch[n][b]) for n in ("segments", "targets")), int(batch["ahead"][b])
        for document in sorted(set(segments[segments > 0].tolist())):
            text = tokens[segments == document].tolist()
            read = jnp.array([0, *text[:-1], *[0] * (LENGTH - len(text))])
            logits = tokens_alone(params, read)
            for t, target in enumerate(text):
                sums[0], counts[0] = sums[0] + slow_token(logits[t], target, 0.01)[0], counts[0] + 1
                if (further := t + ahead - 1) < len(text):
                    guess = last(params, read, further, t + 1)
                    sums[1] += slow_token(guess, text[further], 0.0)[1]
                    counts[1] += 1
    return 0.7 * sums[0] / counts[0] + 0.3 * sums[1] / counts[1], (sums[1], counts[1])


def test_value_and_gradient():
    params, batch = jax.jit(OBJECTIVE.init)(jax.random.key(0)), make_batch(OBJECTIVE)
    batch["ahead"] = jnp.array([3, 2, 4, 1])
    run = lambda p: (lambda loss: (loss.value(), loss))(
        OBJECTIVE.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    (expected, registers), slow = jax.value_and_grad(slow_loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["registers/nll"], registers, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-3), grads, slow)
    plain = NextToken(MODEL, LENGTH).bind(VOCABULARY)
    own = jax.jit(lambda p: plain.loss(p, {}, batch, Context(jnp.int32(0), train=False)).metrics)(params)
    for name, (total, _) in own.items():  # no register is seen by a token
        np.testing.assert_allclose(loss.metrics[name][0], total, rtol=1e-5, err_msg=name)


def test_each_text_has_a_distance_of_its_own():
    rng, example = np.random.default_rng(0), {"tokens": np.full(LENGTH, 5), "segments": np.ones(LENGTH, int)}
    example["byte_lengths"] = np.ones(VOCAB)
    found = [int(OBJECTIVE.preprocess(example, rng, 0, True)["ahead"]) for _ in range(400)]
    assert set(found) == {1, 2, 3, 4} and np.bincount(found).max() < 140


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"most": 0}, "most=0 tokens ahead; use 1 or more"),
        ({"weight": 1.0}, "weight=1 is the registers' share of the loss, between 0 and 1"),
        ({"model": MODEL.clone(positions="alibi")}, "positions='alibi' and window=None go by the place in a row"),
        ({"model": MODEL.clone(window=4)}, "window=4 go by the place in a row: choose rope"),
        ({"model": t5("tiny", VOCAB)}, "mutor trains a Decoder, and the model is an EncoderDecoder"),
        ({"vocabulary": dataclasses.replace(VOCABULARY, mask=None)}, r"mutor needs mask.*TextData.specials = \('mask"),
    ],
)
def test_what_it_refuses(settings, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(OBJECTIVE, **settings)
