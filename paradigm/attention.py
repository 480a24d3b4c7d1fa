"""Who sees whom and from where: AttentionMask, positions, and the plain path of attention.

The letter table of shapes is in transformer.py.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from paradigm.cpu_gradients import add_bias
from paradigm.layers import lookup

MASKED = -1e9  # added to the logit of a key that may not be seen; finite, so that a row with no key has no NaN


@struct.dataclass
class AttentionMask:
    """Who may see whom, without an array of pairs: kernels take it as it is, the plain path expands it in blocks.

    causal: static; key j is visible to query i when j <= i.
    prefix: int32 [B] or None; under `causal`, the first `prefix` keys are visible to all queries (prefix LM, Raffel et
        al. 2020, section 3.2.1).
    queries, keys: int32 [B, L] and [B, S] or None; segments. A query sees the keys of its own segment. With `keys`
        alone, keys of segment 0 are padding and the rest is visible to every query.
    offset: int32 [B] or [], the first query's position among the keys, as in decoding with a cache; None is 0.
    alone: bool [B or 1, S] or None; keys that no query sees but the one at their own place (MuToR's registers).
    shared: static; the first so many positions, soft tokens, are seen by every query, and see all but padding that
        `causal` lets them see.
    window: static; None, or of what the rest lets through only keys fewer than `window` positions away are seen, the
        query's own place among them: Mistral's sliding_window under `causal`, local attention to both sides otherwise.
    everywhere: bool [] or None; where it is true there is no window, in a loop over layers that differ in it.
    """

    causal: bool = struct.field(pytree_node=False, default=False)
    prefix: Any = None
    queries: Any = None
    keys: Any = None
    offset: Any = None
    window: int | None = struct.field(pytree_node=False, default=None)
    alone: Any = None
    shared: int = struct.field(pytree_node=False, default=0)
    everywhere: Any = None

    def positions(self, length):
        """int32 [B or 1, L]: the queries' positions among the keys."""
        return jnp.reshape(0 if self.offset is None else self.offset, (-1, 1)) + jnp.arange(length)

    def after(self, count, queries=True):
        """The same behind so many shared positions, which stand before the keys, and before the queries too or not."""
        front = lambda x: None if x is None else jnp.pad(x, ((0, 0), (count, 0)), constant_values=1)
        return self.replace(
            prefix=None if self.prefix is None else self.prefix + count,
            queries=front(self.queries) if queries else self.queries,
            keys=front(self.keys),
            alone=None if self.alone is None else jnp.pad(self.alone, ((0, 0), (count, 0))),
            offset=self.offset if queries else count + (0 if self.offset is None else self.offset),
            shared=self.shared + count,
        )

    def cut(self, start, length):
        """The same for `length` queries from `start` (traced) on."""
        queries = None if self.queries is None else jax.lax.dynamic_slice_in_dim(self.queries, start, length, 1)
        return self.replace(queries=queries, offset=start if self.offset is None else self.offset + start)

    def expand(self, length, source):
        """bool, broadcastable to [B, 1, L, S]; None when all is visible."""
        seen = None
        if self.causal:
            columns = jnp.arange(source)
            seen = columns <= self.positions(length)[..., None]  # [B or 1, L, S]
            if self.prefix is not None:
                seen |= columns < self.prefix[:, None, None]
        if self.keys is not None:
            keys = self.keys[:, None, :]  # [B, 1, S]
            same = keys > 0 if self.queries is None else self.queries[:, :, None] == keys
            if self.shared:
                same |= self._shared(length, source) & (keys > 0)
            seen = same if seen is None else seen & same
        if self.window is not None:
            near = jnp.abs(jnp.arange(source) - self.positions(length)[..., None]) < self.window
            if self.everywhere is not None:
                near |= self.everywhere
            if self.shared:
                near |= self._shared(length, source)
            seen = near if seen is None else seen & near
        if self.alone is not None:
            own = ~self.alone[:, None, :] | (jnp.arange(source) == self.positions(length)[..., None])
            seen = own if seen is None else seen & own
        return None if seen is None else seen[:, None]

    def _shared(self, length, source):
        """bool [B or 1, L, S]: whether the query or the key is one of the shared positions."""
        return (self.positions(length)[..., None] < self.shared) | (jnp.arange(source) < self.shared)


# ---- Positions -------------------------------------------------------------------------------------------------------


def relative_buckets(distance, bidirectional, buckets=32, farthest=128):
    """T5's buckets of key - query position (Raffel et al. 2020, section 2.1): exact near, logarithmic to `farthest`.

    Args:
        distance: int array, any shape.
        bidirectional: whether keys after the query have half of the buckets to themselves; else they share bucket 0.

    Returns:
        int32 in [0, buckets), the shape of `distance`.
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
    far = exact + (jnp.log(ratio) / math.log(farthest / exact) * (buckets - exact)).astype(jnp.int32)
    return first + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1)).astype(jnp.int32)


@struct.dataclass
class DistanceBias:
    """A bias on logits that is a function of key - query position alone, without its L S numbers.

    values: [B or 1, H, L + S - 1], of the distances 1 - L (seen from the first query) to S - 1. rows: static, L.
    front: static; so many keys stand before the S, and have none.
    """

    values: Any
    rows: int = struct.field(pytree_node=False)
    front: int = struct.field(pytree_node=False, default=0)

    def expand(self):
        """[B or 1, H, L, front + S]."""
        return jnp.pad(diagonals(self.values, self.rows), [(0, 0)] * 3 + [(self.front, 0)])

    def cut(self, start, length):
        """The same for `length` queries from `start` (traced) on."""
        columns = self.values.shape[-1] - self.rows
        first = self.rows - start - length
        return self.replace(values=jax.lax.dynamic_slice_in_dim(self.values, first, columns + length, -1), rows=length)

    def pad(self, queries=0, keys=0):
        """For so many more queries behind, and so many more keys in front."""
        values = jnp.pad(self.values, [(0, 0), (0, 0), (queries, 0)])
        return self.replace(values=values, rows=self.rows + queries, front=self.front + keys)


def pad_bias(bias, queries=0, keys=0):
    """A bias [B or 1, H, L, S], a DistanceBias or None, 0 for more queries behind and more keys in front."""
    if bias is None or isinstance(bias, DistanceBias):
        return bias and bias.pad(queries, keys)
    return jnp.pad(bias, [(0, 0), (0, 0), (0, queries), (keys, 0)])


class RelativeBias(nn.Module):
    """T5's bias on attention logits, one table for all layers: positions [B or 1, L] -> DistanceBias of L and S.

    Each position is one more than the last.
    """

    heads: int
    buckets: int = 32
    farthest: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, positions, source, bidirectional):
        # Mesh-TensorFlow leaves this table to TensorFlow's default, Glorot uniform; t5x states it.
        table = self.param("embedding", nn.initializers.glorot_uniform(), (self.buckets, self.heads), jnp.float32)
        length = positions.shape[1]
        # Pairs at one distance share one number: a lookup for each distance, not for each pair, whose gradient would be
        # a scatter of L S numbers into a few buckets (seconds of a step on a GPU).
        distance = jnp.arange(1 - length, source) - positions[:, :1]  # [B or 1, L + S - 1]
        bucket = relative_buckets(distance, bidirectional, self.buckets, self.farthest)
        return DistanceBias(jnp.moveaxis(lookup(table, bucket, self.dtype), -1, 1), length)


def diagonals(x, rows):
    """[..., L + S - 1] -> [..., L, S], where out[..., i, j] = x[..., L - 1 - i + j] and L is `rows`.

    x repeated in rows one longer than itself, and read in rows of its own length: each begins one place earlier. No
    gather is needed, nor its scatter back.
    """
    n = x.shape[-1]
    wide = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    flat = jnp.broadcast_to(wide[..., None, :], (*x.shape[:-1], rows, n + 1)).reshape(*x.shape[:-1], rows * (n + 1))
    flat = flat[..., rows - 1 : rows - 1 + rows * n]
    return flat.reshape(*x.shape[:-1], rows, n)[..., : n - rows + 1]


def alibi(heads, positions, source):
    """Linear biases: positions int [B or 1, L] -> float32 [B or 1, H, L, S], -slope * |query - key|.

    Slopes fall geometrically from 2^(-8/H) to 2^-8 where H is a power of two; else they are those of the power below
    it, then every other one of twice that (Press et al. 2022, "Train Short, Test Long", section 3; its get_slopes).
    Of both sides of the query it is MosaicBERT's (Portes et al. 2023, section 3.1.1).
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    distance = jnp.abs(jnp.arange(source) - positions[..., None])  # [B or 1, L, S]
    return -jnp.array(slopes, jnp.float32)[:, None, None] * distance[:, None]


# ---- Attention -------------------------------------------------------------------------------------------------------


_sum = functools.partial(checkpoint_name, name="attention_sums")
_KEEP_SUMS = jax.checkpoint_policies.save_only_these_names("attention_sums")


def attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, bias=None, scale=1.0, weights=lambda p, start: p, block=1024):
    """The plain attention path: softmax(scale * q k + bias, where visible) v, in blocks of queries when L is long.

    Args:
        k, v: of G heads, a divisor of H: each serves H / G neighbouring heads of q, and is not repeated for them.
        mask: AttentionMask of the S keys to the L queries.
        bias: [B or 1, H, L, S] added to the logits, or DistanceBias, or None.
        weights: dropout, a function of the attention weights [B, H, L, S] and of the first query's place where they are
            a block's, else None.
        block: queries at a time when L is larger, so that [B, H, L, S] never stands as a whole, forward or backward.

    Returns:
        [B, H, L, K].
    """
    batch, heads, length, width = q_BxHxLxK.shape
    groups, source = k_BxGxSxK.shape[1:3]

    # [B, H, L, S] is formed again in the backward pass, not stored
    @functools.partial(jax.checkpoint, policy=_KEEP_SUMS)
    def part(q, mask, bias, start=None):
        split = lambda x: x.reshape(batch, heads, -1, x.shape[-1])  # [B, G, R L, x] -> [B, H, L, x]
        joined = lambda x: x.reshape(batch, groups, -1, x.shape[-1])  # the R = H / G heads that share keys, as one
        logits = jnp.einsum("bhlk,bhsk->bhls", joined(q * jnp.asarray(scale, q.dtype)), k_BxGxSxK)
        logits = split(logits).astype(jnp.float32)
        if bias is not None:
            bias = bias.expand() if isinstance(bias, DistanceBias) else bias
            logits = add_bias(logits, bias.astype(jnp.float32))
        seen = mask.expand(q.shape[2], source)
        if seen is not None:
            logits = jnp.where(seen, logits, MASKED)
        top = _sum(jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        e = jnp.exp(logits - top)
        total = _sum(jnp.sum(e, axis=-1, keepdims=True))
        y = _sum(split(jnp.einsum("bhls,bhsk->bhlk", joined(weights(e.astype(q.dtype), start)), v_BxGxSxK)))
        return (y / total).astype(q.dtype)  # divided last: a pass over [B, H, L, K] instead of [B, H, L, S]

    if length <= block:
        return part(q_BxHxLxK, mask, bias)

    more = -length % block  # queries of nobody, to fill up the last block
    fill = lambda x, axis: jnp.pad(x, [(0, more if a == axis else 0) for a in range(x.ndim)])
    q_BxHxLxK, bias = fill(q_BxHxLxK, 2), pad_bias(bias, queries=more)
    if mask.queries is not None:
        mask = mask.replace(queries=fill(mask.queries, 1))

    def one(start):
        # Were it no function of q, jax would compute the masks of all blocks, [L / block, B, H, block, S], before the
        # scan over layers, for all of them.
        start += 0 * jnp.isnan(q_BxHxLxK[0, 0, 0, 0]).astype(start.dtype)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block, 2)
        rows = bias.cut(start, block) if isinstance(bias, DistanceBias) else None if bias is None else cut(bias)
        return part(cut(q_BxHxLxK), mask.cut(start, block), rows, start)

    parts = jax.lax.map(one, jnp.arange(0, length, block))  # [n, B, H, block, K]
    return jnp.moveaxis(parts, 0, 2).reshape(q_BxHxLxK.shape)[:, :, :length]
