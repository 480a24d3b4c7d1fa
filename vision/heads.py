"""Heads on an encoder's pooled output: the multi-layer perceptrons of contrastive learning, and what surrounds them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.errors import choose
from paradigm.layers import ACTIVATIONS, Dense
from paradigm.partition import BATCH, constrain
from vision.norms import BatchNorm

LAST = {"none": None, "scale": (True, False), "plain": (False, False)}  # (has a scale, has a bias)


class Head(nn.Module):
    """[..., D] -> ([..., widths[-1]], {}): linear layers with ReLU, or another activation, between them.

    Parameters fc0/kernel, fc1/kernel ...; norm0/{scale, bias} ... With norms no layer has a bias.

    widths: of the layers, the output's last.
    norm: BatchNorm after every layer but the last, before its ReLU.
    last_norm: BatchNorm on the output: none, scale (no bias: SimCLR), plain (neither: MoCo v3).
    last_bias: whether the last layer has a bias although the others have norms (SimSiam's predictor).
    activation: relu, or gelu_exact (DINO).
    std: of the kernels' normal initialiser; None is fan_in ** -0.5.
    """

    widths: tuple
    norm: bool = True
    last_norm: str = "none"
    last_bias: bool = False
    activation: str = "relu"
    std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        act, _ = choose("activation", self.activation, ACTIVATIONS)
        for i, width in enumerate(self.widths):
            last = i == len(self.widths) - 1
            bias = not self.norm or last and self.last_bias
            x = Dense((width,), 1, bias, self.std, self.dtype, name=f"fc{i}")(x)
            x = constrain(x, BATCH, *(None,) * (x.ndim - 1))
            affine = LAST[self.last_norm] if last else (True, True) if self.norm else None
            if affine:
                scale, bias = affine
                x = BatchNorm(scale=scale, bias=bias, dtype=self.dtype, name=f"norm{i}")(x, train)
            x = x if last else act(x)
        return x, {}

    @nn.nowrap
    def flops(self, batch, features):
        """Forward FLOPs of the products for inputs [batch, features]."""
        return 2 * batch * sum(a * b for a, b in zip((features, *self.widths), self.widths))


class Prototypes(nn.Module):
    """Unit vectors [..., D] -> (scores [..., count], {}): cosines with learned prototypes, in float32.

    Parameters kernel [D, count], read as unit vectors whatever its columns' length; with scaled=True scale [count],
    what the cosines are multiplied by, 1 at first (PyTorch's weight_norm: DINO's norm_last_layer=False). std: of the
    kernel's normal initialiser, which decides how fast the vectors turn.
    """

    count: int
    scaled: bool = False
    dtype: Any = jnp.float32
    std: float = 1.0

    @nn.compact
    def __call__(self, x, fixed=False):
        """fixed: bool [], traced perhaps: no gradient reaches the prototypes in this step."""
        held = lambda w: jnp.where(fixed, jax.lax.stop_gradient(w), w)
        kernel = self.param("kernel", nn.initializers.normal(self.std), (x.shape[-1], self.count), jnp.float32)
        unit = l2_normalize(held(kernel).T).T.astype(self.dtype)
        scores = jnp.einsum("...d,dk->...k", x.astype(self.dtype), unit, preferred_element_type=jnp.float32)
        if self.scaled:
            scores = scores * held(self.param("scale", nn.initializers.ones, (self.count,), jnp.float32))
        return constrain(scores, BATCH, *(None,) * (x.ndim - 1)), {}

    @nn.nowrap
    def flops(self, batch, features):
        """Forward FLOPs of the product for inputs [batch, features]."""
        return 2 * batch * features * self.count


def l2_normalize(x):
    """x / |x| along the last axis, in float32; 0 stays 0, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


def centred(x_BxD, mask):
    """(rows minus their mean, float32 [B, D], padding 0; the number of rows []), over what the mask does not leave out.

    The mean is of the whole batch, wherever its rows are.
    """
    x, rows = x_BxD.astype(jnp.float32), jnp.maximum(mask.sum(), 1.0)
    weight = mask[:, None]
    return weight * (x - jnp.sum(weight * x, 0) / rows), rows


def products(a_BxD, b_BxE):
    """float32 [D, E], sum over rows of a b^T; on a mesh each device keeps a part of its lines."""
    return constrain(jnp.einsum("bd,be->de", a_BxD, b_BxE), BATCH, None, partial=True)


def off_diagonal(x_DxD):
    """The matrix with zeros on its diagonal."""
    return jnp.where(jnp.eye(len(x_DxD), dtype=bool), 0.0, x_DxD)


def embedding_std(unit_NxD, mask=None):
    """[] the deviation of unit vectors over rows, mean over dims, times sqrt(D): 0 is collapse, 1 the whole sphere."""
    weight = jnp.ones(len(unit_NxD)) if mask is None else mask
    share = (weight / jnp.maximum(weight.sum(), 1.0))[:, None]
    centred = unit_NxD - jnp.sum(share * unit_NxD, 0)
    deviation = jnp.sqrt(jnp.sum(share * jnp.square(centred), 0))
    return jax.lax.stop_gradient(deviation.mean() * unit_NxD.shape[1] ** 0.5)
