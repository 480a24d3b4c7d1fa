"""PEGASUS's choice of sentences against ROUGE-1 by the definition, its loss against a loop, and what it refuses."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.gap_sentences import GapSentences, rouge_1
from t5like.models import gpt, t5
from t5like.objectives import Pegasus
from t5like.vocabulary import Vocabulary
from tests.t5like.test_span_corruption import slow_token

VOCAB, LENGTH, TARGETS, MASK, DOT = 40, 28, 12, 2, 9
V = Vocabulary(VOCAB, pad=0, eos=1, mask=MASK)
MODEL = t5("tiny", VOCAB, d_model=16, heads=2, head_dim=8, d_ff=24, layers=2)
OBJECTIVE = Pegasus(MODEL, LENGTH, TARGETS, z_loss=0.01).bind(V)


def example(seed, text=LENGTH - 1, dots=True):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 20, LENGTH - 1)
    tokens[rng.choice(LENGTH - 1, 7, replace=False)] = DOT if dots else 10
    segments = (np.arange(LENGTH - 1) < text).astype(np.int32)
    ends, lengths = np.arange(VOCAB) == DOT, np.arange(VOCAB, dtype=np.float32)
    return {"tokens": tokens * segments, "segments": segments, "byte_lengths": lengths, "sentence_ends": ends}


def split(tokens):
    parts = [[]]
    for i, token in enumerate(tokens):
        parts[-1].append(token)
        if token == DOT and i + 1 < len(tokens) and tokens[i + 1] != DOT:
            parts.append([])
    return parts


def slow_rouge(part, rest):
    a, b = collections.Counter(part), collections.Counter(rest)
    shared = sum((a & b).values())
    p, r = shared / len(part), shared / len(rest)
    return 2 * p * r / (p + r) if shared else 0.0


@pytest.mark.parametrize("choice", ["principal", "random", "lead"])
@pytest.mark.parametrize("text", [LENGTH - 1, 15])
def test_sentences_move_to_the_targets(choice, text):
    noise, which = GapSentences(V, LENGTH, LENGTH, 0.3, choice), set()
    for seed in range(30):
        ex = example(seed, text)
        out = noise(ex, np.random.default_rng(seed), 0, True)
        parts = split(ex["tokens"][:text].tolist())
        scores = [slow_rouge(part, sum(parts[:i] + parts[i + 1 :], [])) for i, part in enumerate(parts)]
        np.testing.assert_allclose(rouge_1([np.array(p) for p in parts], VOCAB), scores)
        count = min(max(round(0.3 * len(parts)), 1), len(parts) - 1)
        read = out["encoder_inputs"][out["encoder_segments"] > 0].tolist()
        assert read.count(MASK) == count and read[-1] == 1
        *taken, end = out["targets"][out["weights"] > 0].tolist()
        assert end == 1 and out["text_bytes"] == sum(taken) and out["too_short"] == 0
        chosen = {
            "principal": sorted(sorted(range(len(parts)), key=lambda i: -round(scores[i], 9))[:count]),
            "lead": range(count),
        }
        if choice != "random":
            assert taken == sum((parts[i] for i in chosen[choice]), [])
            assert read[:-1] == sum(([MASK] if i in chosen[choice] else parts[i] for i in range(len(parts))), [])
        which.add(read.index(MASK))
    assert choice == "lead" or len(which) > 3


def test_texts_too_short_are_counted():
    out = OBJECTIVE.preprocess(example(0, dots=False), np.random.default_rng(0), 0, True)
    assert out["too_short"] == 1 and not out["weights"].any() and out["text_bytes"] == 0
    assert out["encoder_inputs"][: LENGTH - 1].tolist() == example(0, dots=False)["tokens"].tolist()


def make_batch():
    examples = [example(0), example(1, 20), example(2, dots=False), example(3)]
    rows = [OBJECTIVE.preprocess(ex, np.random.default_rng(0), 0, True) for ex in examples]
    batch = {k: jnp.stack([r[k] for r in rows]) for k in rows[0]}
    batch["index"] = jnp.array([[0, i] for i in range(4)], jnp.uint32)
    return {**batch, "mask": jnp.array([1.0, 1.0, 1.0, 0.0])}


@jax.jit
def dense(params, inputs, real, read):
    return MODEL.apply({"params": params["model"]}, inputs, read, input_segments=real)[0]


def slow_loss(params, batch):
    total, count = 0.0, 0
    for b in range(2):  # the third is too short
        row = {k: v[b : b + 1] for k, v in batch.items()}
        logits = dense(params, row["encoder_inputs"], row["encoder_segments"], row["inputs"])
        for t in np.flatnonzero(np.asarray(row["segments"][0])):
            total, count = total + slow_token(logits[0, t], int(row["targets"][0, t]), 0.01)[0], count + 1
    return total / count


def test_value_and_gradient():
    params, batch = jax.jit(OBJECTIVE.init)(jax.random.key(0)), make_batch()
    run = lambda p: (lambda loss: (loss.value(), loss.metrics))(
        OBJECTIVE.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, metrics), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    expected, slow = jax.value_and_grad(slow_loss)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics["too_short"][0] == 1 and metrics["too_short"][1] == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-3), grads, slow)


def test_batches_have_the_declared_shapes():
    shapes = lambda tree: {k: (v.shape, v.dtype) for k, v in tree.items()}
    assert shapes(make_batch()) == shapes(OBJECTIVE.batch_spec(4))


def test_what_it_refuses():
    for change, match in (
        (dict(ratio=1.0), "ratio must lie strictly between 0 and 1, not 1"),
        (dict(choice="prinzipal"), "principal"),
        (dict(length=4), "length 4 and target_length 12 have no room"),
        (dict(model=gpt("tiny", VOCAB)), "pegasus trains an EncoderDecoder, and the model is a Decoder"),
    ):
        with pytest.raises(UserError, match=match):
            dataclasses.replace(OBJECTIVE, **change)
    with pytest.raises(UserError, match="pegasus needs mask"):
        OBJECTIVE.bind(Vocabulary(VOCAB, pad=0, eos=1))
