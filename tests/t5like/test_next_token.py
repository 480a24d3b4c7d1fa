"""The next-token objective against a loop over documents and tokens, packing and prefixes included."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import gpt, t5
from t5like.objectives import NextToken, PrefixLM
from tests.t5like.test_span_corruption import slow_token
from tests.t5like.vocabularies import t5_like

VOCAB, LENGTH = 50, 12
MODEL = gpt("tiny", VOCAB, d_model=16, heads=2, d_ff=24, layers=2, init_std=0.3, embed_std=1.0)
OBJECTIVE = NextToken(MODEL, LENGTH, z_loss=0.01).bind(t5_like(VOCAB))
PREFIX = PrefixLM(MODEL, LENGTH, z_loss=0.01).bind(t5_like(VOCAB))
SEGMENTS = ([1] * 12, [1] * 5 + [2] * 4 + [3] * 3, [1] * 3 + [2] * 5 + [0] * 4, [1] * 12)


def make_batch(objective, seed=0):
    """Four rows: one document, three documents, two and padding, and a row that is padding of the batch."""
    rows = []
    for i, segments in enumerate(SEGMENTS):
        rng = np.random.default_rng([seed, i])
        segments = np.array(segments)
        tokens = rng.integers(3, VOCAB, LENGTH)
        tokens[np.flatnonzero(np.diff(segments))] = 1  # each document ends in eos
        tokens[segments == 0] = 0
        lengths = np.arange(VOCAB, dtype=np.float32)
        lengths[:3] = 0
        rows.append(
            objective.preprocess({"tokens": tokens, "segments": segments, "byte_lengths": lengths}, rng, 0, True)
        )
    batch = {k: jnp.stack([r[k] for r in rows]) for k in rows[0]}
    batch["index"] = jnp.array([[0, i] for i in range(4)], jnp.uint32)
    batch["mask"] = jnp.array([1.0, 1.0, 1.0, 0.0])
    return batch


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0))


@jax.jit
def dense(params, inputs, prefix):
    return MODEL.apply({"params": params["model"]}, inputs, prefix=prefix)[0]


def slow_loss(params, batch, z_loss=0.01):
    """Each document by itself, each token from those before it, by the model's dense logits."""
    total, nll, correct, count, text_nll, text_bytes = 0.0, 0.0, 0, 0, 0.0, 0.0
    for b in range(3):
        tokens, segments = np.asarray(batch["targets"][b]), np.asarray(batch["segments"][b])
        prefix = int(batch["prefix"][b]) if "prefix" in batch else 0
        for document in sorted(set(segments[segments > 0].tolist())):
            places = np.flatnonzero(segments == document)
            inputs = [0, *tokens[places][:-1].tolist(), *[0] * (LENGTH - len(places))]
            # The prefix covers the window's first tokens; of this document it holds those that come before `prefix`.
            inside = max(prefix + 1 - int(places[0]), 0) if "prefix" in batch else 0
            logits = dense(params, jnp.array([inputs]), jnp.array([inside]))
            for t, place in enumerate(places.tolist()):
                if place < prefix:
                    continue
                target = int(tokens[place])
                loss, token_nll, hit = slow_token(logits[0, t], target, z_loss)
                total, nll, correct = total + loss, nll + token_nll, correct + int(hit)
                count += 1
                if target > 2:
                    text_nll += token_nll / math.log(2)
                    text_bytes += float(target)  # this test's byte lengths are the ids
    return total / count, dict(nll=(nll, count), accuracy=(correct, count), bits_per_byte=(text_nll, text_bytes))


@pytest.mark.parametrize("objective", [OBJECTIVE, PREFIX], ids=["plain", "prefix"])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient(objective, seed, params):
    batch = make_batch(objective, seed)
    run = lambda p: (lambda loss: (loss.value(), loss))(
        objective.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    (expected, metrics), slow_grads = jax.value_and_grad(slow_loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, pair in metrics.items():
        np.testing.assert_allclose(loss.metrics[name], pair, rtol=1e-5, err_msg=name)
    for path, slow in jax.tree_util.tree_leaves_with_path(slow_grads):
        fast = dict(jax.tree_util.tree_leaves_with_path(grads))[path]
        np.testing.assert_allclose(fast, slow, atol=2e-5, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


def test_what_each_loss_depends_on(params):
    """Move one token: exactly the scores that may see it change (causal, one document, prefix seen whole)."""

    def probing(kind):
        @dataclasses.dataclass(frozen=True)
        class Probe(kind):
            def scored(self, batch):
                targets, weights, is_text = super().scored(batch)
                return targets, weights * batch["only"], is_text

        return Probe(MODEL, LENGTH).bind(t5_like(VOCAB))

    for kind, prefix in ((NextToken, 0), (PrefixLM, 3)):
        probe = probing(kind)
        ctx = Context(jnp.int32(0), train=False)
        one = lambda only, b: probe.loss(params, {}, {**b, "only": only}, ctx).terms["cross_entropy"].sum
        scores = jax.jit(lambda batch: jax.vmap(one, (0, None))(jnp.eye(LENGTH), batch))
        batch = {k: v[1:2] for k, v in make_batch(PREFIX).items()}  # the row of three documents
        batch["prefix"] = jnp.array([prefix])
        batch["weights"] = jnp.float32(np.arange(LENGTH) >= prefix)[None]
        base, segments = scores(batch), SEGMENTS[1]
        assert [float(x) == 0 for x in base] == [t < prefix for t in range(LENGTH)]
        for s in (0, 2, 3, 6, 11):
            moved = {"targets": batch["targets"].at[0, s].set(7)}
            if s + 1 < LENGTH and segments[s] == segments[s + 1]:
                moved["inputs"] = batch["inputs"].at[0, s + 1].set(7)
            moved = scores({**batch, **moved})
            for t in range(prefix, LENGTH):
                may = segments[s] == segments[t] and s <= t  # at s itself the target moves
                assert (abs(float(moved[t] - base[t])) > 1e-7) == may, (prefix, s, t)


def test_the_prefix_is_seen_whole(params):
    """With a prefix, an early position's state depends on later tokens of the prefix, and on nothing after it."""
    inputs, segments, positions = (make_batch(PREFIX)[name][:1] for name in ("inputs", "segments", "positions"))

    @jax.jit
    def first_states(inputs):
        how = {"prefix": jnp.array([5 + 1]), "method": "hidden"}
        return MODEL.apply({"params": params["model"]}, inputs, None, segments, positions, **how)[0][0, 0]

    base = first_states(inputs)
    changes = [float(jnp.abs(first_states(inputs.at[0, s].set(9)) - base).max()) > 0 for s in range(LENGTH)]
    assert changes == [s <= 5 for s in range(LENGTH)]  # position s holds token s - 1: tokens 0 .. 4 are the prefix


def test_documents_are_shifted_by_themselves():
    batch = make_batch(OBJECTIVE)
    inputs, positions = batch["inputs"], batch["positions"]
    for b in range(4):
        tokens, segments = np.asarray(batch["targets"][b]), np.asarray(batch["segments"][b])
        place = 0
        for t in range(LENGTH):
            start = t == 0 or segments[t] != segments[t - 1]
            place = 0 if start else place + 1
            assert positions[b, t] == place and inputs[b, t] == (0 if start else tokens[t - 1])


@pytest.mark.parametrize("objective", [OBJECTIVE, PREFIX], ids=["plain", "prefix"])
def test_batches_have_the_declared_shapes(objective):
    spec = objective.batch_spec(4)
    assert {k: (v.shape, v.dtype) for k, v in make_batch(objective).items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    loss = jax.eval_shape(lambda p, b: objective.loss(p, {}, b, Context(jnp.int32(0))), abstract, spec)
    assert loss.terms["cross_entropy"].sum.shape == ()
    assert objective.flops(spec) == 3 * MODEL.flops(4, LENGTH)


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="length 2048 but the model has 1024 learned positions; .* max_length to 2048"):
        NextToken(gpt("tiny", VOCAB, style="gpt2"), 2048)
    with pytest.raises(UserError, match="length must be at least 2"):
        NextToken(MODEL, 1)
    with pytest.raises(UserError, match="an objective of its own now: Experiment.objective = @PrefixLM"):
        NextToken(MODEL, LENGTH, prefix=True)
    for kind, name in ((NextToken, "next_token"), (PrefixLM, "prefix_lm")):
        message = f"{name} trains a Decoder, and the model is an EncoderDecoder: .* can train an EncoderDecoder"
        with pytest.raises(UserError, match=message):
            kind(t5("tiny", VOCAB), LENGTH)
