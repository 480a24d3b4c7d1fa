"""Multi-token prediction against a loop over heads, documents and tokens; the first head is the model's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import gpt, t5
from t5like.objectives import MultiToken, NextToken
from tests.t5like.test_next_token import LENGTH, VOCAB, make_batch
from tests.t5like.test_span_corruption import slow_token
from tests.t5like.vocabularies import t5_like

MODEL = gpt("tiny", VOCAB, d_model=16, heads=2, d_ff=24, layers=2, init_std=0.3, embed_std=1.0)
OBJECTIVE = MultiToken(MODEL, LENGTH, heads=3, z_loss=0.0).bind(t5_like(VOCAB))


@jax.jit
def dense(params, read):
    """float32 [3, L, V]: the logits of each head for one text by itself."""
    logits, seen = MODEL.apply({"params": params["model"]}, read[None])
    kernel, found = MODEL.output_kernel(params["model"]), [logits[0]]
    for name in ("head_2", "head_3"):
        module, _ = OBJECTIVE.modules()[name]
        found.append(module.apply({"params": params[name]}, seen["layers"][-2])[0][0] @ kernel)
    return jnp.stack(found)


def slow_loss(params, batch):
    """(loss, {head: (nll, count)}): each document by itself, each head's logits for each of its places."""
    totals = {1: [0.0, 0], 2: [0.0, 0], 3: [0.0, 0]}
    for b in range(3):
        segments, tokens = np.asarray(batch["segments"][b]), np.asarray(batch["targets"][b])
        for document in sorted(set(segments[segments > 0].tolist())):
            text = tokens[segments == document].tolist()
            logits = dense(params, jnp.array([0, *text[:-1], *[0] * (LENGTH - len(text))]))
            for head in (1, 2, 3):
                for t, target in enumerate(text[head - 1 :]):
                    totals[head][0] += slow_token(logits[head - 1, t], target, 0.0)[1]
                    totals[head][1] += 1
    return sum(total / count for total, count in totals.values()), totals


def test_value_and_gradient():
    params, batch = jax.jit(OBJECTIVE.init)(jax.random.key(0)), make_batch(OBJECTIVE)
    run = lambda p: (lambda loss: (loss.value(), loss))(
        OBJECTIVE.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    (expected, totals), slow_grads = jax.value_and_grad(slow_loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for head in (2, 3):
        np.testing.assert_allclose(loss.metrics[f"head_{head}/nll"], totals[head], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-3), grads, slow_grads)
    own = NextToken(MODEL, LENGTH).bind(t5_like(VOCAB))
    plain = jax.jit(lambda p: own.loss(p, {}, batch, Context(jnp.int32(0), train=False)).metrics)(params)
    assert float(plain["nll"][0]) == pytest.approx(float(loss.metrics["nll"][0]))


def test_what_it_refuses():
    for change, match in (
        (dict(heads=1), "heads=1 tokens ahead; use 2 or more"),
        (dict(model=gpt("tiny", VOCAB, layers=1)), "last layer is its first head; give it 2 layers"),
        (dict(model=t5("tiny", VOCAB)), "multi_token trains a Decoder, and the model is an EncoderDecoder"),
    ):
        with pytest.raises(UserError, match=match):
            dataclasses.replace(OBJECTIVE, **change)
