"""SpacTor: what is hidden beside the spans, the three losses against loops, and the stage after it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.combine import Stages
from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import gpt, t5
from t5like.objectives import SpacTor, SpanCorruption
from t5like.vocabulary import Vocabulary
from tests.t5like.test_span_corruption import make_batch, slow_token

VOCAB = 60  # text is 3 .. 48
VOCABULARY = Vocabulary(VOCAB, pad=0, eos=1, mask=2, unk=49, sentinels=tuple(range(59, 49, -1)))
MODEL = t5("tiny", 64, d_model=16, heads=2, head_dim=8, d_ff=24, layers=2)
OBJECTIVE = SpacTor(MODEL, length=24, z_loss=0.01, hidden_rate=0.3, detection=5.0, spans=3.0).bind(VOCABULARY)
SPANS = SpanCorruption(MODEL, length=24, z_loss=0.01).bind(VOCABULARY)
EVALUATION = Context(jnp.int32(0), train=False)


def test_tokens_are_hidden_of_what_the_spans_leave():
    example = {"tokens": np.random.default_rng(0).integers(3, 49, OBJECTIVE.raw_length), "byte_lengths": np.ones(VOCAB)}
    for text in (OBJECTIVE.raw_length, 15):
        segments = (np.arange(OBJECTIVE.raw_length) < text).astype(np.int32)
        for seed in range(5):
            given = {**example, "segments": segments}
            row = OBJECTIVE.preprocess(given, np.random.default_rng(seed), 0, True)
            plain = SPANS.preprocess(given, np.random.default_rng(seed), 0, True)
            for name in set(plain) - {"encoder_inputs"}:
                np.testing.assert_array_equal(row[name], plain[name])
            count = int(row["hidden_weights"].sum())
            places, left = row["hidden_places"][:count], VOCABULARY.is_text(plain["encoder_inputs"])
            assert count == round(0.3 * (left & (plain["encoder_segments"] > 0)).sum()) == row["hidden_bytes"]
            assert (row["encoder_inputs"][places] == VOCABULARY.mask).all()
            row["encoder_inputs"][places] = row["hidden_targets"][:count]
            np.testing.assert_array_equal(row["encoder_inputs"], plain["encoder_inputs"])


@jax.jit
def guessed(params, read):
    """The generator's logits."""
    whole = {**params["generator"], "embed": params["model"]["embed"]}
    return OBJECTIVE.generator.apply({"params": whole}, read)[0]


@jax.jit
def dense(params, read, decoder):
    """(the decoder's logits of a row, the detector's of its encoder)."""
    logits, states = MODEL.apply({"params": params["model"]}, read[None], decoder[None])
    kernel, out = params["detector"]["dense"], params["detector"]["out"]
    h = jax.nn.gelu(states["encoded"][0] @ kernel["kernel"] + kernel["bias"])
    return logits[0], (h @ out["kernel"] + out["bias"])[:, 0]


def slow_loss(params, batch, fakes):
    """Of the two rows that are no padding: hidden tokens, tokens of the encoder, targets of the decoder, one by one."""
    filled = told = written = 0.0
    hidden = seen = count = 0
    for b in range(2):
        read, fake = np.array(batch["encoder_inputs"][b]), set()
        guesses = guessed(params, batch["encoder_inputs"][b : b + 1])[0]
        for p in np.flatnonzero(batch["hidden_weights"][b]):
            place, target = int(batch["hidden_places"][b, p]), int(batch["hidden_targets"][b, p])
            filled, hidden = filled + slow_token(guesses[place], target, 0.0)[0], hidden + 1
            read[place] = fakes[b][p]
            fake |= {place} if fakes[b][p] != target else set()
        logits, detected = dense(params, jnp.array(read), batch["inputs"][b])
        for t, target in enumerate(np.asarray(batch["targets"][b])):
            written, count = written + slow_token(logits[t], int(target), 0.01)[0], count + 1
        for t in range(len(read)):
            p = jax.nn.sigmoid(detected[t])
            told, seen = told - jnp.log(p if t in fake else 1 - p), seen + 1
    return filled / hidden + 5.0 * told / seen + 3.0 * written / count


def test_value_and_gradient():
    params, batch = jax.jit(OBJECTIVE.init)(jax.random.key(0)), make_batch(OBJECTIVE)
    assert (batch["encoder_segments"] == 1).all() and (batch["segments"] == 1).all()
    guesses = guessed(params, batch["encoder_inputs"])
    keys, fakes = EVALUATION.keys("spactor", batch["index"]), []
    for b, key in enumerate(keys):  # drawn as the objective draws, from dense logits of the ids that there are
        noise = [jax.random.gumbel(jax.random.fold_in(key, n), (64,)) for n in range(batch["hidden_places"].shape[1])]
        fakes += [[int(jnp.argmax((guesses[b, p] + g)[:VOCAB])) for p, g in zip(batch["hidden_places"][b], noise)]]
    value, grads = jax.jit(jax.value_and_grad(lambda p: OBJECTIVE.loss(p, {}, batch, EVALUATION).value()))(params)
    expected, slow = jax.value_and_grad(slow_loss)(params, batch, fakes)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3), grads, slow)


def test_span_corruption_goes_on_with_the_same_weights():
    stages = Stages(parts=(("hybrid", OBJECTIVE), ("spans", SPANS)), boundaries=(4,))
    assert [stages.phase(step) for step in (0, 3, 4)] == ["hybrid", "hybrid", "spans"]
    whole, own = (jax.eval_shape(o.init, jax.random.key(0)) for o in (stages, OBJECTIVE))
    assert jax.tree.structure(whole) == jax.tree.structure(own) and set(own) == {"model", "generator", "detector"}
    assert "embed" not in own["generator"] and len(jax.tree.leaves(own["generator"])) > 5


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"model": gpt("tiny", 64)}, "spactor trains an EncoderDecoder, and the model is a Decoder"),
        ({"generator_layers": 0.0}, "generator_layers=0 must be positive"),
        ({"hidden_rate": 0.0}, "spactor: rate must lie strictly between 0 and 1"),
        (
            {"vocabulary": dataclasses.replace(VOCABULARY, mask=None)},
            r"spactor hides .*TextData.specials = \('mask',\)",
        ),
        ({"vocabulary": dataclasses.replace(VOCABULARY, sentinels=())}, "needs 1 sentinels but the tokenizer has 0"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(OBJECTIVE, **settings)
