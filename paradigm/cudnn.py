"""cuDNN's flash attention on a GPU: masks as it takes them, and packed documents each by itself.

Of its masks, "all", a causal triangle and the lengths of rows are the kernel's own; any other is an array of 16-bit
numbers to it, [B, 1, L, S], and makes it more than twice as slow (docs/results/gpu.md). Documents that are packed in a
row are therefore given as their places and lengths, where the device can: a row of three is three short rows to it.
"""

import jax
import jax.numpy as jnp

# Documents of a row that are told apart by place; in a batch with more in a row, they are by the mask's array. Each
# place costs a block of threads for every block of queries, whether a document is there or not.
DOCUMENTS = 16


def attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, scale):
    """softmax(scale * q k, where visible) v: [B, H, L, K]. Arguments as attention.attend."""
    rows = [x.swapaxes(1, 2) for x in (q_BxHxLxK, k_BxGxSxK, v_BxGxSxK)]  # [B, L, H, K]
    if _may_be_packed(q_BxHxLxK, k_BxGxSxK, mask):
        starts, lengths, fit = documents(mask.queries, mask.keys)
        # What the array of the mask serves keeps its inputs alone for the gradient: else each layer would keep, as
        # zeros, what only the other branch has.
        y = jax.lax.cond(
            fit,
            lambda *rows: packed(*rows, starts, lengths, scale, mask.causal),
            jax.checkpoint(lambda *rows: _masked(*rows, mask, scale)),
            *rows,
        )
    else:
        y = _masked(*rows, mask, scale)
    return y.swapaxes(1, 2)


def documents(queries, keys):
    """Where the documents of packed rows lie: (starts int32 [B, DOCUMENTS + 1], lengths int32 [B, DOCUMENTS], fit).

    Args:
        queries, keys: int32 [B, L], the segments of AttentionMask.

    Returns:
        Both -1 where a row has no more documents, padding (0) being the last; fit: bool [], whether they are all that
        the segments say: queries and keys alike, no document in two pieces, and DOCUMENTS of them at most.
    """
    batch, length = queries.shape
    new = jnp.concatenate([jnp.ones((batch, 1), bool), queries[:, 1:] != queries[:, :-1]], 1)
    which = jnp.cumsum(new, 1) - 1  # [B, L], the place in the row of each token's document
    count = which[:, -1:] + 1
    place = jnp.arange(DOCUMENTS + 1)
    starts = jnp.sum(which[:, :, None] < place, 1, dtype=jnp.int32)  # those behind the last are `length`
    here = place < count
    lengths = jnp.where(here[:, :-1], starts[:, 1:] - starts[:, :-1], -1)
    order = jnp.where(queries == 0, jnp.iinfo(jnp.int32).max, queries)
    whole = jnp.all(order[:, 1:] >= order[:, :-1])
    fit = jnp.all(queries == keys) & whole & jnp.all(count <= DOCUMENTS)
    return jnp.where(here, starts, -1), lengths, fit


def packed(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, starts, lengths, scale, causal):
    """Each document attends to itself alone: [B, L, H, K]. starts, lengths: of `documents`."""
    # jax.nn.dot_product_attention has no documents; the function that it calls has.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    places = lengths, lengths, starts, starts
    kind = MaskType.PADDING_CAUSAL if causal else MaskType.PADDING
    return dot_product_attention(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, None, None, *places, scale=scale, mask_type=kind)


def _may_be_packed(q_BxHxLxK, k_BxGxSxK, mask):
    """Whether the mask is one of documents alone, and the device can take them by their places."""
    others = mask.prefix, mask.window, mask.alone, mask.offset
    alike = q_BxHxLxK.shape == k_BxGxSxK.shape and q_BxHxLxK.size < 2**31  # places are counted in numbers
    single = jax.sharding.get_abstract_mesh().size <= 1  # not tried on several devices
    plain = mask.queries is not None and not mask.shared and all(x is None for x in others)
    return plain and alike and single and takes_documents()


def takes_documents():
    """Whether the device does: Hopper or later, cuDNN 9.6 or later."""
    try:
        from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

        return float(jax.local_devices()[0].compute_capability) >= 9 and check_cudnn_version() >= 90600
    except (ImportError, AttributeError, RuntimeError):  # another jax, another device, no cuDNN
        return False


def _masked(q_BxLxHxK, k_BxSxGxK, v_BxSxGxK, mask, scale):
    # A triangle that starts at the first key is a kernel's own mask.
    triangle = mask.causal and mask.offset is None and not mask.shared
    arrays = mask.keys, mask.prefix, mask.window, mask.alone
    masked = any(x is not None for x in arrays) or (mask.causal and not triangle)
    batch, length = q_BxLxHxK.shape[:2]
    source = k_BxSxGxK.shape[1]
    seen = mask.expand(length, source) if masked else None
    # jax lets no odd length pass for a gradient: an odd one has a row more, which its length hides.
    odd = length % 2 or source % 2
    lengths = [jnp.full((batch,), n, jnp.int32) for n in (length, source)] if odd else (None, None)

    def even(x, *axes):
        return jnp.pad(x, [(0, x.shape[a] % 2 if a in axes else 0) for a in range(x.ndim)]) if odd else x

    y = jax.nn.dot_product_attention(
        even(q_BxLxHxK, 1),
        even(k_BxSxGxK, 1),
        even(v_BxSxGxK, 1),
        None,
        None if seen is None else even(jnp.broadcast_to(seen, (*seen.shape[:2], length, source)), 2, 3),
        query_seq_lengths=lengths[0],
        key_value_seq_lengths=lengths[1],
        scale=scale,
        is_causal=triangle and not masked,
        implementation="cudnn",
    )
    return y[:, :length]
