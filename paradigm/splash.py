"""Pallas' splash attention for a TPU: rows of any length, several documents in one, heads and rows over a mesh.

The kernel goes through [L, S] in blocks that never leave the chip, skips the blocks that a causal or local mask hides
whole, and keeps its output and the logarithm of its sums for the backward pass (under the name that remat='dots'
keeps). It is jax.experimental.pallas.ops.tpu.splash_attention; here is what it is handed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paradigm.partition import AXES, BATCH

LANES = 128  # of a TPU's vector unit: lengths are padded to a multiple
BLOCK = 512  # queries and keys at a time, at most (MaxText's sa_block_q and its like)
PADDING = -1  # the segment of what fills a row up: no text has it


def unfit(q_BxHxLxK, k_BxGxSxK, mask):
    """Why the kernel cannot take these on the mesh in context; None where it can."""
    batch, heads, length, _ = q_BxHxLxK.shape
    groups, source = k_BxGxSxK.shape[1:3]
    ways = _ways()
    if mask.prefix is not None:
        return "a prefix is no static mask"
    if mask.alone is not None:
        return "keys that one query sees are no static mask"
    if mask.shared:
        return "soft tokens are no static mask"
    if mask.window is not None and not isinstance(mask.window, int):
        return "layers have windows of their own"
    if mask.offset is not None:
        return "it decodes with a cache"
    if min(length, source) < LANES:
        return f"rows are shorter than {LANES}"
    if (mask.causal or mask.window is not None) and length != source:
        return f"{length} queries are masked by their place among {source} keys"
    if ways and batch % (ways["data"] * ways["fsdp"]):
        return f"{batch} rows do not divide over data x fsdp"
    if ways and (heads % ways["tensor"] or groups % ways["tensor"]):
        return f"{groups} key heads do not divide over tensor"
    return None


def attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, scale, interpret=False):
    """softmax(scale * q k, where visible) v: [B, H, L, K]. interpret: on any device, slowly, for tests."""
    length, source = q_BxHxLxK.shape[2], k_BxGxSxK.shape[2]
    padded = lambda n: -(-n // LANES) * LANES
    fill = lambda x, n, axis, value=0: jnp.pad(
        x, [(0, padded(n) - n if a == axis else 0) for a in range(x.ndim)], constant_values=value
    )
    q = fill(q_BxHxLxK * jnp.asarray(scale, q_BxHxLxK.dtype), length, 2)
    k, v = fill(k_BxGxSxK, source, 2), fill(v_BxGxSxK, source, 2)
    segments = None
    if mask.keys is not None or padded(length) != length or padded(source) != source:
        queries, keys = mask.queries, mask.keys
        if queries is None or keys is None:  # keys of padding alone are hidden
            queries = jnp.ones((q.shape[0], length), jnp.int32)
            keys = jnp.ones((q.shape[0], source), jnp.int32) if keys is None else (keys > 0).astype(jnp.int32)
        segments = fill(queries, length, 1, PADDING), fill(keys, source, 1, PADDING)

    call = functools.partial(_call, causal=mask.causal, window=mask.window, interpret=interpret)
    if _ways():
        heads, rows = P(BATCH, "tensor", None, None), P(BATCH, None)
        specs = (heads, heads, heads, None if segments is None else (rows, rows))
        call = jax.shard_map(call, in_specs=specs, out_specs=heads, check_vma=False)
    return call(q, k, v, segments)[:, :, :length]


def _call(q, k, v, segments, *, causal, window, interpret):
    """The kernel on one device's rows and heads. Lengths are multiples of LANES."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = q.shape[2], k.shape[2]
    if window is not None:
        seen = masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
    else:
        seen = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    rows, columns = (next(b for b in range(BLOCK, 0, -LANES) if n % b == 0) for n in shape)
    sizes = kernel.BlockSizes(
        **{"block_q": rows, "block_q_dkv": rows, "block_q_dq": rows},
        **{"block_kv": columns, "block_kv_compute": columns, "block_kv_dq": columns},
        **{"block_kv_dkv": columns, "block_kv_dkv_compute": columns},
    )
    one = kernel.make_splash_mha(
        masks.MultiHeadMask([seen] * q.shape[1]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        residual_checkpoint_name="attention_sums",
        interpret=interpret,
    )
    # The name tells a reader of the compiled program (launch/aot/hlo.py) how much of [L, S] the kernel goes through.
    with jax.named_scope(f"splash_share_{_share(*shape, rows, columns, causal, window):.4f}"):
        if segments is None:
            return jax.vmap(lambda q, k, v: one(q, k, v))(q, k, v)
        return jax.vmap(lambda q, k, v, s, t: one(q, k, v, kernel.SegmentIds(s, t)))(q, k, v, *segments)


def _share(length, source, rows, columns, causal, window):
    """The part of the blocks of [L, S] of which anything may be seen."""
    seen = total = 0
    for first in range(0, length, rows):
        for left in range(0, source, columns):
            last, right = first + rows - 1, left + columns - 1
            hidden = causal and left > last
            hidden |= window is not None and (right <= first - window or left >= last + window)
            seen, total = seen + (not hidden), total + 1
    return seen / total


def _ways():
    """{axis: devices} of the mesh in context; None where there is none with all three axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(mesh.shape) if not mesh.empty and set(AXES) <= set(mesh.axis_names) else None
