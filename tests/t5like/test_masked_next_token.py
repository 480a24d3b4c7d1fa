"""Masked next tokens on a Decoder, the mixture with causal ones, and randomly replaced tokens: each against a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.combine import Alternate
from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import bert, gpt
from t5like.objectives import MaskedNextToken, NextToken, ReplacedTokens
from tests.t5like.test_masked_lm import BARE, FRAMED, LENGTH, VOCAB, example, make_batch
from tests.t5like.test_span_corruption import slow_token

TINY = {"d_model": 16, "heads": 2, "d_ff": 24, "layers": 2, "init_std": 0.3, "dropout": 0.0}
MODEL = gpt("tiny", VOCAB, **TINY)
OBJECTIVE = MaskedNextToken(MODEL, LENGTH, rate=0.3, z_loss=0.01).bind(BARE)
EVALUATION = Context(jnp.int32(0), train=False)


def test_a_token_is_found_where_the_one_before_it_is_read():
    for seed in range(10):
        row = OBJECTIVE.preprocess(example(LENGTH, seed, 5), np.random.default_rng(seed), 0, True)
        original = example(LENGTH, seed, 5)
        text = row["weights"] > 0
        np.testing.assert_array_equal(row["targets"][text], original["tokens"][text])
        assert row["prefix"] == LENGTH and 0 < text.sum() <= round(0.3 * LENGTH)
        seen = np.roll(row["inputs"], -1)[:-1]  # what stands at each place, read one later
        whole = (row["segments"][1:] == row["segments"][:-1]) & (row["segments"][1:] > 0)
        same = seen == original["tokens"][:-1]
        assert same[whole & ~text[:-1]].all() and not same[whole & text[:-1]].all()
        begins = np.flatnonzero(np.diff(row["segments"], prepend=0) > 0)
        assert (row["inputs"][begins] == BARE.start).all() and row["text_bytes"] == original["tokens"][text].sum()


def test_the_share_of_causal_examples():
    objective = dataclasses.replace(OBJECTIVE, causal=0.3)
    rows = [objective.preprocess(example(LENGTH, s), np.random.default_rng(s), 0, True) for s in range(400)]
    causal = [row for row in rows if row["prefix"] == 0]
    assert 0.22 < len(causal) / 400 < 0.38
    plain = NextToken(MODEL, LENGTH).bind(BARE)
    for row in causal[:3]:
        assert (
            row["weights"].sum() == LENGTH
            and (row["inputs"][1:] == row["targets"][:-1])[row["positions"][1:] > 0].all()
        )
    assert {*rows[0]} - {"prefix"} == {*plain.batch_spec(1)} - {"index", "mask"}


read_by = jax.jit(lambda params, *args: MODEL.apply({"params": params["model"]}, *args)[0])


def slow_loss(params, batch):
    total = count = 0.0
    for b in range(3):
        have = int((batch["segments"][b] > 0).sum())
        prefix = batch["prefix"][b : b + 1]
        logits = read_by(
            params, batch["inputs"][b : b + 1, :have], None, batch["segments"][b : b + 1, :have],
            batch["positions"][b : b + 1, :have], jnp.minimum(prefix, have),
        )  # fmt: skip
        for t in range(have):
            if batch["weights"][b, t]:
                total, count = total + slow_token(logits[0, t], int(batch["targets"][b, t]), 0.01)[0], count + 1
    return total / count


def test_value_and_gradient():
    rows = [
        OBJECTIVE.preprocess(example(LENGTH, i, p), np.random.default_rng(i), 0, True) for i, p in enumerate((0, 5))
    ]
    mixed = dataclasses.replace(OBJECTIVE, causal=0.999)
    rows += [mixed.preprocess(example(LENGTH, i), np.random.default_rng(i), 0, True) for i in (2, 3)]
    assert [int(row["prefix"]) for row in rows] == [LENGTH, LENGTH, 0, 0]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    batch |= {"index": jnp.array([[0, i] for i in range(4)], jnp.uint32), "mask": jnp.array([1.0, 1, 1, 0])}
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0))
    value, grads = jax.jit(jax.value_and_grad(lambda p: OBJECTIVE.loss(p, {}, batch, EVALUATION).value()))(params)
    expected, slow = jax.value_and_grad(slow_loss)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-3), grads, slow)


def test_a_masked_token_is_seen_from_both_sides():
    """By gradient: of a masked example every place depends on every other, of a causal one on those before alone."""
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0))
    for prefix, both in ((LENGTH, True), (0, False)):
        tokens = np.random.default_rng(0).integers(5, VOCAB, (1, LENGTH))
        out = lambda t, prefix=prefix: read_by(params, t, None, None, None, jnp.array([prefix]))[0]
        moved = np.abs(np.asarray(out(tokens) - out(np.where(np.arange(LENGTH) == 12, 5, tokens)))).max(-1) > 1e-6
        assert moved[12:].all() and (moved[:12].all() if both else not moved[:12].any())


def test_one_decoder_by_turns():
    """AntLM: causal and masked steps share every weight."""
    parts = (("causal", NextToken(MODEL, LENGTH)), ("masked", OBJECTIVE))
    turns = Alternate(parts=parts, pattern=("causal", "masked")).bind(BARE)
    shapes = jax.eval_shape(turns.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(jax.eval_shape(OBJECTIVE.init, jax.random.key(0)))


# ---- Replaced tokens -------------------------------------------------------------------------------------------------

DETECTS = ReplacedTokens(bert("tiny", VOCAB, head=False, **TINY), LENGTH, rate=0.3).bind(FRAMED)


@jax.jit
def told(params, read, segments):
    """[1, L]: the probability of each token to be another."""
    hidden, _ = DETECTS.model.apply({"params": params["model"]}, read, None, segments, method="hidden")
    dense, out = params["detector"]["dense"], params["detector"]["out"]
    h = jax.nn.gelu(hidden @ dense["kernel"] + dense["bias"], approximate=False)
    return jax.nn.sigmoid((h @ out["kernel"] + out["bias"])[..., 0])


def slow_detection(params, batch):
    total = count = 0.0
    for b in range(3):
        read, segments = batch["encoder_inputs"][b : b + 1], batch["encoder_segments"][b : b + 1]
        replaced = told(params, read, segments)
        truth = np.array(read[0])
        for place, target, weight in zip(batch["positions"][b], batch["targets"][b], batch["weights"][b]):
            if weight:
                truth[int(place)] = int(target)
        for t in np.flatnonzero(segments[0]):
            p = replaced[0, t]
            total, count = total - jnp.log(p if truth[t] != read[0, t] else 1 - p), count + 1
    return total / count


def test_replaced_tokens_by_a_loop():
    batch = make_batch(DETECTS)
    assert not (batch["encoder_inputs"] == FRAMED.mask).any()
    params = jax.jit(DETECTS.init)(jax.random.key(0))
    value, grads = jax.jit(jax.value_and_grad(lambda p: DETECTS.loss(p, {}, batch, EVALUATION).value()))(params)
    expected, slow = jax.value_and_grad(slow_detection)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-3), grads, slow)


def test_no_mask_is_needed_where_none_is_shown():
    bare = ReplacedTokens(DETECTS.model, LENGTH, rate=0.3).bind(dataclasses.replace(BARE, mask=None))
    row = bare.preprocess(example(bare.raw_length), np.random.default_rng(0), 0, True)
    assert bare.raw_length == LENGTH and (row["inputs"] != row["targets"]).sum() > 3
    with pytest.raises(UserError, match=r"TextData.specials = \('mask',\)"):
        MaskedNextToken(MODEL, LENGTH).bind(dataclasses.replace(BARE, mask=None))


@pytest.mark.parametrize(
    "objective, settings, text",
    [
        (OBJECTIVE, {"causal": 1.0}, "1 is next_token"),
        (OBJECTIVE, {"model": DETECTS.model}, "trains a Decoder, and the model is an? Encoder.*MaskedLM.* can train"),
        (DETECTS, {"model": MODEL}, "replaced_tokens trains an Encoder"),
        (DETECTS, {"model": bert("tiny", VOCAB)}, "set its head=False"),
    ],
)
def test_bad_settings(objective, settings, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(objective, **settings)
