"""One function picks how attention is computed: the plain path, cuDNN's flash attention on a GPU, splash on a TPU.

The plain path (attention.py) is right everywhere and forms [B, H, L, S]; `blocks` is the same for long rows, which has
a block of queries of it at a time and forms that again in the backward pass: a step's memory grows with L, not with its
square. The kernels never form it. cuDNN's (cudnn.py) wants 16-bit arithmetic, neither bias nor dropout, and a head
width that is a multiple of 8 up to 128; Pallas' splash (splash.py) neither bias nor dropout, a mask that is static
beside segments, and rows of at least 128. Where the mesh cuts rows along their length (`context`), the plain path is
that of context.py, and of the kernels splash serves.
"""

import contextlib
import contextvars

import jax
import jax.numpy as jnp

from paradigm import attention, context, cudnn, splash
from paradigm.errors import UserError, choose

KINDS = ("auto", "plain", "blocks", "cudnn", "splash")
# Shorter rows take the plain path on a TPU unless splash is asked for: compiled for v5e, ViTs of 197 patches, which it
# pads to 256, need 6 to 8 % more of a step's roofline and a quarter more memory with it; 2,048 tokens half the traffic.
LONG = 512
# Rows that no kernel serves go in blocks of queries from so many on, BLOCK at a time.
BLOCKED, BLOCK = 1024, 512

WHAT = {"cudnn": "flash attention", "splash": "blocks on the chip", "blocks": "it was asked for"}

_FORCED = contextvars.ContextVar("attention", default=("auto", {}))


@contextlib.contextmanager
def use(name):
    """Within it, what is traced attends by `auto` (what the device can), `plain`, `blocks`, `cudnn` or `splash`.

    Yields {"kernel: why": how often it was picked}, which fills as functions are traced. A kernel that is named and
    cannot take what it is given is a UserError; splash on another device than a TPU is interpreted, slowly.
    """
    token = _FORCED.set((choose("attention", name, dict.fromkeys(KINDS, name)), {}))
    try:
        yield _FORCED.get()[1]
    finally:
        _FORCED.reset(token)


def platform():
    """Of the devices that a program is traced for: those of the mesh in context, or jax's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def pick(q_BxHxLxK, k_BxGxSxK, mask, dropout, bias=None):
    """("cudnn", "splash", "blocks" or "plain", why) for these. dropout: whether attention weights are dropped.

    Raises UserError for a kernel that was asked for by name and cannot take them.
    """
    asked, picked = _FORCED.get()
    kernel = {"gpu": "cudnn", "tpu": "splash"}.get(platform()) if asked == "auto" else asked
    reason = _unfit(kernel, q_BxHxLxK, k_BxGxSxK, mask, dropout, bias)
    if asked == "auto" and kernel == "splash" and min(q_BxHxLxK.shape[2], k_BxGxSxK.shape[2]) < LONG:
        reason = reason or f"rows are shorter than {LONG}"
    if reason and kernel == asked != "plain":
        raise UserError(f"attention={asked!r} cannot serve here: {reason}; 'auto' takes it where it can")
    if reason:
        found = ("blocks" if asked == "auto" and q_BxHxLxK.shape[2] >= BLOCKED else "plain", reason)
    else:
        found = kernel, WHAT[kernel]
    what = f"{found[0]}: {found[1]}"
    picked[what] = picked.get(what, 0) + 1
    return found


def _unfit(kernel, q_BxHxLxK, k_BxGxSxK, mask, dropout, bias):
    """Why a kernel cannot take these; None where it can."""
    width = q_BxHxLxK.shape[-1]
    if kernel == "plain":
        return "it was asked for"
    if kernel == "blocks":
        return None
    if kernel is None:
        return f"the device is a {platform()}"
    if dropout:
        return "weights are dropped"
    if bias is not None:  # measured with cuDNN (docs/results/gpu.md): slower than the plain path, gradient in 16 bits
        return "there is a bias"
    if kernel == "splash":
        return splash.unfit(q_BxHxLxK, k_BxGxSxK, mask)
    if platform() != "gpu":
        return f"the device is a {platform()}"
    if context.ways(q_BxHxLxK, k_BxGxSxK, mask) > 1:
        return "rows are cut over context"
    if q_BxHxLxK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the arithmetic is {q_BxHxLxK.dtype}, and cuDNN takes bfloat16 and float16"
    return f"heads are {width} wide, and cuDNN takes multiples of 8 up to 128" if width % 8 or width > 128 else None


def attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, bias=None, scale=1.0, dropped=None):
    """softmax(scale * q k + bias, where visible) v by the kernel that `pick` names: [B, H, L, K].

    Args: as attention.attend; `dropped` is its `weights`, or None for no dropout.
    """
    kernel, _ = pick(q_BxHxLxK, k_BxGxSxK, mask, dropped is not None, bias)
    if kernel in ("plain", "blocks"):
        size = {"block": BLOCK} if kernel == "blocks" else {}
        if context.ways(q_BxHxLxK, k_BxGxSxK, mask) > 1:
            return context.attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, bias, scale, dropped, **size)
        weights = dropped if dropped is not None else lambda p, start: p
        return attention.attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, bias, scale, weights, **size)
    if kernel == "splash":
        return splash.attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, scale, interpret=platform() != "tpu")
    return cudnn.attend(q_BxHxLxK, k_BxGxSxK, v_BxGxSxK, mask, scale)
