"""BART's noise against its definitions, its loss against a loop over tokens, and what it refuses."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.bart import bart
from t5like.denoise import Denoising, infilled, permuted
from t5like.models import gpt
from t5like.objectives import Bart
from t5like.sentences import sentence_ends, sentences
from t5like.tokenizers import ByteTokenizer
from t5like.vocabulary import Vocabulary
from tests.t5like.test_span_corruption import slow_token

VOCAB, LENGTH, MASK, DOT = 40, 20, 2, 9
V = Vocabulary(VOCAB, pad=0, eos=1, mask=MASK)
FRAMED = dataclasses.replace(V, bos=3)
MODEL = bart("tiny", VOCAB, d_model=16, heads=2, d_ff=24, layers=2, dropout=0.0, max_length=LENGTH + 2, init_std=0.3)
OBJECTIVE = Bart(MODEL, LENGTH, z_loss=0.01).bind(V)
ENDS = np.arange(VOCAB) == DOT


def example(length, seed=0, padding=0, bare=4):
    rng = np.random.default_rng(seed)
    tokens, segments = rng.integers(bare, VOCAB, length), np.ones(length, np.int32)
    if padding:
        tokens[-padding:], segments[-padding:] = 0, 0
    lengths = np.arange(VOCAB, dtype=np.float32)
    return {"tokens": tokens, "segments": segments, "byte_lengths": lengths, "sentence_ends": ENDS}


def noisy(noise, seed=0, **how):
    ex = example(noise.raw_length, seed, **how)
    return ex, noise(ex, np.random.default_rng(seed + 1), 0, True)


def read(out):
    return out["encoder_inputs"][out["encoder_segments"] > 0].tolist()


def test_sentences():
    assert sentence_ends(["a", "b.", "? ", ".c", "d\n", ""]).tolist() == [False, True, True, False, True, False]
    assert sentence_ends([*"。！？।؟۔", "文。", "、"]).tolist() == [True] * 7 + [False]
    tokens = np.array([5, DOT, DOT, 6, 7, DOT, 8])
    assert sentences(tokens, ENDS).tolist() == [0, 3, 6, 7]
    assert sentences(tokens, ENDS, np.array([1, 1, 1, 1, 2, 2, 2])).tolist() == [0, 3, 4, 6, 7]
    ends = ByteTokenizer().sentence_ends
    assert {chr(i - 3) for i in np.flatnonzero(ends)} == set(".!?\n") and len(ends) == ByteTokenizer().vocab_size


def test_permutation_keeps_sentences_whole():
    starts = np.array([0, 3, 5, 9, 10])
    texts = [tuple(range(a, b)) for a, b in zip(starts, starts[1:])]
    orders = collections.Counter()
    for seed in range(400):
        order = permuted(np.random.default_rng(seed), starts, 1.0).tolist()
        pieces = [next(t for t in texts if t[0] == place) for place in order if place in starts]
        assert [place for piece in pieces for place in piece] == order
        orders[tuple(pieces)] += 1
    assert len(orders) == 24 and max(orders.values()) < 40  # all orders, about equally often
    firsts = [t[0] for t in texts]
    halves = (permuted(np.random.default_rng(seed), starts, 0.5).tolist() for seed in range(100))
    moved = {sum(a != b for a, b in zip((x for x in half if x in firsts), firsts)) for half in halves}
    assert moved == {0, 2}  # of four sentences two change places, or stay as they were


def test_infilling_hides_just_its_share_in_spans_of_the_poisson():
    """Each run of missing places is one or more masks; spans of none insert; lengths are Poisson's but for the last."""
    places, lengths, masks, inserted = np.arange(1000), [], 0, 0
    for seed in range(60):
        out = infilled(np.random.default_rng(seed), places, 300, 3.0)
        kept = out[out >= 0]
        assert len(kept) == 700 and (np.diff(kept) > 0).all()
        masks += (out < 0).sum()
        gap, previous = 0, -1  # masks since the last token, and that token
        for x in [*out.tolist(), 1000]:
            if x < 0:
                gap += 1
                continue
            hidden = x - previous - 1
            assert hidden == 0 or gap > 0, "tokens vanish behind a mask alone"
            lengths += [hidden] if gap == 1 else []
            inserted += gap == 1 and hidden == 0
            gap, previous = 0, x
    assert masks / 60 == pytest.approx(101, abs=2)  # 300 / 3, and the last one's half
    share = np.array([1, 3, 4.5, 4.5]) / np.exp(3)  # P(0..3)
    found = np.bincount(lengths, minlength=4)[:4] / len(lengths)
    np.testing.assert_allclose(found, share, atol=0.02)
    assert inserted > 100


def test_infilling_never_outgrows_the_text():
    for seed in range(50):
        assert len(infilled(np.random.default_rng(seed), np.arange(10), 3, 0.05)) <= 10


@pytest.mark.parametrize("vocabulary", [V, FRAMED], ids=["bare", "framed"])
def test_each_noise_by_itself(vocabulary):
    none = dict(infill=0.0, permute=0.0)
    front = [] if vocabulary.bos is None else [3]
    make = lambda **rates: Denoising(vocabulary, 24, **{**none, **rates})
    for seed in range(8):
        ex, out = noisy(make(delete=0.25), seed)
        text = ex["tokens"].tolist()
        left = iter(text)
        assert all(x in left for x in read(out)[len(front) : -1])  # a subsequence
        assert len(read(out)) == len(text) - round(0.25 * len(text)) + 1 + len(front)
        assert out["hidden"].sum() == round(0.25 * len(text))
        ex, out = noisy(make(mask=0.5), seed)
        inside = read(out)[len(front) : -1]
        assert inside.count(MASK) == round(0.5 * len(text)) == out["hidden"].sum()
        assert all(x in (MASK, y) for x, y in zip(inside, ex["tokens"].tolist(), strict=True))
        hidden = out["hidden"][len(front) : len(front) + len(text)]
        assert [x == MASK for x in inside] == (hidden > 0).tolist()
        ex, out = noisy(make(rotate=1.0), seed)
        inside, text = read(out)[len(front) : -1], ex["tokens"].tolist()
        assert any(inside == text[k:] + text[:k] for k in range(len(text))) and out["hidden"].sum() == 0
        ex, out = noisy(make(permute=1.0), seed, padding=5)
        text = ex["tokens"][:-5].tolist()
        assert sorted(read(out)[len(front) : -1]) == sorted(text)
        targets = out["targets"][out["segments"] > 0].tolist()
        assert targets == [*front, *text, 1] and out["weights"].sum() == len(targets)
        start = 1 if front else 0
        assert out["inputs"][: len(targets)].tolist() == [start, *targets[:-1]]
        assert out["text_bytes"] == sum(text)


def make_batch(objective, rows=3, seed=0):
    examples = [noisy(objective.preprocess, seed + i, padding=3 * (i == 1))[1] for i in range(rows)]
    batch = {k: jnp.stack([e[k] for e in examples]) for k in examples[0]}
    batch["index"] = jnp.array([[0, i] for i in range(rows)], jnp.uint32)
    return {**batch, "mask": jnp.array([1.0, 1.0, 0.0])}


@pytest.fixture(scope="module")
def params():
    made = jax.jit(OBJECTIVE.init)(jax.random.key(0))
    bias = 0.3 * jax.random.normal(jax.random.key(1), (VOCAB,))
    return {"model": {**made["model"], "head": {"bias": bias}}}


@jax.jit
def dense(params, inputs, decoder_inputs, real):
    return MODEL.apply({"params": params["model"]}, inputs, decoder_inputs, input_segments=real)[0]


def slow_loss(params, batch):
    """(loss, (sum of nll, count) of the hidden targets), a token at a time."""
    total, count, hidden, hidden_count = 0.0, 0, 0.0, 0
    for b in range(2):
        logits = dense(params, batch["encoder_inputs"][b : b + 1], batch["inputs"][b : b + 1],
                       batch["encoder_segments"][b : b + 1])  # fmt: skip
        for t in np.flatnonzero(np.asarray(batch["segments"][b])):
            loss, nll, _ = slow_token(logits[0, t], int(batch["targets"][b, t]), 0.01)
            total, count = total + loss, count + 1
            if batch["hidden"][b, t]:
                hidden, hidden_count = hidden + nll, hidden_count + 1
    return total / count, (hidden, hidden_count)


def test_value_and_gradient(params):
    batch = make_batch(OBJECTIVE)
    run = lambda p: (lambda loss: (loss.value(), loss))(
        OBJECTIVE.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    (expected, hidden), slow = jax.value_and_grad(slow_loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["hidden/nll"], hidden, rtol=1e-5)
    empty = sum(int((batch["encoder_segments"][b] == 0).sum()) for b in range(2))
    assert loss.metrics["encoder_padding"][0] == empty and loss.metrics["encoder_padding"][1] == 2 * LENGTH
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), grads, slow)


def test_batches_have_the_declared_shapes():
    shapes = lambda tree: {k: (v.shape, v.dtype) for k, v in tree.items()}
    assert shapes(make_batch(OBJECTIVE)) == shapes(OBJECTIVE.batch_spec(3))


def test_what_it_refuses():
    for change, match in (
        (dict(infill=1.0), "infill is a share of the tokens, from 0 to below 1, not 1"),
        (dict(delete=-0.1), "delete is a share"),
        (dict(permute=1.5), "permute must lie from 0 to 1"),
        (dict(infill=0.0, permute=0.0), "every rate is 0"),
        (dict(mean_span=0.5), "mean_span is a number of tokens"),
        (dict(length=4), "length 4 leaves no text"),
        (dict(length=21), "length 21 but the model has 20 learned positions; .* max_length to 23"),
    ):
        with pytest.raises(UserError, match=match):
            Bart(MODEL, **{"length": LENGTH, **change})
    with pytest.raises(
        UserError, match=r"bart needs mask, and this tokenizer has no such id: .*specials = \('mask',\)"
    ):
        Bart(MODEL, LENGTH).bind(Vocabulary(VOCAB, pad=0, eos=1))
    with pytest.raises(
        UserError, match=r"bart trains an EncoderDecoder, and the model is a Decoder: .*NextToken.* can train a Decoder"
    ):
        Bart(gpt("tiny", VOCAB), LENGTH)
