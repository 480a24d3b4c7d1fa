"""Pallas' splash attention for a TPU: rows of any length, several documents in one, heads and rows over a mesh.

The kernel goes through [L, S] in blocks that never leave the chip, skips the blocks that a causal or local mask hides
whole, and keeps its output and the logarithm of its sums for the backward pass (under the name that remat='dots'
keeps). It is jax.experimental.pallas.ops.tpu.splash_attention; here is what it is handed.

Rows that the mesh's `context` axis cuts into C parts along their length: each device gathers all keys and values, and
has its own queries. Under a causal mask the last part would see C times as many keys as the first; so each device hands
the second half of its queries to another and has two halves of which one is as far from the start of the row as the
other from its end (parts i and 2C - 1 - i of 2C, as in MaxText's and Llama 3's context parallelism), and gives what it
has found back in the end. All else keeps the order of the text.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paradigm.partition import AXES, BATCH, CONTEXT, context_ways

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
    if mask.everywhere is not None:  # either mask is static to a kernel of its own
        near = mask.replace(everywhere=None)
        of = lambda mask: lambda q, k, v: attend(q, k, v, mask, scale, interpret)
        return jax.lax.cond(mask.everywhere, of(near.replace(window=None)), of(near), q_BxHxLxK, k_BxGxSxK, v_BxGxSxK)
    length, source = q_BxHxLxK.shape[2], k_BxGxSxK.shape[2]
    mesh, parts = _ways(), context_ways(length, source)
    padded = lambda n: -(-n // (LANES * parts)) * LANES * parts
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

    balanced = parts if mask.causal and mask.window is None and padded(length) % (2 * parts * LANES) == 0 else 1
    heads = q.shape[1] // (mesh["tensor"] if mesh else 1)
    order = _order(padded(length), balanced)
    masked = mask.causal or mask.window is not None  # else every part is the same to the kernel
    queries, shards = (order, parts) if masked else (order[: len(order) // parts], 1)
    one, share = _kernel(queries, k.shape[2], heads, mask.causal, mask.window, shards, interpret)
    # The name tells a reader of the compiled program (launch/aot/hlo.py) how much of [L, S] the kernel goes through.
    call = functools.partial(_call, parts=parts, balanced=balanced, name=f"splash_share_{share:.4f}")
    if mesh:
        cut = CONTEXT if parts > 1 else None
        rows, of_rows = P(BATCH, "tensor", cut, None), P(BATCH, cut)
        here = one.manual_sharding_spec(
            NamedSharding(jax.sharding.get_abstract_mesh(), P(None, cut if masked else None))
        )
        specs = (here, rows, rows, rows, None if segments is None else (of_rows, of_rows))
        call = jax.shard_map(call, in_specs=specs, out_specs=rows, check_vma=False)
    return call(one, q, k, v, segments)[:, :, :length]


def _order(length, parts):
    """int32 [L]: which queries stand where, so that each of so many equal parts sees as many keys; 1: as they are."""
    halves = np.arange(length, dtype=np.int32).reshape(2 * parts, -1)
    return np.concatenate([halves[[i, 2 * parts - 1 - i]] for i in range(parts)]).reshape(-1)


def _kernel(order, source, heads, causal, window, parts, interpret):
    """(the kernel of queries in this order, int [L], and S keys; the share of blocks that the part with most sees)"""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = len(order), source
    if window is not None:
        seen = masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
    else:
        seen = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    if hasattr(seen, "q_sequence"):
        seen.q_sequence = order
    run = len(order) // parts // (2 if (np.diff(order) != 1).any() else 1)  # queries that are neighbours everywhere
    rows, columns = (next(b for b in range(BLOCK, 0, -LANES) if n % b == 0) for n in (run, source))
    sizes = kernel.BlockSizes(
        **{"block_q": rows, "block_q_dkv": rows, "block_q_dq": rows},
        **{"block_kv": columns, "block_kv_compute": columns, "block_kv_dq": columns},
        **{"block_kv_dkv": columns, "block_kv_dkv_compute": columns},
    )
    one = kernel.make_splash_mha(
        masks.MultiHeadMask([seen] * heads),
        head_shards=1,
        q_seq_shards=parts,
        block_sizes=sizes,
        residual_checkpoint_name="attention_sums",
        interpret=interpret,
    )
    firsts = order[::rows].reshape(parts, -1)
    return one, max(_share(first, source, rows, columns, causal, window) for first in firsts)


def _call(one, q, k, v, segments, *, parts, balanced, name):
    """The kernel on one device's rows, heads and queries. Lengths are multiples of LANES."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    queries, keys = (None, None) if segments is None else segments
    if parts > 1:
        gather = lambda x, axis: x if x is None else jax.lax.all_gather(x, CONTEXT, axis=axis, tiled=True)
        k, v, keys = gather(k, 2), gather(v, 2), gather(keys, 1)
    if balanced > 1:
        q = _exchange(q, 2, parts)
        queries = None if queries is None else _exchange(queries, 1, parts)
    with jax.named_scope(name):
        if segments is None:
            y = jax.vmap(lambda q, k, v: one(q, k, v))(q, k, v)
        else:
            y = jax.vmap(lambda q, k, v, s, t: one(q, k, v, kernel.SegmentIds(s, t)))(q, k, v, queries, keys)
    return _exchange(y, 2, parts, back=True) if balanced > 1 else y


def _exchange(x, axis, parts, back=False):
    """Of a row's 2C halves, device i has 2i and 2i + 1, and is given i and 2C - 1 - i, in this order; or back."""
    odd = jax.lax.axis_index(CONTEXT) % 2 == 1
    swapped = lambda a, b: (jnp.where(odd, b, a), jnp.where(odd, a, b))
    halves = jnp.split(x, 2, axis)
    if back:
        halves = swapped(*halves)
    moved = []
    for n, half in enumerate(halves):  # the even ones of all devices, then the odd ones: each is a permutation
        pairs = [(i, min(2 * i + n, 2 * parts - 1 - (2 * i + n))) for i in range(parts)]
        moved.append(jax.lax.ppermute(half, CONTEXT, [pair[::-1] for pair in pairs] if back else pairs))
    return jnp.concatenate(moved if back else swapped(*moved), axis)


def _share(firsts, source, rows, columns, causal, window):
    """The part of the blocks of [L, S] of which anything may be seen; the blocks' first queries are given."""
    seen = total = 0
    for first in firsts:
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
