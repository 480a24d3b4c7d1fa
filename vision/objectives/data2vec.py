"""data2vec on images: Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning".

A teacher that follows the encoder sees the whole picture; what its top K blocks say of the hidden patches is to be
found from the others (section 3.3):

    t = norm(1/K sum over the last K blocks l of norm(a_l))
    loss = mean over hidden patches and numbers of (t - f)^2 / (2 beta) where |t - f| <= beta, else |t - f| - beta / 2

norm takes a patch's numbers to mean 0 and deviation 1. a_l are the blocks' outputs, before the last norm
(--layer_results end --post_target_layer_norm in the official README).
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.errors import UserError
from paradigm.schedule import Schedule
from paradigm.teacher import Teacher
from vision.objectives.masked_images import MaskedRegression


def standardized(x):
    """x less its mean, over its deviation, along the last axis, float32: a layer norm without parameters."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)  # torch's layer_norm


def smooth_l1(difference, beta):
    """Half a square over beta up to beta, and a line beyond (Girshick 2015, equation 3, with beta)."""
    far = jnp.abs(difference)
    return jnp.where(far <= beta, 0.5 * jnp.square(difference) / beta, far - 0.5 * beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2Vec(MaskedRegression):
    """A teacher's layers at hidden patches.

    top: K. beta: of the loss; 2 in the paper's images, 0 for the squared difference. momentum: of the teacher, 0.9998.
    """

    masking: str = "block"
    mask_ratio: float = 0.6
    top: int = 6
    beta: float = 2.0
    momentum: float | Schedule = 0.9998

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.top <= self.encoder.layers:
            raise UserError(f"Data2Vec.top={self.top} of {self.encoder.layers} blocks: choose 1 to all of them")

    @property
    def teacher(self):
        return Teacher(self.momentum, ("encoder",))

    @property
    def outputs(self):
        return self.encoder.d_model

    def target_of(self, extra, images):
        _, seen, _ = self.apply("encoder", extra["teacher"], images)
        layers = seen["layers"][-self.top :, :, self.encoder.prefix :]
        return jax.lax.stop_gradient(standardized(standardized(layers).mean(0)))

    def error(self, difference):
        return smooth_l1(difference, self.beta) if self.beta else jnp.square(difference)
