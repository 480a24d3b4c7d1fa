"""One function picks how attention is computed: the plain path, or cuDNN's flash attention on a GPU.

The plain path (attention.py) is right everywhere and forms [B, H, L, S] in blocks. cuDNN's never forms it, and wants a
GPU, 16-bit arithmetic, neither bias nor dropout, and a head width that is a multiple of 8 up to 128.
"""

import contextlib
import contextvars

import jax
import jax.numpy as jnp

from paradigm import attention
from paradigm.errors import choose

_FORCED = contextvars.ContextVar("attention", default="auto")


@contextlib.contextmanager
def use(name):
    """Within it, what is traced attends by `auto` (what the device can) or by `plain`."""
    token = _FORCED.set(choose("attention", name, dict.fromkeys(("auto", "plain"), name)))
    try:
        yield
    finally:
        _FORCED.reset(token)


def pick(q_BxHxLxK, dropout, bias=None):
    """("cudnn" or "plain", why) for these queries and this bias. dropout: whether attention weights are dropped."""
    width = q_BxHxLxK.shape[-1]
    reasons = {
        "it was asked for": _FORCED.get() == "plain",
        f"the device is a {jax.default_backend()}": jax.default_backend() not in ("gpu", "cuda"),
        f"the arithmetic is {q_BxHxLxK.dtype}": q_BxHxLxK.dtype not in (jnp.bfloat16, jnp.float16),
        "weights are dropped": dropout,
        # Measured (docs/results/gpu.md): slower there than the plain path, its gradient a sum in 16 bits.
        "there is a bias": bias is not None,
        f"heads are {width} wide": width % 8 or width > 128,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return ("cudnn", "flash attention") if reason is None else ("plain", reason)


def attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, bias=None, scale=1.0, dropped=None):
    """softmax(scale * q k + bias, where visible) v by the kernel that `pick` names: [B, H, L, K].

    Args: as attention.attend; `dropped` is a function of the attention weights, or None for no dropout.
    """
    kernel, _ = pick(q_BxHxLxK, dropped is not None, bias)
    if kernel == "plain":
        weights = dropped if dropped is not None else lambda p: p
        return attention.attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, bias, scale, weights)
    # A triangle that starts at the first key is a kernel's own mask; any other is an array of 16-bit numbers to it.
    triangle = mask.causal and isinstance(mask.offset, int) and mask.offset == 0
    masked = any(x is not None for x in (mask.keys, mask.prefix, mask.window)) or (mask.causal and not triangle)
    batch, _, length, _ = q_BxHxLxK.shape
    source = k_BxGxSxK.shape[2]
    seen = mask.expand(length, source) if masked else None
    # The kernel wants even lengths for a gradient: an odd one has a row more, which the row's length hides.
    odd = length % 2 or source % 2
    lengths = [jnp.full((batch,), n, jnp.int32) for n in (length, source)] if odd else (None, None)
    even = lambda x, *axes: jnp.pad(x, [(0, x.shape[a] % 2 if a in axes else 0) for a in range(x.ndim)])
    rows_first = lambda x: even(x, 2).swapaxes(1, 2)  # [B, H, L, K] -> [B, L, H, K]
    y = jax.nn.dot_product_attention(
        rows_first(q_BxHxLxK),
        rows_first(k_BxGxSxK),
        rows_first(v_BxGxSxK),
        None,
        None if seen is None else even(jnp.broadcast_to(seen, (*seen.shape[:2], length, source)), 2, 3),
        query_seq_lengths=lengths[0],
        key_value_seq_lengths=lengths[1],
        scale=scale,
        is_causal=triangle and not masked,
        implementation="cudnn",
    )
    return y[:, :length].swapaxes(1, 2)
