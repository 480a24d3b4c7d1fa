"""Losses as functions of arrays: no modules, no parameters, no batch dictionaries.

`chunked_cross_entropy` is softmax cross-entropy against an output matrix, computed without ever holding the logits of
the whole batch, in the forward pass or in the backward one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paradigm.partition import BATCH, CONTEXT, constrain, context_ways

MAX_LOGITS = 2**26  # float32 logits that one device holds at a time: 256 MiB; or half as many as the kernel has numbers
CHUNK_TOKENS = {"cpu": 512}  # tokens a device takes at a time. On a CPU small chunks stay near the caches ...
ACCELERATOR_CHUNK_TOKENS = 2048  # ... an accelerator needs long products to hide the kernel gradient's traffic


class CrossEntropy(NamedTuple):
    """What `chunked_cross_entropy` returns.

    total: float32 scalar, sum of weight * (nll + z_loss * logsumexp^2) over all tokens, in nats; the only output that
        carries a gradient.
    nll: float32 [B, L], -log p(target) in nats, without weight or z-loss.
    correct: float32 [B, L], 1 where the target's logit is strictly the largest (a tie is not a hit).
    """

    total: jax.Array
    nll: jax.Array
    correct: jax.Array


def chunked_cross_entropy(hidden_BxLxD, kernel_DxV, targets_BxL, weights_BxL, *, z_loss=0.0, chunk=None):
    """Softmax cross-entropy of hidden @ kernel, a slice of every sequence at a time.

    Where a gradient is asked for, it is computed beside the value, while a chunk's logits are at hand: nothing is
    recomputed and only [B, L, D] and [D, V] are kept. Without one (evaluation) only values are computed. Products take
    the dtype of `hidden` (the kernel is cast to it), every sum is float32, and the kernel's gradient is summed in
    float32 even when the products are bfloat16. Under a mesh (`jax.set_mesh`) each shard of tokens sums its own kernel
    gradient, and the shards are reduced once, after the last chunk, in the dtype of the products, as the gradient of
    every other kernel is; the vocabulary may be cut over `tensor`.

    The z-loss term keeps the log normalizer near zero: z_loss * logsumexp(logits)^2 a token (Mesh-TensorFlow's
    softmax_cross_entropy_with_logits; PaLM, arXiv:2204.02311, section 5; T5 v1.1 trained with 1e-4).

    Args:
        hidden_BxLxD: [B, L, D], floating.
        kernel_DxV: [D, V], floating; a tied embedding goes in transposed.
        targets_BxL: int [B, L], ids in [0, V).
        weights_BxL: [B, L]; 0 leaves a token out.
        z_loss: the coefficient, a Python float.
        chunk: positions of each sequence at a time, a Python int; any value gives the same result. Default: as many as
            make 512 tokens a device on CPU and 2048 elsewhere, but at most 2^26 logits a device, or half as many as
            the kernel has numbers.

    Returns:
        CrossEntropy(total, nll, correct).
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunked_cross_entropy: chunk must be at least 1, got {chunk}")
    B, L, D = hidden_BxLxD.shape
    shards = _batch_shards(B), context_ways(L)
    if chunk is None:
        chunk = _chunk_length(B // shards[0], L // shards[1], kernel_DxV.shape)
    weights_BxL = weights_BxL.astype(jnp.float32)
    total, nll, correct = _cross_entropy(
        (float(z_loss), min(int(chunk), L), shards), hidden_BxLxD, kernel_DxV, targets_BxL, weights_BxL
    )
    return CrossEntropy(total, jax.lax.stop_gradient(nll), jax.lax.stop_gradient(correct))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(static, hidden, kernel, targets, weights):
    """(total, nll, correct), values only."""
    return _over_chunks(static, hidden, kernel, targets, weights, gradient=False)[:3]


def _forward(static, hidden, kernel, targets, weights):
    total, nll, correct, loss, d_hidden, d_kernel = _over_chunks(static, hidden, kernel, targets, weights, True)
    return (total, nll, correct), (loss, d_hidden, d_kernel)


def _backward(static, residuals, cotangents):
    loss, d_hidden, d_kernel = residuals
    d_total = cotangents[0]  # nll and correct leave through stop_gradient
    d_hidden, d_kernel = ((d_total * d).astype(d.dtype) for d in (d_hidden, d_kernel))
    return d_hidden, d_kernel, None, d_total * loss


_cross_entropy.defvjp(_forward, _backward)


def _over_chunks(static, hidden, kernel, targets, weights, gradient):
    """total, nll, correct; with `gradient` also loss [B, L], d total/d hidden [B, L, D] and d total/d kernel [D, V]."""
    z_loss, chunk, (rows, parts) = static
    (B, L, D), V = hidden.shape, kernel.shape[1]
    B, L = B // rows, L // parts  # of one of the N = rows * parts shards of tokens
    steps = math.ceil(L / chunk)
    chunk = math.ceil(L / steps)
    shards = (*BATCH, CONTEXT)
    # Gathered over fsdp once, before the loop.
    kernel_DxV = constrain(kernel.astype(hidden.dtype), None, "tensor", partial=True)

    def split(x):  # [rows B, parts L, ...] -> [steps, N, B, chunk, ...]; the padding has weight 0
        x = jnp.moveaxis(x.reshape((rows, B, parts, L) + x.shape[2:]), 2, 1)
        x = x.reshape((rows * parts, B, L) + x.shape[4:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, steps * chunk - L)] + [(0, 0)] * (x.ndim - 3))
        x = x.reshape((rows * parts, B, steps, chunk) + x.shape[3:])
        return constrain(jnp.moveaxis(x, 2, 0), None, shards, *(None,) * (x.ndim - 2), partial=True)

    def join(x):  # the inverse
        x = jnp.moveaxis(x, 0, 2)
        x = x.reshape((rows, parts, B, steps * chunk) + x.shape[4:])[:, :, :, :L]
        x = jnp.moveaxis(x, 1, 2).reshape((rows * B, parts * L) + x.shape[4:])
        return constrain(x, BATCH, CONTEXT, *(None,) * (x.ndim - 2), partial=True)

    def body(d_kernel_NxDxV, xs):
        values, slopes = _one_chunk(z_loss, kernel_DxV, *xs, gradient=gradient)
        if gradient:
            d_hidden, d_kernel = slopes
            d_kernel_NxDxV += d_kernel
            values = *values, d_hidden
        return d_kernel_NxDxV, values

    start = None
    if gradient:
        start = constrain(jnp.zeros((rows * parts, D, V), jnp.float32), shards, None, "tensor", partial=True)
    d_kernel_NxDxV, outputs = jax.lax.scan(body, start, tuple(split(x) for x in (hidden, targets, weights)))
    nll, correct, loss, *d_hidden = (join(x) for x in outputs)
    total = jnp.sum(loss * weights)
    if not gradient:
        return total, nll, correct
    if rows * parts > 1:  # half the bytes between devices
        d_kernel_NxDxV = d_kernel_NxDxV.astype(hidden.dtype)
    return total, nll, correct, loss, d_hidden[0], jnp.sum(d_kernel_NxDxV, axis=0).astype(kernel.dtype)


def _one_chunk(z_loss, kernel_DxV, hidden_NxBxCxD, targets_NxBxC, weights_NxBxC, gradient):
    """((nll, correct, loss), (d_hidden, d_kernel)) of one slice; C positions, N shards of tokens."""
    logits = jnp.einsum("nbcd,dv->nbcv", hidden_NxBxCxD, kernel_DxV, preferred_element_type=jnp.float32)
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3) == targets_NxBxC[..., None]
    target = jnp.take_along_axis(logits, targets_NxBxC[..., None], axis=-1)[..., 0]
    rival = jnp.max(jnp.where(is_target, -jnp.inf, logits), axis=-1)  # the best of the others
    top = jnp.maximum(target, rival)
    # One exponential serves the normalizer and the gradient.
    unnormalized = jnp.exp(logits - top[..., None])
    normalizer = jnp.sum(unnormalized, axis=-1)
    log_z = top + jnp.log(normalizer)
    nll = log_z - target
    values = nll, (target > rival).astype(jnp.float32), nll + z_loss * log_z**2
    if not gradient:
        return values, None
    # d/d logits of weight * (log_z - target + z_loss log_z^2)
    slope = weights_NxBxC * (1 + 2 * z_loss * log_z) / normalizer
    d_logits = unnormalized * slope[..., None] - jnp.where(is_target, weights_NxBxC[..., None], 0.0)
    d_logits = d_logits.astype(hidden_NxBxCxD.dtype)
    d_hidden = jnp.einsum("nbcv,dv->nbcd", d_logits, kernel_DxV, preferred_element_type=jnp.float32)
    d_kernel = jnp.einsum("nbcd,nbcv->ndv", hidden_NxBxCxD, d_logits, preferred_element_type=jnp.float32)
    return values, (d_hidden.astype(hidden_NxBxCxD.dtype), d_kernel)


def _mesh():
    """The mesh in context (`jax.set_mesh`), or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def _batch_shards(batch):
    """Into how many parts the mesh cuts a batch of this size; 1 where it does not divide."""
    mesh = _mesh()
    n = math.prod(mesh.shape.get(a, 1) for a in BATCH) if mesh else 1
    return n if batch % n == 0 else 1


def _chunk_length(rows, length, kernel):
    """Positions at a time for `rows` sequences a device and a kernel of this shape; see `chunked_cross_entropy`. Each
    chunk reads and writes the kernel's whole gradient, which is there in any case: logits of half its size spare a
    large vocabulary most of that."""
    width, vocabulary = kernel
    mesh = _mesh()
    platform = mesh.abstract_device.platform if mesh and mesh.abstract_device else jax.default_backend()
    most = max(MAX_LOGITS // math.ceil(vocabulary / (mesh.shape.get("tensor", 1) if mesh else 1)), width // 2)
    tokens = min(CHUNK_TOKENS.get(platform, ACCELERATOR_CHUNK_TOKENS), most)
    return max(1, min(length, tokens // rows))
