"""The span corruption objective against a loop over tokens, in value and gradient, and its contract."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import t5
from t5like.objectives import SpanCorruption
from tests.t5like.test_corrupt import Ramp
from tests.t5like.vocabularies import t5_like

VOCAB, EXTRA = 60, 10
T5 = t5_like(VOCAB, EXTRA)
MODEL = t5("tiny", 64, d_model=16, heads=2, head_dim=8, d_ff=24, layers=2)
OBJECTIVE = SpanCorruption(MODEL, length=24, z_loss=0.01).bind(T5)


def make_batch(objective, rows=3, seed=0, padded_rows=1, step=0):
    """A batch as the data set gives it; the last rows are padding."""
    examples = []
    for i in range(rows):
        rng = np.random.default_rng([seed, i])
        tokens = rng.integers(3, VOCAB - EXTRA, objective.raw_length)
        tokens[rng.integers(objective.raw_length)] = T5.eos  # documents end inside windows
        lengths = np.arange(VOCAB, dtype=np.float32)
        lengths[:3] = lengths[VOCAB - EXTRA :] = 0
        example = {"tokens": tokens, "segments": np.ones_like(tokens), "byte_lengths": lengths}
        examples.append(objective.preprocess(example, rng, step, True))
    batch = {k: jnp.stack([e[k] for e in examples]) for k in examples[0]}
    batch["index"] = jnp.array([[0, i] for i in range(rows)], jnp.uint32)
    batch["mask"] = jnp.array([1.0] * (rows - padded_rows) + [0.0] * padded_rows)
    return batch


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0))


@jax.jit
def slow_token(logits, target, z_loss):
    """(loss, nll, correct) of one token by the definition. logits: [V]."""
    log_z = jnp.log(jnp.exp(logits).sum())
    nll = log_z - logits[target]
    return nll + z_loss * log_z**2, nll, jnp.argmax(logits) == target


@jax.jit
def dense(params, inputs, decoder_inputs):
    return MODEL.apply({"params": params["model"]}, inputs, decoder_inputs)[0]


def slow_loss(params, batch, z_loss=0.01):
    """(loss, sums of the metrics), one target at a time from the model's dense logits."""
    inputs, targets = np.asarray(batch["encoder_inputs"]), np.asarray(batch["targets"])
    total, nll, correct, count, text_nll, text_bytes = 0.0, 0.0, 0, 0, 0.0, 0.0
    for b in range(len(targets)):
        if batch["mask"][b] == 0:
            continue
        decoder_inputs = [0] + [int(t) for t in targets[b][:-1]]
        logits = dense(params, jnp.array([inputs[b]]), jnp.array([decoder_inputs]))
        for t, target in enumerate(targets[b]):
            if target == 0:
                continue
            loss, token_nll, hit = slow_token(logits[0, t], int(target), z_loss)
            total, nll, correct = total + loss, nll + token_nll, correct + int(hit)
            count += 1
            if 2 < target < VOCAB - EXTRA:
                text_nll += token_nll / math.log(2)
                text_bytes += float(target)  # this test's byte lengths are the ids
    return total / count, dict(nll=(nll, count), accuracy=(correct, count), bits_per_byte=(text_nll, text_bytes))


def test_value_and_gradient(params):
    batch = make_batch(OBJECTIVE)
    run = lambda p: (lambda loss: (loss.value(), loss))(
        OBJECTIVE.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    (expected, metrics), slow_grads = jax.value_and_grad(slow_loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert set(loss.metrics) == set(metrics) and set(loss.terms) == {"cross_entropy"}
    for name, pair in metrics.items():
        np.testing.assert_allclose(loss.metrics[name], pair, rtol=1e-5, err_msg=name)
    for path, slow in jax.tree_util.tree_leaves_with_path(slow_grads):
        fast = dict(jax.tree_util.tree_leaves_with_path(grads))[path]
        np.testing.assert_allclose(fast, slow, atol=2e-5, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


def test_later_targets_do_not_reach_earlier_losses(params):
    """Causality by gradient: d loss of target t / d embedding of decoder input s is zero for s > t and not before."""
    batch = make_batch(OBJECTIVE, padded_rows=0)
    targets = batch["targets"]
    decoder_inputs = batch["inputs"]
    weights = jnp.zeros_like(targets).at[:, 3].set(1)

    @jax.jit
    def loss_of_fourth(decoder_inputs):
        hidden = MODEL.apply({"params": params["model"]}, batch["encoder_inputs"], decoder_inputs, method="hidden")[0]
        return (hidden * weights[..., None]).sum(-1)

    base = loss_of_fourth(decoder_inputs)
    for s in range(targets.shape[1]):
        moved = loss_of_fourth(decoder_inputs.at[:, s].add(1))
        assert bool((jnp.abs(moved - base).max(1) > 1e-6).all()) == (s <= 3)


def test_dropout_is_by_example_and_only_in_training():
    model = t5("tiny", 64, d_model=16, heads=2, head_dim=8, d_ff=24, layers=1, dropout=0.5)
    objective = dataclasses.replace(OBJECTIVE, model=model)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch = make_batch(objective, padded_rows=0)
    total = jax.jit(lambda batch, ctx: objective.loss(params, {}, batch, ctx).terms["cross_entropy"].sum)
    run = lambda batch, train=True: float(total(batch, Context(jnp.int32(0), train=train)))
    rolled = jax.tree.map(lambda x: jnp.roll(x, 1, 0), batch)
    assert run(batch) == pytest.approx(run(rolled), rel=1e-5)
    assert run(batch) != pytest.approx(run({**batch, "index": rolled["index"]}), rel=1e-4)
    assert run(batch) != pytest.approx(run(batch, train=False), rel=1e-3)


@pytest.mark.parametrize("rate", [0.15, Ramp(0.1, 0.4)])
def test_batches_have_the_declared_shapes(rate):
    objective = dataclasses.replace(OBJECTIVE, rate=rate)
    spec = objective.batch_spec(3)
    for step in (0, 50, 100):
        batch = make_batch(objective, step=step)
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in spec.items()}
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    loss = jax.eval_shape(lambda p, b: objective.loss(p, {}, b, Context(jnp.int32(0))), abstract, spec)
    assert loss.terms["cross_entropy"].sum.shape == ()


def test_the_shapes_of_the_paper():
    objective = SpanCorruption(t5("small")).bind(t5_like(32100, 100))
    assert objective.model.vocab_size == 32128
    assert objective.raw_length == 568 and objective.batch_spec(4)["targets"].shape == (4, 114)
    assert hash(objective) == hash(dataclasses.replace(objective))
    forward = objective.model.flops(4, 512, 114)
    assert objective.flops(objective.batch_spec(4)) == 3 * forward


def test_settings_that_cannot_be():
    with pytest.raises(
        UserError, match="the tokenizer has 100 ids but the model 64: set its vocab_size to 100 or more"
    ):
        OBJECTIVE.bind(t5_like(100, 10))
    with pytest.raises(UserError, match="a vocabulary of 13 has no room for text beside 10 sentinels"):
        OBJECTIVE.bind(t5_like(13, 10))
    with pytest.raises(UserError, match="SpanCorruption has no vocabulary yet: objective.bind"):
        _ = SpanCorruption(MODEL).preprocess
    with pytest.raises(UserError, match="the model has no vocab_size: objective.bind"):
        jax.eval_shape(SpanCorruption(t5("tiny")).init, jax.random.key(0))
    with pytest.raises(UserError, match="needs 28 sentinels but the tokenizer has 10"):
        dataclasses.replace(OBJECTIVE, length=512)
