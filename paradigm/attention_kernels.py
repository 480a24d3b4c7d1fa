"""One function picks how attention is computed: the plain path, or cuDNN's flash attention on a GPU.

The plain path (attention.py) is right everywhere and forms [B, H, L, S] in blocks. cuDNN's never forms it, and wants a
GPU, 16-bit arithmetic, no dropout on the weights, and a head width that is a multiple of 8 up to 128.
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


def pick(q_BxHxLxK, k_BxHxSxK, masked, bias, dropout):
    """("cudnn" or "plain", why) for these arrays. masked: a mask that is no causal triangle alone."""
    length, width = q_BxHxLxK.shape[2:]
    source = k_BxHxSxK.shape[2]
    reasons = {
        "it was asked for": _FORCED.get() == "plain",
        f"the device is a {jax.default_backend()}": jax.default_backend() not in ("gpu", "cuda"),
        f"the arithmetic is {q_BxHxLxK.dtype}": q_BxHxLxK.dtype not in (jnp.bfloat16, jnp.float16),
        "weights are dropped": dropout,
        f"heads are {width} wide": width % 8 or width > 128,
        # cuDNN reads a mask as a bias, and its gradient wants even lengths there.
        f"{length} by {source} is odd, under a mask or a bias": (masked or bias is not None) and (length | source) % 2,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return ("cudnn", "flash attention") if reason is None else ("plain", reason)


def attend(q_BxHxLxK, k_BxHxSxK, v_BxHxSxK, mask, bias=None, scale=1.0, dropped=None):
    """softmax(scale * q k + bias, where visible) v by the kernel that `pick` names: [B, H, L, K].

    Args: as attention.attend; `dropped` is a function of the attention weights, or None for no dropout.
    """
    # A triangle that starts at the first key is a kernel's own mask; any other is an array of 16-bit numbers to it.
    triangle = mask.causal and isinstance(mask.offset, int) and mask.offset == 0
    masked = mask.keys is not None or mask.prefix is not None or (mask.causal and not triangle)
    kernel, _ = pick(q_BxHxLxK, k_BxHxSxK, masked, bias, dropped is not None)
    if kernel == "plain":
        return attention.attend(
            q_BxHxLxK, k_BxHxSxK, v_BxHxSxK, mask, bias, scale, dropped if dropped is not None else lambda p: p
        )
    seen = mask.expand(q_BxHxLxK.shape[2], k_BxHxSxK.shape[2]) if masked else None
    rows_first = lambda x: x.swapaxes(1, 2)  # [B, H, L, K] -> [B, L, H, K]
    y = jax.nn.dot_product_attention(
        rows_first(q_BxHxLxK),
        rows_first(k_BxHxSxK),
        rows_first(v_BxHxSxK),
        None if bias is None else bias.astype(q_BxHxLxK.dtype),
        seen,
        scale=scale,
        is_causal=triangle and not masked,
        implementation="cudnn",
    )
    return rows_first(y)
