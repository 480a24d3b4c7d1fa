"""Rotary positions, and the published ways of stretching them to texts longer than those that a model was trained on.

A scaling is a frozen value: scaling(frequency, theta) -> (frequency, factor on cos and sin). The formulas are those of
the papers and of the transformers library (modeling_rope_utils.py), whose settings bear the same names but for
`original_length`, its original_max_position_embeddings.
"""

import dataclasses
import math

import jax.numpy as jnp

from paradigm.errors import UserError


def _positive(scaling, *names):
    for name in names:
        if not getattr(scaling, name) > 0:
            raise UserError(f"{type(scaling).__name__}.{name}={getattr(scaling, name)} must be positive")


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595, equation 4): positions divided by `factor`."""

    factor: float

    def __post_init__(self):
        _positive(self, "factor")

    def __call__(self, frequency, theta):
        return frequency / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: waves longer than original_length / low_freq_factor are slowed by `factor`, those shorter than
    original_length / high_freq_factor left alone, those between interpolated (Llama 3, arXiv:2407.21783; its code)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        _positive(self, "factor", "low_freq_factor", "original_length")
        if not self.high_freq_factor > self.low_freq_factor:
            raise UserError(
                f"Llama3Scaling.high_freq_factor={self.high_freq_factor} must be above low_freq_factor="
                f"{self.low_freq_factor}"
            )

    def __call__(self, frequency, theta):
        turns = self.original_length * frequency / (2 * math.pi)  # in the length that was trained on
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(kept, 0.0, 1.0)
        return frequency * (kept + (1 - kept) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071, section 3): dims that turn more than `beta_fast` times in the length
    trained on are left alone, those that turn less than `beta_slow` times are slowed by `factor`, a ramp between.

    attention_factor: on cos and sin, hence its square on the logits; None is 0.1 ln(factor) + 1 (equation 22).
    truncate: the ends of the ramp are whole dims.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        _positive(self, "factor", "original_length", "beta_fast", "beta_slow")
        if self.beta_fast < self.beta_slow:
            raise UserError(f"YarnScaling.beta_fast={self.beta_fast} must not be below beta_slow={self.beta_slow}")

    def __call__(self, frequency, theta):
        width = 2 * frequency.shape[-1]
        # The dim whose wave turns so often in the length trained on.
        dim = lambda turns: width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        low, high = dim(self.beta_fast), dim(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        slowed = jnp.clip((jnp.arange(width // 2) - low) / (high - low or 0.001), 0.0, 1.0)
        factor = self.attention_factor
        if factor is None:
            factor = 0.1 * math.log(max(self.factor, 1.0)) + 1.0
        return frequency * (1 - slowed + slowed / self.factor), factor


def rope_angles(positions, head_dim, theta=10000.0, scaling=None):
    """(cos, sin) of rotary positions (Su et al. 2021, section 3.2.2): int [B, L] -> float32 [B, 1, L, K/2] each."""
    frequency, factor = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim), 1.0
    if scaling is not None:
        frequency, factor = scaling(frequency, theta)
    angle = positions[:, None, :, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotate(x_BxHxLxK, angles):
    """Rotates the pairs (k, k + K/2) of each head by the angles of their positions."""
    cos, sin = (a.astype(x_BxHxLxK.dtype) for a in angles)
    a, b = jnp.split(x_BxHxLxK, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
