"""Pairs of texts: what a row holds, the second loss by a loop, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import bert
from t5like.objectives import MaskedLM
from t5like.sentence_pairs import PairMasking
from tests.t5like.test_masked_lm import BARE, FRAMED, LENGTH, MODEL, OBJECTIVE, VOCAB, example

PAIRS = dataclasses.replace(OBJECTIVE, pairs="order")


def originals(row):
    """(A, B) of a row as they were before they were masked."""
    tokens, have = row["encoder_inputs"].copy(), int((row["encoder_segments"] > 0).sum())
    count = int(row["weights"].sum())
    tokens[row["positions"][:count]] = row["targets"][:count]
    types = row["types"][:have]
    a, b = tokens[:have][types == 0], tokens[:have][types == 1]
    assert a[0] == FRAMED.cls and a[-1] == b[-1] == FRAMED.sep and not row["types"][have:].any()
    return a[1:-1].tolist(), b[:-1].tolist()


@pytest.mark.parametrize("kind", ["next", "order"])
def test_halves_follow_or_are_swapped(kind):
    pairs = dataclasses.replace(OBJECTIVE, pairs=kind).preprocess
    assert isinstance(pairs, PairMasking) and pairs.raw_length == (LENGTH - 3) * (2 if kind == "next" else 1)
    wrong = 0
    for seed in range(60):
        full = example(pairs.raw_length, seed)
        row = pairs(full, np.random.default_rng(seed), 0, True)
        a, b = originals(row)
        first = full["tokens"][: pairs.room]
        of_segment = [first[full["segments"][: pairs.room] == s].tolist() for s in (1, 2)]
        text = max(of_segment, key=len)
        assert row["pair_weight"] == 1
        if not row["pair"]:
            assert a + b == text
        elif kind == "order":
            assert b + a == text and a + b != text
        else:
            assert a == text[: len(a)] and str(b)[1:-1] in str(full["tokens"][pairs.room :].tolist())
        wrong += int(row["pair"])
    assert 18 < wrong < 42


def test_a_window_of_short_documents_says_nothing():
    full = example(LENGTH - 3) | {"segments": np.arange(LENGTH - 3) // 2 + 1}
    row = PAIRS.preprocess(full, np.random.default_rng(0), 0, True)
    assert row["pair_weight"] == 0


def test_the_second_loss_by_a_loop():
    rows = [PAIRS.preprocess(example(LENGTH - 3, i), np.random.default_rng(i), 0, True) for i in range(4)]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    batch |= {"index": jnp.array([[0, i] for i in range(4)], jnp.uint32), "mask": jnp.array([1.0, 1, 1, 0])}
    params = jax.jit(PAIRS.init)(jax.random.key(0))
    run = jax.jit(lambda batch: PAIRS.loss(params, {}, batch, Context(jnp.int32(0), train=False)))
    loss = run(batch)
    seen = jax.jit(lambda *args: MODEL.apply({"params": params["model"]}, *args, method="hidden")[1]["encoded"])
    total = right = 0.0
    for b in range(3):
        read = batch["encoder_inputs"][b : b + 1], None, batch["encoder_segments"][b : b + 1], None
        encoded = seen(*read, batch["types"][b : b + 1])
        dense, out = params["pairs"]["dense"], params["pairs"]["out"]
        h = jnp.tanh(encoded[0, 0] @ dense["kernel"] + dense["bias"])
        scores = h @ out["kernel"] + out["bias"]
        total -= jax.nn.log_softmax(scores)[int(batch["pair"][b])]
        right += int(jnp.argmax(scores)) == int(batch["pair"][b])
    np.testing.assert_allclose(loss.terms["pair"].sum, total, rtol=1e-5)
    assert loss.terms["pair"].weight == 3 and loss.metrics["pair_accuracy"][0] == right
    moved = batch | {"types": 1 - batch["types"]}
    other = run(moved)
    assert abs(other.terms["pair"].sum - total) > 1e-4  # types reach the model


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: MaskedLM(MODEL, LENGTH, pairs="order").bind(BARE), r"TextData.specials = \('mask', 'cls', 'sep'\)"),
        (lambda: dataclasses.replace(PAIRS, pairs="nxt"), "MaskedLM.pairs"),
        (lambda: dataclasses.replace(PAIRS, length=6), "texts too short"),
        (lambda: MaskedLM(bert("tiny", VOCAB, "modern"), LENGTH, pairs="next").bind(FRAMED), "token_types=2"),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(UserError, match=text):
        make()
