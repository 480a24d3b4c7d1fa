"""AIM: El-Nouby et al. 2024, "Scalable Pre-training of Large Autoregressive Image Models".

Patches in raster order; each is predicted from those before it, the first S, drawn for each picture, see each other:

    loss = mean over patches k > S of mean((predicted - (x_k - mean x_k) / deviation x_k)^2)     (section 3, equation 2)

so that, read from both sides, the encoder has seen both kinds of attention. A residual MLP on each patch makes the
pixels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.layers import Dense
from paradigm.objective import Loss, Term
from paradigm.transformer import MLP
from vision.objectives.masked_images import OneView
from vision.patches import patchify


class ResidualMLP(nn.Module):
    """x + MLP(norm(x)), of the encoder's kind, at this width."""

    encoder: Any
    width: int

    @nn.compact
    def __call__(self, x):
        how = self.encoder.shared(d_model=self.width, d_ff=4 * self.width)
        return x + MLP(**how, out_std=self.encoder.init_std, name="mlp")(self.encoder.make_norm("norm")(x))


class PatchMLP(nn.Module):
    """[B, N, D] -> ([B, N, outputs], {}): D to width, `layers` residual MLPs of it, and a linear layer."""

    encoder: Any
    outputs: int
    width: int = 2048
    layers: int = 12

    @nn.compact
    def __call__(self, x):
        e = self.encoder
        dense = lambda n, name: Dense((n,), 1, True, e.init_std, e.dtype, name=name)
        x = dense(self.width, "embed")(x)
        for i in range(self.layers):
            x = ResidualMLP(e, self.width, name=f"block{i}")(x)
        return dense(self.outputs, "predict")(e.make_norm("norm")(x)), {}

    @nn.nowrap
    def flops(self, tokens):
        """Forward FLOPs of the products for so many patches."""
        return 2 * tokens * self.width * (self.encoder.d_model + self.outputs + self.layers * 8 * self.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AIM(OneView):
    """The next patch from those before it.

    encoder: a ViT without class token and registers, pool='mean'. norm_pixels: targets are normalised patch by patch.
    prefix: whether the first patches, a number uniform in [1, N - 1], see each other; otherwise all is causal.
    head_width, head_layers: of the MLP.
    """

    norm_pixels: bool = True
    prefix: bool = True
    head_width: int = 2048
    head_layers: int = 12

    def __post_init__(self):
        super().__post_init__()
        if self.encoder.prefix:
            raise UserError("AIM reads patches alone: set the encoder's class_token=False, registers=0, pool='mean'")
        if self.patches < 3:
            raise UserError(f"AIM: of {self.patches} patches there is none to see and one to predict: choose more")

    @property
    def head(self):
        e = self.encoder
        return PatchMLP(e, e.patch**2 * e.channels, self.head_width, self.head_layers)

    def modules(self):
        return {**super().modules(), "decoder": (self.head, jnp.zeros((1, self.patches, self.encoder.d_model)))}

    def prefixes(self, keys):
        """int32 [B]: how many patches each picture shows both ways; 1 is the same as none."""
        if not self.prefix:
            return jnp.ones(len(keys), jnp.int32)
        return jax.vmap(lambda key: jax.random.randint(key, (), 1, self.patches))(keys)

    def target(self, images):
        """float32 [B, N, P]."""
        x = patchify(images, self.encoder.patch)
        if not self.norm_pixels:
            return x
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True, ddof=1) + 1e-6)

    def predict(self, variables, images, prefix, keys=None):
        """float32 [B, N - 1, P]: patches 1 to N - 1, each from those before it, and from the prefix."""
        mask = AttentionMask(causal=True, prefix=prefix)
        _, seen, _ = self.apply("encoder", variables, images, attention=mask, keys=keys)
        return self.apply("decoder", variables, seen["patches"][:, :-1])[0].astype(jnp.float32)

    def loss(self, params, extra, batch, ctx):
        images, prefix = self.draw(batch, ctx), self.prefixes(ctx.keys("prefix", batch["index"]))
        predicted = self.predict(self.variables(params, extra), images, prefix, self.dropout_keys(batch, ctx))
        error = jnp.square(predicted - self.target(images)[:, 1:]).mean(-1)
        weight = (jnp.arange(1, self.patches) >= prefix[:, None]) * batch["mask"][:, None]
        return Loss({"pixels": Term(jnp.sum(error * weight), weight.sum())})

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        return {"encoder": self.encoder.flops(rows), "decoder": self.head.flops(rows * (self.patches - 1))}
