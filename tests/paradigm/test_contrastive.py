"""Pairwise losses against loops over rows and keys: value, gradient, masks, tiles, meshes and memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import pairs
from launch.aot.topology import parse_topology
from paradigm import partition
from paradigm.contrastive import info_nce, nt_xent, sigmoid_pairs
from tests import contract


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def example(B, N, D, seed=0):
    """(rows [B, D], keys [N, D], positives [B, D])."""
    return unit(B, D, seed=seed), unit(N, D, seed=seed + 1), unit(B, D, seed=seed + 2)


def ragged(n):
    """A mask that leaves out the first example and one in three."""
    return np.float32(np.arange(n) % 3 != 0)


# ---- The slow versions: float64, one pair at a time. Each gives (values, hits, d_rows, d_keys, d_scale, d_bias) ------


def slow_softmax(rows, keys, candidates, positive, scale, cotangent):
    """-log softmax of keys[positive[i]] among keys[candidates[i]], and the gradient of its sum with the cotangent."""
    rows, keys = np.float64(rows), np.float64(keys)
    nll, hits = np.zeros(len(rows)), np.zeros(len(rows))
    d_rows, d_keys, d_scale = np.zeros(rows.shape), np.zeros(keys.shape), 0.0
    for i in range(len(rows)):
        dots = {j: rows[i] @ keys[j] for j in candidates[i]}
        normalizer = sum(math.exp(scale * dot) for dot in dots.values())
        nll[i] = math.log(normalizer) - scale * dots[positive[i]]
        hits[i] = all(scale * dots[positive[i]] > scale * dots[j] for j in dots if j != positive[i])
        for j, dot in dots.items():
            d = cotangent[i] * (math.exp(scale * dot) / normalizer - (j == positive[i]))
            d_rows[i] += d * scale * keys[j]
            d_keys[j] += d * scale * rows[i]
            d_scale += d * dot
    return nll, hits, d_rows, d_keys, d_scale


def slow_nt_xent(a, b, scale, mask, cotangent):
    B, z = len(a), np.concatenate([a, b])
    partner = [(i + B) % (2 * B) for i in range(2 * B)]
    candidates = [[j for j in range(2 * B) if j == partner[i] or (j != i and mask[j % B])] for i in range(2 * B)]
    nll, hits, d_rows, d_keys, d_scale = slow_softmax(z, z, candidates, partner, scale, cotangent.ravel())
    d = d_rows + d_keys
    return nll.reshape(2, B), hits.reshape(2, B), d[:B], d[B:], d_scale


def slow_info_nce(q, k, scale, mask, cotangent):
    candidates = [[j for j in range(len(k)) if j == i or mask[j]] for i in range(len(q))]
    return slow_softmax(q, k, candidates, list(range(len(q))), scale, cotangent)


def slow_queue(q, k, scale, mask, cotangent, positives):
    B, keys = len(q), np.concatenate([positives, k])
    candidates = [[i] + [B + j for j in range(len(k)) if mask[j]] for i in range(B)]
    nll, hits, d_q, d_keys, d_scale = slow_softmax(q, keys, candidates, list(range(B)), scale, cotangent)
    return nll, hits, d_q, d_keys[B:], d_scale, d_keys[:B]


def slow_sigmoid(a, b, scale, bias, mask, cotangent):
    a, b = np.float64(a), np.float64(b)
    B = len(a)
    total, hits, d_a, d_b, d_scale, d_bias = np.zeros(B), np.zeros(B), np.zeros(a.shape), np.zeros(b.shape), 0.0, 0.0
    for i in range(B):
        dots = {j: a[i] @ b[j] for j in range(B) if j == i or mask[j]}
        hits[i] = all(dots[i] > dots[j] for j in dots if j != i)
        for j, dot in dots.items():
            z = 1 if i == j else -1
            total[i] += math.log(1 + math.exp(-z * (scale * dot + bias)))
            d = cotangent[i] * -z / (1 + math.exp(z * (scale * dot + bias)))
            d_a[i] += d * scale * b[j]
            d_b[j] += d * scale * a[i]
            d_scale += d * dot
            d_bias += d
    return total, hits, d_a, d_b, d_scale, d_bias


def close(ours, theirs, rtol=1e-5):
    theirs = np.asarray(theirs, np.float64)
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=rtol, atol=rtol * np.abs(theirs).max() + 1e-9)


@functools.partial(jax.jit, static_argnames=("loss", "tile"))
def with_gradient(loss, tile, cotangent, mask, *args):
    """(values, correct, *gradients of sum(values * cotangent)), the order of the slow versions. One program a shape."""
    f = lambda *args: (lambda out: (jnp.sum(out[0] * cotangent), out))(loss(*args, mask, tile=tile))
    gradients, out = jax.grad(f, argnums=tuple(range(len(args))), has_aux=True)(*args)
    return *out, *gradients


def cotangent_of(*shape):
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


SIZES = [(7, 5, None), (7, 5, 3), (12, 4, 4), (6, 8, 1), (1, 4, None), (2, 3, 2)]
everywhere = pytest.mark.parametrize("B,D,tile", SIZES)
masked = pytest.mark.parametrize("mask_of", [np.ones, ragged])


@pytest.mark.parametrize("scale", [1.0, 14.0])
@masked
@everywhere
def test_nt_xent_equals_a_loop(B, D, tile, mask_of, scale):
    (a, b, _), mask, cotangent = example(B, B, D), mask_of(B), cotangent_of(2, B)
    ours = with_gradient(nt_xent, tile, cotangent, mask, a, b, scale)
    for x, y in zip(ours, slow_nt_xent(a, b, scale, mask, cotangent), strict=True):
        close(x, y)


@pytest.mark.parametrize("scale", [1.0, 14.0])
@masked
@everywhere
def test_info_nce_equals_a_loop(B, D, tile, mask_of, scale):
    (q, k, _), mask, cotangent = example(B, B, D), mask_of(B), cotangent_of(B)
    ours = with_gradient(info_nce, tile, cotangent, mask, q, k, scale)
    for x, y in zip(ours, slow_info_nce(q, k, scale, mask, cotangent), strict=True):
        close(x, y)


def against_a_queue(q, k, scale, positives, mask, tile):
    return info_nce(q, k, scale, mask, positives, tile=tile)


@masked
@pytest.mark.parametrize("B,N,D,tile", [(5, 11, 4, 3), (5, 11, 4, None), (6, 2, 3, 1)])
def test_a_queue_of_negatives_equals_a_loop(B, N, D, tile, mask_of):
    (q, k, positives), mask, cotangent = example(B, N, D), mask_of(N), cotangent_of(B)
    ours = with_gradient(against_a_queue, tile, cotangent, mask, q, k, 5.0, positives)
    for x, y in zip(ours, slow_queue(q, k, 5.0, mask, cotangent, positives), strict=True):
        close(x, y)


@pytest.mark.parametrize("scale,bias", [(1.0, 0.3), (10.0, -10.0)])
@masked
@everywhere
def test_sigmoid_pairs_equal_a_loop(B, D, tile, mask_of, scale, bias):
    (a, b, _), mask, cotangent = example(B, B, D), mask_of(B), cotangent_of(B)
    ours = with_gradient(sigmoid_pairs, tile, cotangent, mask, a, b, scale, bias)
    for x, y in zip(ours, slow_sigmoid(a, b, scale, bias, mask, cotangent), strict=True):
        close(x, y)


def test_without_a_mask_all_are_there():
    a, b, _ = example(6, 6, 4)
    ones = np.ones(6, np.float32)
    for loss in (nt_xent, info_nce, lambda a, b, s, m: sigmoid_pairs(a, b, s, -1.0, m)):
        contract.assert_trees_equal(loss(a, b, 3.0, None), loss(a, b, 3.0, ones))


def test_large_logits_and_no_negatives_stay_finite():
    a, b, _ = example(6, 6, 4)
    nobody = np.zeros(6, np.float32)
    for loss in (nt_xent, info_nce, lambda a, b, s, m: sigmoid_pairs(a, b, s, -10.0, m)):
        for scale, mask in ((1e4, None), (5.0, nobody)):
            value, slopes = jax.value_and_grad(lambda *x, m=mask: loss(*x, m)[0].sum(), (0, 1, 2))(a, b, scale)
            assert np.isfinite(value) and all(np.isfinite(x).all() for x in slopes)
    assert not np.any(info_nce(a, b, 5.0, nobody)[0])


def test_a_tie_is_not_a_hit():
    same = np.ones((4, 3), np.float32)
    for loss in (nt_xent, info_nce, lambda a, b, s: sigmoid_pairs(a, b, s, 0.0)):
        assert not loss(same, same, 2.0)[1].any()


def test_correct_carries_no_gradient():
    a, b, _ = example(6, 6, 4)
    assert not np.any(jax.grad(lambda a: nt_xent(a, b, 3.0)[1].sum())(a))


def test_bfloat16_products_float32_sums():
    """Gradients come in the dtypes of the inputs, near the float32 ones; log-sum-exp itself is not rounded."""
    a, b, _ = (np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in example(64, 64, 32))
    exact = [x.astype(np.float32) for x in (a, b)]
    for loss in (nt_xent, info_nce, lambda a, b, s: sigmoid_pairs(a, b, s, -2.0)):
        f = jax.jit(jax.value_and_grad(lambda a, b, s: loss(a, b, s)[0].mean(), (0, 1, 2)))
        (low, slopes), (high, expected) = f(a, b, 10.0), f(*exact, 10.0)
        assert low.dtype == jnp.float32 and slopes[0].dtype == slopes[1].dtype == jnp.bfloat16
        close(low, high, 1e-6)
        for x, y in zip(slopes, expected):
            close(x, y, 1e-2)


def test_every_product_sums_in_float32():
    """bfloat16 products would round each tile's part of a gradient to 8 bits before it is added."""
    x, s = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.float32)
    for name, loss in pairs.LOSSES.items():
        program = str(jax.make_jaxpr(jax.grad(lambda *args, f=loss: f(*args).sum(), (0, 1)))(x, x, s, s))
        # The logits, forward and backward, and the two gradients; twice as many for both directions.
        assert (
            program.count("preferred_element_type=float32")
            == program.count("dot_general[")
            == (8 if name == "clip" else 4)
        )


# ---- On a mesh -------------------------------------------------------------------------------------------------------

LOSSES = {
    "nt_xent": lambda a, b, scale, bias, mask, tile: nt_xent(a, b, scale, mask, tile=tile),
    "info_nce": lambda a, b, scale, bias, mask, tile: info_nce(a, b, scale, mask, tile=tile),
    "queue": lambda a, b, scale, bias, mask, tile: info_nce(a, unit(24, 8, seed=7), scale, None, b, tile=tile),
    "sigmoid_pairs": lambda a, b, scale, bias, mask, tile: sigmoid_pairs(a, b, scale, bias, mask, tile=tile),
}


@contract.every_mesh
@pytest.mark.parametrize("name", LOSSES)
def test_sharded_equals_one_device(name, mesh):
    B = 24
    a, b, _ = example(B, B, 8)
    cotangent = cotangent_of(*((2, B) if name == "nt_xent" else (B,)))
    whole = lambda *args: with_gradient(LOSSES[name], 2, cotangent, ragged(B), *args)
    args = a, b, np.float32(6.0), np.float32(-2.0)
    expected = whole(*args)
    mesh = contract.mesh_of(mesh)
    rows, scalar = NamedSharding(mesh, P(partition.BATCH)), NamedSharding(mesh, P())
    layout = rows, rows, scalar, scalar
    with jax.set_mesh(mesh):
        ours = jax.jit(whole, in_shardings=layout)(*jax.device_put(args, layout))
    contract.assert_trees_close(list(ours), list(expected), 1e-5)


@pytest.mark.parametrize("layout", [P(partition.BATCH), P()])
def test_the_gradient_of_a_queue_on_a_mesh(layout):
    """Keys spread over the devices or whole on each: the gradient of every key comes home."""
    q, k, positives = example(16, 40, 8)
    f = jax.grad(lambda k: info_nce(q, k, 6.0, ragged(40), positives)[0].sum())
    mesh = contract.mesh_of("mixed")
    with jax.set_mesh(mesh):
        ours = jax.jit(f)(jax.device_put(k, NamedSharding(mesh, layout)))
    close(ours, f(k))


def test_rows_that_the_mesh_does_not_divide():
    a, b, _ = example(6, 6, 4)
    with jax.set_mesh(contract.mesh_of("data")):
        ours = jax.jit(nt_xent)(a, b, 3.0)
    contract.assert_trees_close(list(ours), list(nt_xent(a, b, 3.0)), 1e-6)


# ---- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pairs.LOSSES)
def test_the_matrix_of_pairs_is_never_held(name):
    """At 16384 rows the matrix would take 1 GiB; the loss with its gradient takes a few times its embeddings."""
    B, D = 16384, 8
    embedding, scalar = jax.ShapeDtypeStruct((B, D), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    gradient = jax.value_and_grad(lambda *args: pairs.LOSSES[name](*args).mean(), (0, 1, 2, 3))
    memory = jax.jit(gradient).lower(embedding, embedding, scalar, scalar).compile().memory_analysis()
    assert memory.temp_size_in_bytes < B * B * 4 / 8


@pytest.mark.parametrize("name", pairs.LOSSES)
def test_memory_of_a_device_does_not_grow_with_the_devices(name):
    devices = jax.devices()
    few, many = (pairs.compiled(name, devices[:n], rows=128) for n in (2, 8))
    few, many = (c.memory_analysis().temp_size_in_bytes for c in (few, many))
    assert abs(many - few) <= 0.05 * few
    # All keys on one device would show: they are as large as all that is allowed to grow, several times over.
    assert 8 * 128 * 512 * 4 > 0.05 * few


@pytest.mark.slow
@pytest.mark.parametrize("name", pairs.LOSSES)
def test_memory_of_a_chip_does_not_grow_with_the_slice(name):
    pytest.importorskip("libtpu")
    devices = [parse_topology(topology).devices() for topology in pairs.SLICES]
    memory = [pairs.compiled(name, chips, rows=128).memory_analysis() for chips in devices]
    for kind in ("temp_size_in_bytes", "peak_memory_in_bytes"):
        sizes = [getattr(m, kind) for m in memory]
        assert max(sizes) <= 1.05 * min(sizes), (kind, sizes)
    assert memory[0].peak_memory_in_bytes > 0


# ---- Errors ----------------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit():
    a, b, _ = example(4, 6, 3)
    with pytest.raises(ValueError, match=r"nt_xent: both sides of a pair are \[B, D\], got \(4, 3\) and \(6, 3\)"):
        nt_xent(a, b, 1.0)
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), for 6 keys it must be \(6,\)"):
        info_nce(a, b, 1.0, np.ones(4), a)
    with pytest.raises(ValueError, match=r"info_nce: queries \(4, 3\) and keys \(6, 5\) differ in width"):
        info_nce(a, unit(6, 5), 1.0, None, a)
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        sigmoid_pairs(a, a, 1.0, 0.0, tile=0)
