"""Residual networks, He et al. 2015, "Deep Residual Learning", in the form that torchvision calls v1.5.

The stride of a bottleneck is in its 3 x 3 convolution; images are channels last. Parameter paths:

    stem/conv/kernel [7, 7, C, 64], stem/norm/{scale, bias} [64]      [3, 3, C, 64] with stem="small"
    stageI_blockJ/{first, second, third}/conv/kernel [h, w, in, out], .../norm/{scale, bias} [out]
    stageI_blockJ/shortcut/...                                        where shape or resolution changes

`batch_stats` and `moments` hold .../norm/{mean, var}. Every call returns (pooled [B, D], {"stages": each stage's output
[B, h, w, D of the stage]}).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.errors import UserError, build, choose
from paradigm.partition import BATCH, constrain
from vision.norms import BatchNorm


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, perhaps ReLU: [B, h, w, in] -> [B, h / stride, w / stride, out].

    Padded by (size - 1) / 2 on every side. He initialisation of the outputs, as torchvision: normal of deviation
    sqrt(2 / (size * size * out)).
    """

    features: int
    size: int
    stride: int = 1
    relu: bool = True
    zero: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        first = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        x = Conv(self.features, self.size, self.stride, first, self.dtype, name="conv")(x)
        x = BatchNorm(zero=self.zero, dtype=self.dtype, name="norm")(x, train)
        return jax.nn.relu(x) if self.relu else x


class Conv(nn.Module):
    """A convolution with a kernel [size, size, in, out], padded by (size - 1) / 2; its output lies over the batch."""

    features: int
    size: int
    stride: int
    first: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.first, shape, jnp.float32).astype(self.dtype)
        pad, stride = (self.size - 1) // 2, (self.stride, self.stride)
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, stride, [(pad, pad)] * 2, dimension_numbers=numbers
        )
        return constrain(y, BATCH, None, None, None)


class Block(nn.Module):
    """x + branch(x), then ReLU. The branch: two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1 with a fourth inside."""

    features: int
    stride: int
    bottleneck: bool
    zero_init: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        conv = lambda name, *args, **how: ConvNorm(*args, **how, dtype=self.dtype, name=name)
        last = {"relu": False, "zero": self.zero_init}
        if self.bottleneck:
            y = conv("first", self.features // 4, 1)(x, train)
            y = conv("second", self.features // 4, 3, self.stride)(y, train)
            y = conv("third", self.features, 1, **last)(y, train)
        else:
            y = conv("first", self.features, 3, self.stride)(x, train)
            y = conv("second", self.features, 3, **last)(y, train)
        if x.shape != y.shape:
            x = conv("shortcut", self.features, 1, self.stride, relu=False)(x, train)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """Images [B, H, W, C] -> (mean over the last stage's places [B, D], intermediates).

    depths: blocks of each stage; widths double and resolutions halve from one to the next. bottleneck: which Block.
    width: factor on every width. channels: C. image_size: nominal, for FLOPs; any size is read.
    stem: imagenet, 7 x 7 of stride 2 and max pooling, or small, 3 x 3 alone (SimCLR, appendix B.9: CIFAR).
    zero_init: the last norm of each branch starts at 0 (Goyal et al. 2017, section 5.1), as in SimCLR and MoCo v3; MoCo
        v1 and v2 start it at 1.
    """

    depths: tuple
    bottleneck: bool
    width: float = 1.0
    stem: str = "imagenet"
    channels: int = 3
    image_size: int = 224
    zero_init: bool = True
    dtype: Any = jnp.float32

    has_batch_norm = True
    grid = None  # of patches: there are none
    is_random = False  # no dropout, no stochastic depth

    @nn.nowrap
    def widths(self):
        """Outputs of the stem and of each stage."""
        base = int(64 * self.width)
        return base, *(base * 2**i * (4 if self.bottleneck else 1) for i in range(len(self.depths)))

    @property
    def features(self):
        """D of the pooled output."""
        return self.widths()[-1]

    @nn.compact
    def __call__(self, images, *, train=False, keys=None):
        """images float32 [B, H, W, C] -> (pooled [B, D], {"stages": tuple of [B, h, w, D of the stage]}).

        Args:
            train: normalise by the batch's moments (apply with mutable=["moments"] to have them).
            keys: taken for the sake of one signature for all encoders; there is no dropout here.

        Raises:
            UserError: an image of other channels, or an unknown stem.
        """
        del keys
        choose("stem", self.stem, STEMS)
        if images.shape[-1] != self.channels:
            raise UserError(f"images of {images.shape[-1]} channels, and the ResNet reads {self.channels}")
        base, *widths = self.widths()
        size, stride, pool = STEMS[self.stem]
        x = ConvNorm(base, size, stride, dtype=self.dtype, name="stem")(images, train)
        if pool:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        stages = []
        for i, (depth, features) in enumerate(zip(self.depths, widths)):
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                block = Block(features, stride, self.bottleneck, self.zero_init, self.dtype, name=f"stage{i}_block{j}")
                x = block(x, train)
            stages.append(x)
        return jnp.mean(x, (1, 2)), {"stages": tuple(stages)}

    @nn.nowrap
    def flops(self, batch, image_size=None):
        """Forward FLOPs of the convolutions, 2 for each tap, the padding's too, as ResNets' are usually counted."""
        size, stride, pool = STEMS[self.stem]
        base, *widths = self.widths()
        conv = lambda side, size, into, out: 2 * batch * side**2 * size**2 * into * out
        side = math.ceil((self.image_size if image_size is None else image_size) / stride)
        total, into = conv(side, size, self.channels, base), base
        side = math.ceil(side / 2) if pool else side
        for i, (depth, out) in enumerate(zip(self.depths, widths)):
            for j in range(depth):
                before, side = side, math.ceil(side / 2) if i > 0 and j == 0 else side
                if self.bottleneck:
                    inner = out // 4
                    total += conv(before, 1, into, inner) + conv(side, 3, inner, inner) + conv(side, 1, inner, out)
                else:
                    total += conv(side, 3, into, out) + conv(side, 3, out, out)
                if before != side or into != out:
                    total += conv(side, 1, into, out)
                into = out
        return total


# Kernel and stride of the first convolution, and whether pooling follows it.
STEMS = {"imagenet": (7, 2, True), "small": (3, 1, False)}

# Blocks of each stage, and whether they are bottlenecks: He et al. 2015, table 1; `tiny` is this project's.
RESNETS = {
    "tiny": ((1, 1, 1), False),
    "18": ((2, 2, 2, 2), False),
    "50": ((3, 4, 6, 3), True),
}


def resnet(depth, **overrides: Any):
    """A ResNet by name.

    Args:
        depth: 18, 50, or tiny (three basic blocks of a quarter of the width, small stem, 32 pixels).
        overrides: any field of ResNet.

    Raises:
        UserError: an unknown depth, field or stem (the nearest is named), or a width that is not whole.
    """
    depths, bottleneck = choose("ResNet depth", str(depth).lower(), RESNETS)
    fields = {"depths": depths, "bottleneck": bottleneck}
    if str(depth).lower() == "tiny":
        fields |= {"width": 0.25, "stem": "small", "image_size": 32}
    if "depths" in overrides:
        overrides["depths"] = tuple(overrides["depths"])
    model = build(ResNet, fields, overrides)
    choose("stem", model.stem, STEMS)
    if model.width <= 0 or 64 * model.width % 1:
        near = max(1, round(64 * model.width)) / 64
        raise UserError(f"a ResNet of width {model.width} would have {64 * model.width:g} channels: choose {near:g}")
    return model
