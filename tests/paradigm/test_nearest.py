"""Nearest keys, KoLeo and balanced assignments against loops and official code: value, gradient, masks, tiles, mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paradigm.contrastive import koleo, nearest
from paradigm.teacher import sinkhorn
from tests import contract

ROWS = 16
MASK = np.float32(np.arange(ROWS) % 5 != 0)
COTANGENT = np.float32(np.arange(ROWS))


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def slow_koleo(x, mask=MASK):
    """koleo_loss.py, a pair at a time, before its mean."""
    out = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and mask[j]]
        j = max(others, key=lambda j, i=i: x[i] @ x[j])
        out.append(-np.log(np.linalg.norm(x[i] - x[j])))
    return np.array(out)


def weighted(x):
    return jnp.sum(koleo(x, MASK) * COTANGENT)


def test_koleo_is_the_official_one():
    x = unit(ROWS, 5)
    np.testing.assert_allclose(koleo(x, MASK), slow_koleo(x), rtol=1e-5)
    slope, wanted = jax.grad(weighted)(jnp.asarray(x)), np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        nudge = np.zeros(x.shape)
        nudge[at] = 1e-5
        there, back = slow_koleo(np.float64(x) + nudge), slow_koleo(np.float64(x) - nudge)
        wanted[at] = np.sum((there - back) * COTANGENT) / 2e-5
    np.testing.assert_allclose(slope, wanted, rtol=1e-3, atol=1e-3)


def test_sharded_equals_single():
    x, mesh = unit(ROWS, 5), contract.mesh_of("mixed")
    value, slope = jax.value_and_grad(weighted)(jnp.asarray(x))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))
        got, slopes = jax.jit(jax.value_and_grad(weighted))(placed)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(slopes, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile", [None, 3, 100])
def test_nearest_of_a_queue(tile):
    q, queue = unit(6, 5), unit(20, 5, seed=1)
    found = nearest(q, queue, tile=tile)
    np.testing.assert_array_equal(found, queue[np.argmax(q @ queue.T, 1)])
    slope = jax.grad(lambda k: jnp.sum(nearest(q, k, tile=tile) * q))(queue)
    wanted = np.zeros(queue.shape)
    np.add.at(wanted, np.argmax(q @ queue.T, 1), q)
    np.testing.assert_allclose(slope, wanted, atol=1e-6)


def test_one_row_has_no_neighbour():
    np.testing.assert_array_equal(nearest(unit(1, 5), unit(1, 5), others=True), np.zeros((1, 5)))
    with pytest.raises(ValueError, match="nearest: queries .2, 5. and keys .3, 4. differ in width"):
        nearest(unit(2, 5), unit(3, 4))


def official(scores, iterations):
    """distributed_sinkhorn of main_swav.py in one process: exp(scores) [B, K]."""
    Q = np.exp(scores).T
    Q /= Q.sum()
    K, B = Q.shape
    for _ in range(iterations):
        Q = Q / Q.sum(1, keepdims=True) / K
        Q = Q / Q.sum(0, keepdims=True) / B
    return (Q * B).T


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_official_one(iterations):
    scores = 3 * np.random.default_rng(0).normal(size=(8, 2, 6))
    wanted = official(scores.reshape(16, 6), iterations)
    np.testing.assert_allclose(sinkhorn(scores, None, iterations).reshape(16, 6), wanted, rtol=1e-4)
    mask = np.ones((8, 2))
    mask[6:] = 0
    got = sinkhorn(scores, mask, iterations)[:6].reshape(12, 6)
    np.testing.assert_allclose(got, official(scores[:6].reshape(12, 6), iterations), rtol=1e-4)


def test_sinkhorn_balances_where_exponentials_overflow():
    """Of float32; the official code's do not in float64."""
    scores = 100 * np.random.default_rng(0).normal(size=(64, 4))
    assert np.exp(np.float32(scores)).max() == np.inf
    np.testing.assert_allclose(sinkhorn(scores), official(scores, 3), rtol=1e-3, atol=1e-4)


def test_sinkhorn_over_the_mesh():
    scores, mesh = 3 * np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32), contract.mesh_of("mixed")
    with jax.set_mesh(mesh):
        placed = jax.device_put(scores, NamedSharding(mesh, P(("data", "fsdp"))))
        got = jax.jit(sinkhorn)(placed, MASK)
    np.testing.assert_allclose(got, sinkhorn(scores, MASK), rtol=1e-5)
