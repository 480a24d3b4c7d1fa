"""Metrics as sums that merge exactly, what evaluators hand over, and the peak that model FLOPs are measured against.

A metric is a pair (sum, weight): sums of parts add, in float64 on the host, and are divided once, at the end. A mean of
means over parts of unequal weight would be another number.
"""

import dataclasses
import math
import time
from typing import Any

import numpy as np

LN2 = math.log(2.0)


def merge(*parts):
    """{name: (sum, weight)} of all parts, each a {name: (sum, weight)} of numbers or of scalar arrays."""
    total = {}
    for part in parts:
        for name, (x, weight) in part.items():
            a, b = total.get(name, (0.0, 0.0))
            total[name] = a + float(x), b + float(weight)
    return total


def mean(total, weight):
    """sum / weight; nan where nothing was weighed."""
    return float(total) / float(weight) if weight else math.nan


def bits(nats, units):
    """Bits a unit (bits per byte, per token, per dimension) from a sum in nats."""
    return mean(nats, units) / LN2


def confusion(truth, found, classes):
    """int64 [C, C]: how often class i was taken for j. truth, found: int [n]. Tables of parts add."""
    return np.bincount(np.asarray(truth) * classes + np.asarray(found), minlength=classes**2).reshape(classes, classes)


@dataclasses.dataclass(frozen=True)
class Artefact:
    """What an evaluator shows beside its numbers, written to samples/ and TensorBoard.

    kind: 'text' (value: str), 'image' (uint8 [height, width, 3]) or 'table' (a list of rows, the header first).
    """

    name: str
    kind: str
    value: Any

    def __post_init__(self):
        if self.kind not in ("text", "image", "table"):
            raise ValueError(f"Artefact {self.name!r}: kind {self.kind!r} must be 'text', 'image' or 'table'")


# Dense bfloat16 FLOP/s of one jax device, by the start of its device_kind; the first match holds. TPUs: Google Cloud's
# pages on each version (a v2 or v3 device is a core, half a chip). GPUs: NVIDIA's data sheets, without sparsity.
PEAK_FLOPS = (
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),  # v5p
    ("TPU v6", 918e12),  # 'TPU v6 lite' is v6e
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
)


def peak_flops(device=None, again=False):
    """FLOP/s of one device (default: the first), for MFU; 0.0 where neither listed nor a CPU.

    On a CPU it is the rate of the best square float32 product of 1024 to 4096, measured once in this process in about
    a second, and shared between the CPU's (virtual) devices. again: measure once more, and keep the better rate: the
    CPU may have been busy.
    """
    import jax

    device = device or jax.devices()[0]
    if device.platform == "cpu":
        if again or not _cpu_rates:
            _cpu_rates.append(_measured_cpu())
        return max(_cpu_rates) / len(jax.local_devices(backend="cpu"))
    return next((flops for kind, flops in PEAK_FLOPS if device.device_kind.startswith(kind)), 0.0)


_cpu_rates = []  # FLOP/s, as often as they were measured


def _measured_cpu():
    """The best rate seen, in FLOP/s. Each size runs as often as its time allows, by the rate of those before it."""
    import jax
    import jax.numpy as jnp

    best, product, start = 0.0, jax.jit(jnp.matmul), time.perf_counter()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for n, until in (1024, 0.3), (2048, 0.6), (4096, 1.2):  # seconds from the start
            flops, x = 2 * n**3, jnp.ones((n, n), jnp.float32)
            compiled = product.lower(x, x).compile()
            while not best or time.perf_counter() - start + flops / best < until:
                begin = time.perf_counter()
                compiled(x, x).block_until_ready()
                best = max(best, flops / (time.perf_counter() - begin))
    return best
