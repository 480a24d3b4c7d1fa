"""Losses over all pairs of a batch, without the matrix of pairs: NT-Xent, InfoNCE and the sigmoid loss.

    nll_2xB, correct_2xB = nt_xent(a_BxD, b_BxD, scale, mask_B)
    nll_B, correct_B = info_nce(q_BxD, k_BxD, scale, mask_B)
    nll_B, correct_B = info_nce(q_BxD, queue_NxD, scale, mask_N, positives=k_BxD)
    total_B, correct_B = sigmoid_pairs(a_BxD, b_BxD, scale, bias, mask_B)
    row_BxD = nearest(q_BxD, queue_NxD)        entropy_B = koleo(x_BxD, mask_B)

A logit is scale * q.k (+ bias), in float32; `scale` multiplies (1 / temperature of SimCLR and MoCo, exp(t) of CLIP) and
has a gradient, as `bias` has. Embeddings come normalised, if they are to be. Results are one number a row: the caller
weighs rows (by the batch's mask) and divides, and adds the other direction where a paper has two.

Each loss is a function of the positive's logit, taken apart, and of one sum over negatives, log-sum-exp or softplus,
which one sweep over tiles of keys gathers. The backward sweeps again and recomputes the tiles' logits, so memory grows
with the batch and not with its square. Under a mesh (`jax.set_mesh`) whose batch axes divide the rows, each device
holds its own rows, and the keys travel round a ring of all devices, their gradient with them in the backward: no device
ever holds all keys.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paradigm.partition import BATCH

MAX_LOGITS = 2**22  # float32 logits that a device holds at a time: 16 MiB ...
MIN_TILE = 256  # ... but no fewer keys than this: narrower products waste an accelerator
LOWEST = -1e30  # the logit of no key at all; finite, so that a row without negatives has no NaN


def nt_xent(a_BxD, b_BxD, scale, mask=None, *, tile=None):
    """SimCLR's loss: each of the 2B views picks its partner among the 2B - 1 others (Chen et al. 2020, equation 1).

    Args:
        a_BxD, b_BxD: the two views' embeddings, of one dtype; products are in it, sums in float32.
        scale: [] 1 / temperature.
        mask: [B] or None; an example with 0 is padding, and nobody's negative.
        tile: keys at a time on a device, a Python int; any value gives the same result. Default: by MAX_LOGITS.

    Returns:
        (nll, correct), float32 [2, B], rows of `a` and of `b`: -log p(partner) in nats, finite for padding too, and 1
        where the partner's logit is strictly the largest. A batch of one has no negatives: nll 0.
    """
    _same_shape("nt_xent", a_BxD, b_BxD)
    both_2xBxD = jnp.stack([a_BxD, b_BxD.astype(a_BxD.dtype)])
    positive_B = scale * _rowwise(a_BxD, b_BxD)
    return _softmax_nll(positive_B, both_2xBxD, both_2xBxD, scale, _own(a_BxD), _ids(len(a_BxD), mask), tile)


def info_nce(q_BxD, k_NxD, scale, mask=None, positives=None, *, tile=None):
    """-log softmax of each query's positive key (van den Oord et al. 2018, equation 4).

    Without `positives`, key i is the positive of query i and the negative of all others (CLIP, Radford et al. 2021,
    figure 3, one direction; MoCo v3, Chen et al. 2021, algorithm 1). With them, the keys are negatives only: the queue
    of MoCo (He et al. 2020, algorithm 1).

    Args:
        q_BxD: queries; products are in their dtype, sums in float32.
        k_NxD: keys, cast to that dtype; N == B without `positives`.
        scale: [] 1 / temperature.
        mask: [N] or None; a key with 0 is padding, and nobody's negative.
        positives: [B, D] or None.
        tile: as in `nt_xent`.

    Returns:
        (nll, correct), float32 [B]; see `nt_xent`.
    """
    _same_shape("info_nce", q_BxD, k_NxD if positives is None else positives)
    if q_BxD.shape[1] != k_NxD.shape[1]:
        raise ValueError(f"info_nce: queries {q_BxD.shape} and keys {k_NxD.shape} differ in width")
    positive_B = scale * _rowwise(q_BxD, k_NxD if positives is None else positives)
    own = _own(q_BxD) if positives is None else jnp.full(len(q_BxD), -1, jnp.int32)
    queries, keys = q_BxD[None], k_NxD[None].astype(q_BxD.dtype)
    nll, correct = _softmax_nll(positive_B, queries, keys, scale, own, _ids(len(k_NxD), mask), tile)
    return nll[0], correct[0]


def sigmoid_pairs(a_BxD, b_BxD, scale, bias, mask=None, *, tile=None):
    """SigLIP's loss: every pair is a yes or no of its own (Zhai et al. 2023, algorithm 1).

    Args:
        a_BxD, b_BxD, scale, mask, tile: as in `nt_xent`.
        bias: [], added to every logit.

    Returns:
        (total, correct), float32 [B]. total: sum over j of -log sigmoid(z_ij * (scale * a_i.b_j + bias)), z_ij = 1 for
        i == j and -1 otherwise; the paper's loss is its mean over rows. correct: 1 where a_i's largest logit is b_i's.
    """
    _same_shape("sigmoid_pairs", a_BxD, b_BxD)
    positive = scale * _rowwise(a_BxD, b_BxD) + bias
    queries, keys = a_BxD[None], b_BxD[None].astype(a_BxD.dtype)
    negative, best = _negatives(SIGMOID, tile, queries, keys, scale, bias, _own(a_BxD), _ids(len(b_BxD), mask))
    return jax.nn.softplus(-positive) + negative[0], (positive > best[0]).astype(jnp.float32)


def nearest(q_BxD, k_NxD, mask=None, *, others=False, tile=None):
    """The key of the largest dot product with each query, [B, D] in the keys' dtype; zeros where there is no key.

    Its gradient goes to the key that was found; the choice has none. As everything here it needs neither all dot
    products nor, on a mesh, all keys at once.

    Args:
        mask: [N] or None; a key with 0 is nobody's. others: key i is query i's own and is left out.
        tile: as in `nt_xent`.
    """
    if q_BxD.shape[1] != k_NxD.shape[1]:
        raise ValueError(f"nearest: queries {q_BxD.shape} and keys {k_NxD.shape} differ in width")
    own = _own(q_BxD) if others else jnp.full(len(q_BxD), -1, jnp.int32)
    return _found(tile, jax.lax.stop_gradient(q_BxD), k_NxD, own, _ids(len(k_NxD), mask))


def koleo(x_BxD, mask=None):
    """float32 [B], -log of the distance of each row to its nearest other one; rows come as unit vectors.

    The Kozachenko-Leonenko estimator of differential entropy, Sablayrolles et al. 2019, "Spreading vectors for
    similarity search", section 3.3, as DINOv2's koleo_loss.py; there a GPU's batch, here the global one.
    """
    x = x_BxD.astype(jnp.float32)
    return -0.5 * jnp.log(jnp.sum(jnp.square(x - nearest(x, x, mask, others=True)), -1) + 1e-16)


def _softmax_nll(positive_B, q_GxBxD, k_GxNxD, scale, own_B, ids_N, tile):
    negative_GxB, best_GxB = _negatives(SOFTMAX, tile, q_GxBxD, k_GxNxD, scale, 0.0, own_B, ids_N)
    # log(exp(positive) + sum of exp(negatives)) - positive
    return jax.nn.softplus(negative_GxB - positive_B), (positive_B > best_GxB).astype(jnp.float32)


def _rowwise(a_BxD, b_BxD):
    return jnp.sum(a_BxD.astype(jnp.float32) * b_BxD.astype(jnp.float32), axis=-1)


def _own(q_BxD):
    return jnp.arange(len(q_BxD), dtype=jnp.int32)


def _ids(n, mask):
    """int32 [N]: whose example a key is, -1 for padding."""
    ids = jnp.arange(n, dtype=jnp.int32)
    if mask is None:
        return ids
    if mask.shape != (n,):
        raise ValueError(f"mask has shape {mask.shape}, for {n} keys it must be ({n},)")
    return jnp.where(mask > 0, ids, -1)


def _same_shape(name, a, b):
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"{name}: both sides of a pair are [B, D], got {a.shape} and {b.shape}")


# ---- The sum over negatives ------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """How negatives are summed. Logits are float32 [R, tile], -inf where a key does not count.

    add: (top [R], total [R], logits, the new top) -> total. finish: (top, total) -> the value [R].
    slope: (logits, value [R, 1]) -> d value / d logits.
    """

    add: Callable
    finish: Callable
    slope: Callable


SOFTMAX = Rule(  # log-sum-exp, the running sum kept relative to the running maximum
    add=lambda top, total, logits, new: total * jnp.exp(top - new) + jnp.sum(jnp.exp(logits - new[:, None]), axis=-1),
    finish=lambda top, total: jnp.where(total > 0, top + jnp.log(jnp.maximum(total, 1e-30)), LOWEST),
    slope=lambda logits, value: jnp.exp(logits - value),
)
SIGMOID = Rule(
    add=lambda top, total, logits, new: total + jnp.sum(jax.nn.softplus(logits), axis=-1),
    finish=lambda top, total: total,
    slope=lambda logits, value: jax.nn.sigmoid(logits),
)


def _negatives(rule, tile, q_GxBxD, k_GxNxD, scale, bias, own_B, ids_N):
    """(value, best logit), float32 [G, B], of each query over the keys whose id is neither its own nor negative.

    All groups of queries go against all groups of keys; own and ids are the same for each group.
    """
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    scale, bias = jnp.float32(scale), jnp.float32(bias)
    value, best = _summed((rule, tile), q_GxBxD, k_GxNxD, scale, bias, own_B, ids_N)
    return value, jax.lax.stop_gradient(best)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(static, q, k, scale, bias, own, ids):
    return _forward(static, q, k, scale, bias, own, ids)[0]


def _forward(static, q, k, scale, bias, own, ids):
    rule, tile = static

    def local(ring, q_GxBxD, k_GxNxD, own_B, ids_N, scale, bias):
        (G, B), (rows, owner) = q_GxBxD.shape[:2], _rows(q_GxBxD, own_B)

        def see(stats, keys, ids):
            top, total = stats
            logits = _logits(rows, keys, scale, bias, owner, ids)
            new = jnp.maximum(top, jnp.max(logits, axis=-1))
            return (new, rule.add(top, total, logits, new)), ()

        def turn(stats, moving):
            return _over_tiles(see, stats, moving, tile or _tile(G * B))[0], moving

        start = jnp.full(G * B, LOWEST, jnp.float32), jnp.zeros(G * B, jnp.float32)
        (top, total), _ = ring(turn, start, _rows(k_GxNxD, ids_N))
        return rule.finish(top, total).reshape(G, B), top.reshape(G, B)

    outputs = _on_the_ring(local, (q, k, own, ids), (scale, bias), outputs=2)
    return outputs, (q, k, scale, bias, own, ids, outputs[0])


def _backward(static, residuals, cotangents):
    rule, tile = static
    q, k, scale, bias, own, ids, value = residuals

    def local(ring, q_GxBxD, k_GxNxD, own_B, ids_N, value_GxB, d_value_GxB, scale, bias):
        (G, B), (rows, owner) = q_GxBxD.shape[:2], _rows(q_GxBxD, own_B)
        value, d_value = value_GxB.reshape(-1, 1), d_value_GxB.reshape(-1, 1)

        def see(sums, keys, ids):
            d_rows, d_bias = sums
            d_logits = d_value * rule.slope(_logits(rows, keys, scale, bias, owner, ids), value)
            d_bias += jnp.sum(d_logits, axis=-1)
            d_logits = d_logits.astype(rows.dtype)
            d_rows += jnp.dot(d_logits, keys, preferred_element_type=jnp.float32)
            return (d_rows, d_bias), jnp.dot(d_logits.T, rows, preferred_element_type=jnp.float32)

        def turn(sums, moving):
            keys, ids, d_keys = moving
            sums, more = _over_tiles(see, sums, (keys, ids), tile or _tile(G * B))
            return sums, (keys, ids, d_keys + more)

        keys, ids = _rows(k_GxNxD, ids_N)
        start = jnp.zeros(rows.shape, jnp.float32), jnp.zeros(len(rows), jnp.float32)
        (d_rows, d_bias), (_, _, d_keys) = ring(turn, start, (keys, ids, jnp.zeros(keys.shape, jnp.float32)))
        return d_rows.reshape(q_GxBxD.shape), d_keys.reshape(k_GxNxD.shape), d_bias.reshape(G, B)

    d_q, d_k, d_bias = _on_the_ring(local, (q, k, own, ids, value, cotangents[0]), (scale, bias), outputs=3)
    # A logit is scale * q.k, so what stands beside each q is the derivative by scale, before it is multiplied by it.
    d_scale = jnp.sum(d_q * q.astype(jnp.float32))
    return (scale * d_q).astype(q.dtype), (scale * d_k).astype(k.dtype), d_scale, jnp.sum(d_bias), None, None


_summed.defvjp(_forward, _backward)


# ---- The nearest key -------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _found(tile, q, k, own, ids):
    return _search(tile, q, k, own, ids)[0]


def _search(tile, q, k, own, ids):
    def local(ring, q_1xBxD, k_1xNxD, own_B, ids_N):
        rows, owner = _rows(q_1xBxD, own_B)

        def see(best, keys, ids):
            top, row, place = best
            logits = _logits(rows, keys.astype(rows.dtype), 1.0, 0.0, owner, ids)
            at = jnp.argmax(logits, axis=-1)
            high = jnp.take_along_axis(logits, at[:, None], axis=-1)[:, 0]
            better = high > top
            return (
                jnp.where(better, high, top),
                jnp.where(better[:, None], keys[at], row),
                jnp.where(better, ids[at], place),
            ), ()

        def turn(best, moving):
            return _over_tiles(see, best, moving, tile or _tile(len(rows)))[0], moving

        start = jnp.full(len(rows), LOWEST, jnp.float32), jnp.zeros(rows.shape, k_1xNxD.dtype), jnp.full_like(owner, -1)
        (_, row, place), _ = ring(turn, start, _rows(k_1xNxD, ids_N))
        return row[None], place[None]

    row, place = _on_the_ring(local, (q[None], k[None], own, ids), (), outputs=2)
    return row[0], (place[0], ids, jnp.zeros((0, *k.shape[1:]), k.dtype), own, q)


def _search_gradients(tile, residuals, d_row):
    place, ids, like, own, q = residuals

    def local(ring, d_1xBxD, place_B, ids_N):
        rows, place = _rows(d_1xBxD.astype(jnp.float32), place_B)

        def see(nothing, d_keys, ids):
            hits = jnp.float32((place[:, None] == ids) & (ids >= 0))
            return nothing, d_keys + jnp.dot(hits.T, rows, precision="highest")

        def turn(nothing, moving):
            d_keys = _over_tiles(see, nothing, moving, tile or _tile(len(rows)))[1]
            return nothing, (d_keys, moving[1])

        start = jnp.zeros((len(ids_N), rows.shape[1]), jnp.float32), ids_N
        return (ring(turn, (), start)[1][0][None],)

    (d_k,) = _on_the_ring(local, (d_row[None], place, ids), (), outputs=1)
    return jnp.zeros_like(q), d_k[0].astype(like.dtype), None, None


_found.defvjp(_search, _search_gradients)


# ---- Rows, tiles and the ring ----------------------------------------------------------------------------------------


def _rows(x_GxBxD, ids_B):
    """([G * B, D], [G * B]): all groups as rows, each with its id."""
    return x_GxBxD.reshape(-1, x_GxBxD.shape[-1]), jnp.tile(ids_B, len(x_GxBxD))


def _logits(rows_RxD, keys_TxD, scale, bias, owner_R, ids_T):
    """float32 [R, T], -inf where a key is padding or the row's own example."""
    dots = jnp.einsum("rd,td->rt", rows_RxD, keys_TxD, preferred_element_type=jnp.float32)
    counts = (ids_T >= 0) & (owner_R[:, None] != ids_T)
    return jnp.where(counts, scale * dots + bias, -jnp.inf)


def _tile(rows):
    return max(MIN_TILE, MAX_LOGITS // rows)


def _over_tiles(see, sums, moving, tile):
    """(sums, what `see` returns for each key) of see(sums, keys, ids) over tiles of at most `tile` keys."""
    keys, ids = moving
    n = len(ids)
    steps = math.ceil(n / tile)
    if steps == 1:
        return see(sums, keys, ids)
    tile = math.ceil(n / steps)
    short = steps * tile - n
    keys = jnp.pad(keys, [(0, short), (0, 0)]).reshape(steps, tile, -1)
    ids = jnp.pad(ids, (0, short), constant_values=-1).reshape(steps, tile)
    sums, outputs = jax.lax.scan(lambda sums, xs: see(sums, *xs), sums, (keys, ids))
    return sums, jax.tree.map(lambda x: x.reshape((steps * tile,) + x.shape[2:])[:n], outputs)


def _on_the_ring(local, by_row, scalars, outputs):
    """local(ring, *by_row, *scalars), on each device's rows where a mesh cuts them, else on all.

    by_row: arrays [B] or [G, B, ...]; the outputs are [G, B, ...]. ring(turn, sums, moving) -> (sums, moving) calls
    turn(sums, moving) once for every device's part of `moving`; each part ends where it began.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(a for a in BATCH if a in mesh.shape)
    ways = math.prod(mesh.shape[a] for a in axes)
    if not axes or any(x.shape[min(x.ndim - 1, 1)] % ways for x in by_row):
        return local(lambda turn, sums, moving: turn(sums, moving), *by_row, *scalars)

    def ring(turn, sums, moving):
        if ways == 1:
            return turn(sums, moving)
        onwards = [(i, (i + 1) % ways) for i in range(ways)]

        def turn_and_pass(_, carry):
            sums, moving = turn(*carry)
            return sums, jax.lax.ppermute(moving, axes, onwards)

        return jax.lax.fori_loop(0, ways, turn_and_pass, (sums, moving))

    in_specs = tuple(P(axes) if x.ndim == 1 else P(None, axes) for x in by_row) + (P(),) * len(scalars)
    # No rule of replication to check: differentiation stays outside, in the custom_vjp.
    run = jax.shard_map(
        functools.partial(local, ring), in_specs=in_specs, out_specs=(P(None, axes),) * outputs, check_vma=False
    )
    return run(*by_row, *scalars)
