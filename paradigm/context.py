"""The plain path of attention over rows that the mesh's `context` axis cuts along their length.

Each device keeps its part of the queries, all of [B, H, L / C, K], and gathers keys and values over `context`, layer by
layer; in the backward pass their gradients are summed and scattered back. (Llama 3, arXiv:2407.21783, section 3.3.2,
has it so: keys and values are few beside queries where heads share them, and any mask is served.) splash.py does the
same with a kernel.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paradigm import attention
from paradigm.attention import DistanceBias
from paradigm.errors import UserError
from paradigm.partition import BATCH, CONTEXT, constrain, context_ways


def ways(q_BxHxLxK, k_BxGxSxK, mask):
    """Into how many parts the queries are cut; 1 where tokens are decoded with a cache."""
    return context_ways(q_BxHxLxK.shape[2], k_BxGxSxK.shape[2]) if mask.offset is None else 1


def attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, bias=None, scale=1.0, dropped=None, block=1024):
    """attention.attend, each device for its own queries: [B, H, L, K], cut over `context` like q.

    Raises UserError where weights are dropped in blocks of queries that a device's part cuts: other masks would be
    drawn than on one device.
    """
    length, parts = q_BxHxLxK.shape[2], ways(q_BxHxLxK, k_BxGxSxK, mask)
    if length <= block:  # the products are the compiler's to cut: dropout and biases are as on one device
        k, v = (constrain(x, BATCH, "tensor", None, None) for x in (k_BxGxSxK, v_BxGxSxK))
        y = attention.attend(q_BxHxLxK, k, v, mask, bias, scale, dropped or (lambda p, start: p), block)
        return constrain(y, BATCH, "tensor", CONTEXT, None)
    share = length // parts
    if dropped is not None and share % block:
        raise UserError(
            f"rows of {length} tokens in {parts} parts of {share}: attention weights are dropped by blocks of {block}, "
            f"which such parts cut: set attention_dropout = 0, or make the length a multiple of {parts * block}"
        )

    def own(q, k, v, mask, bias):
        first = jax.lax.axis_index(CONTEXT) * share
        gather = lambda x, axis: jax.lax.all_gather(x, CONTEXT, axis=axis, tiled=True)
        mask = mask.replace(keys=None if mask.keys is None else gather(mask.keys, 1), offset=first)
        if isinstance(bias, DistanceBias):
            bias = bias.cut(first, share)
        weights = lambda p, start: p if dropped is None else dropped(p, first + (0 if start is None else start))
        return attention.attend(q, gather(k, 2), gather(v, 2), mask, bias, scale, weights, block)

    parts_of = lambda axis: P(*(None,) * axis, CONTEXT)
    masks = mask.replace(
        **{name: None if getattr(mask, name) is None else parts_of(1) for name in ("queries", "keys")},
        **{name: None if getattr(mask, name) is None else P() for name in ("prefix", "everywhere")},
    )
    biases = P() if bias is None or isinstance(bias, DistanceBias) else parts_of(2)
    specs = (*(parts_of(2),) * 3, masks, biases)
    cut = jax.shard_map(own, in_specs=specs, out_specs=parts_of(2), axis_names={CONTEXT}, check_vma=False)
    return cut(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, jax.tree.map(jnp.asarray, mask), bias)
