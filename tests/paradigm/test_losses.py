"""Chunked cross-entropy against a loop over tokens: value, gradient, memory, and what a mesh does to it."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from paradigm.losses import chunked_cross_entropy


def example(B, L, D, V, seed=0, dtype=np.float32):
    r = np.random.default_rng(seed)
    hidden = r.normal(size=(B, L, D)).astype(dtype)
    kernel = (r.normal(size=(D, V)) / math.sqrt(D)).astype(np.float32) * 3
    targets = r.integers(0, V, (B, L)).astype(np.int32)
    weights = r.choice([0.0, 1.0, 0.3, 2.0], (B, L)).astype(np.float32)
    return hidden, kernel, targets, weights


def slow(hidden, kernel, targets, weights, z_loss):
    """float64, one token at a time: (total, nll, correct, d_hidden, d_kernel, d_weights)."""
    hidden, kernel, weights = (np.asarray(x, np.float64) for x in (hidden, kernel, weights))
    nll, correct, d_weights = (np.zeros(targets.shape) for _ in range(3))
    total, d_hidden, d_kernel = 0.0, np.zeros(hidden.shape), np.zeros(kernel.shape)
    for b, t in np.ndindex(targets.shape):
        logits = hidden[b, t] @ kernel
        log_z = np.log(np.sum(np.exp(logits)))
        p = np.exp(logits - log_z)
        nll[b, t] = log_z - logits[targets[b, t]]
        correct[b, t] = np.argmax(logits) == targets[b, t]
        d_weights[b, t] = nll[b, t] + z_loss * log_z**2
        total += weights[b, t] * d_weights[b, t]
        d = p.copy()
        d[targets[b, t]] -= 1
        d = weights[b, t] * (d + z_loss * 2 * log_z * p)
        d_hidden[b, t] = kernel @ d
        d_kernel += np.outer(hidden[b, t], d)
    return total, nll, correct, d_hidden, d_kernel, d_weights


def close(ours, theirs, rtol=1e-5):
    theirs = np.asarray(theirs, np.float64)
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize(
    "B,L,D,V,chunk", [(2, 7, 5, 11, 3), (3, 4, 8, 17, 1), (1, 6, 4, 9, 6), (2, 5, 3, 8, 4), (2, 5, 3, 8, None)]
)
def test_equals_a_loop_over_tokens(B, L, D, V, chunk, z_loss):
    args = example(B, L, D, V)
    total, nll, correct, *slopes = slow(*args, z_loss)

    def f(hidden, kernel, weights):
        out = chunked_cross_entropy(hidden, kernel, args[2], weights, z_loss=z_loss, chunk=chunk)
        return out.total, out

    gradients, out = jax.grad(f, argnums=(0, 1, 2), has_aux=True)(args[0], args[1], args[3])
    values_only = chunked_cross_entropy(*args, z_loss=z_loss, chunk=chunk)
    for o in (out, values_only):
        close(o.total, total)
        close(o.nll, nll)
        np.testing.assert_array_equal(o.correct, correct)
    for ours, theirs in zip(gradients, slopes, strict=True):
        close(ours, theirs)


def test_large_logits_stay_finite():
    hidden, kernel, targets, weights = example(2, 4, 8, 16)
    out, (d_hidden, d_kernel) = jax.value_and_grad(
        lambda h, k: chunked_cross_entropy(h, k, targets, weights, chunk=2).total, (0, 1)
    )(hidden * 1e3, kernel * 1e3)
    assert np.isfinite(out) and np.isfinite(d_hidden).all() and np.isfinite(d_kernel).all()


def test_a_tie_is_not_a_hit():
    hidden, kernel, targets, weights = example(2, 4, 8, 16)
    assert not chunked_cross_entropy(hidden * 0, kernel, targets, weights).correct.any()


def test_nll_carries_no_gradient():
    hidden, kernel, targets, weights = example(2, 4, 8, 16)
    slope = jax.grad(lambda h: chunked_cross_entropy(h, kernel, targets, weights).nll.sum())(hidden)
    assert not np.any(slope)


def test_tied_embedding_inside_a_scan_over_microbatches():
    """The embedding's gradient is that of the look-up plus that of the output, summed over microbatches."""
    M, B, L, D, V = 3, 2, 5, 4, 13
    _, kernel, targets, weights = example(M * B, L, D, V)
    embedding, tokens = kernel.T, np.roll(targets, 1, axis=1)

    def dense(e):
        logits = e[tokens] @ e.T
        nll = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * nll) * 0.25

    def microbatch(total, xs):
        tokens, targets, weights = xs
        f = lambda e: chunked_cross_entropy(e[tokens], e.T, targets, weights, chunk=2).total * 0.25
        return jax.tree.map(jnp.add, total, jax.value_and_grad(f)(embedding)), None

    cut = [x.reshape(M, B, L) for x in (tokens, targets, weights)]
    (value, slope), _ = jax.jit(lambda: jax.lax.scan(microbatch, (0.0, jnp.zeros_like(embedding)), tuple(cut)))()
    close(value, dense(embedding))
    close(slope, jax.grad(dense)(embedding))


def test_bfloat16_products_float32_sums():
    """bfloat16 hidden and float32 kernel: gradients in the dtypes of the inputs, near the float32 ones."""
    hidden, kernel, targets, weights = example(2, 64, 32, 50)
    hidden = np.asarray(jnp.asarray(hidden, jnp.bfloat16).astype(jnp.float32))
    f = lambda h, k: chunked_cross_entropy(h, k, targets, weights, z_loss=1e-3, chunk=8)
    low, (d_hidden, d_kernel) = jax.value_and_grad(lambda h, k: f(h, k).total, (0, 1))(
        jnp.asarray(hidden, jnp.bfloat16), kernel
    )
    assert d_hidden.dtype == jnp.bfloat16 and d_kernel.dtype == jnp.float32 and low.dtype == jnp.float32
    exact = slow(hidden, np.asarray(jnp.asarray(kernel, jnp.bfloat16).astype(jnp.float32)), targets, weights, 1e-3)
    close(low, exact[0], 1e-5)
    close(d_hidden, exact[3], 1e-2)
    close(d_kernel, exact[4], 1e-2)
    # Summing 16 chunks in bfloat16 would round the kernel's gradient to 8 bits.
    assert np.any(np.asarray(d_kernel) != np.asarray(d_kernel.astype(jnp.bfloat16).astype(jnp.float32)))


def shaped(B, L, D, V, dtype=jnp.float32):
    s = jax.ShapeDtypeStruct
    return s((B, L, D), dtype), s((D, V), jnp.float32), s((B, L), jnp.int32), s((B, L), jnp.float32)


def temporary_bytes(f, shapes):
    return jax.jit(f).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def loss_and_gradient(h, k, t, w):
    f = lambda h, k: (lambda out: (out.total, (out.nll, out.correct)))(chunked_cross_entropy(h, k, t, w, z_loss=1e-4))
    return jax.value_and_grad(f, (0, 1), has_aux=True)(h, k)


def test_logits_of_the_batch_are_never_held():
    """A vocabulary of 256k over 2048 positions: temporaries well under one [B, L, V], with and without gradient."""
    B, L, D, V = 2, 2048, 64, 256 * 1024
    logits = B * L * V * 4
    assert temporary_bytes(loss_and_gradient, shaped(B, L, D, V)) < logits / 5
    assert temporary_bytes(lambda *a: chunked_cross_entropy(*a), shaped(B, L, D, V)) < logits / 5


def test_evaluation_computes_no_gradient():
    """Only one product of [tokens, D] with [D, V] is in the program when nobody differentiates it."""
    args = shaped(2, 8, 16, 32)
    count = lambda f: str(jax.make_jaxpr(f)(*args)).count("dot_general[")
    assert count(lambda *a: chunked_cross_entropy(*a)) == 1
    assert count(loss_and_gradient) == 3  # logits, d_hidden, d_kernel: no logits twice


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]


def sharded(shape):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    batch = NamedSharding(mesh, P(("data", "fsdp")))
    return mesh, (batch, NamedSharding(mesh, P("fsdp", "tensor")), batch, batch)


@pytest.mark.parametrize("shape", MESHES)
def test_sharded_equals_one_device(shape):
    args = example(8, 6, 16, 32)
    (_, (nll, correct)), (d_hidden, d_kernel) = loss_and_gradient(*args)
    mesh, shardings = sharded(shape)
    with jax.set_mesh(mesh):
        (_, (nll_s, correct_s)), (d_hidden_s, d_kernel_s) = jax.jit(loss_and_gradient, in_shardings=shardings)(
            *jax.device_put(args, shardings)
        )
    for ours, theirs in [(nll_s, nll), (correct_s, correct), (d_hidden_s, d_hidden), (d_kernel_s, d_kernel)]:
        close(ours, theirs)


def test_between_devices_the_kernels_gradient_has_the_dtype_of_the_products():
    """Each device's sum is rounded to bfloat16 before they are added: half the bytes on the wire."""
    hidden, *others = example(8, 6, 16, 32)
    args = jnp.asarray(hidden, jnp.bfloat16), *others
    mesh, shardings = sharded((2, 4, 1))
    alone = loss_and_gradient(*args)[1][1]
    with jax.set_mesh(mesh):
        d_kernel = jax.jit(loss_and_gradient)(*jax.device_put(args, shardings))[1][1]
    rounded = lambda x: np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))
    close(d_kernel, alone, 1e-2)
    assert d_kernel.dtype == jnp.float32 and np.array_equal(d_kernel, rounded(d_kernel))
    assert not np.array_equal(alone, rounded(alone))


def test_a_batch_that_the_mesh_does_not_divide():
    args = example(3, 6, 16, 32)
    expected = loss_and_gradient(*args)[0][0]
    with jax.set_mesh(sharded((2, 2, 2))[0]):
        close(jax.jit(loss_and_gradient)(*args)[0][0], expected)


COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def collectives(text):
    """{operation: [(elements, inside a loop)]} of a compiled program."""
    found, inside = {}, False
    for line in text.splitlines():
        if re.match(r"^(ENTRY )?%?[\w.-]+ .*\{$", line):
            inside = not line.startswith("ENTRY")
        if m := re.search(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", line):
            sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", m[1])]
            found.setdefault(m[2], []).append((sum(sizes), inside))
    return found


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 2, 2), (1, 4, 2)])
def test_a_mesh_moves_no_hidden_and_no_logits(shape):
    """Inside the loop only per-token statistics and d_hidden's sum over `tensor` travel; the kernel's gradient is
    reduced once, after it; nothing as large as the batch's hidden states or a chunk's logits is gathered."""
    B, L, D, V, chunk = 16, 64, 32, 512, 16
    mesh, shardings = sharded(shape)
    data, fsdp, tensor = shape

    def f(h, k, t, w):
        g = lambda h, k: chunked_cross_entropy(h, k, t, w, chunk=chunk).total
        return jax.value_and_grad(g, (0, 1))(h, k)

    with jax.set_mesh(mesh):
        out = (NamedSharding(mesh, P()), shardings[:2])
        text = jax.jit(f, in_shardings=shardings, out_shardings=out).lower(*shaped(B, L, D, V, jnp.bfloat16))
        text = text.compile().as_text()
    rows = B // (data * fsdp)
    moved = collectives(text)
    assert "while" in text
    for name, entries in moved.items():
        for size, inside in entries:
            if inside:
                assert size <= (rows * chunk * D if tensor > 1 else 0), (name, size)
    assert sum(size for size, _ in moved["all-gather"]) <= D * V // tensor  # the kernel, gathered over fsdp, once
    gradient = [size for name, es in moved.items() for size, _ in es if name in ("all-reduce", "reduce-scatter")]
    assert sum(s >= D * V // tensor // fsdp for s in gradient) <= 2, gradient


def test_chunk_must_be_positive():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        chunked_cross_entropy(*example(1, 2, 3, 4), chunk=0)
