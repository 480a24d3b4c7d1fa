"""RandAugment (Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space") as
DeiT has it: Touvron et al. 2021, table 9; rand-m9-mstd0.5-inc1 of timm, data/auto_augment.py.

Of 15 operations `layers` are drawn; each is done with probability 0.5, at a strength m ~ N(magnitude, std) in [0, 10]:

    AutoContrast  Equalize  Invert                                    nothing to set
    Rotate        +-3 m degrees       ShearX, ShearY     +-0.03 m     TranslateX, TranslateY   +-0.045 m of the side
    Posterize     4 - [0.4 m] bits    Solarize           from 256 - [25.6 m] on inverted
    SolarizeAdd   [11 m] added below 128                 Color, Contrast, Brightness, Sharpness   blends by 1 +- 0.09 m

Pixels are 256ths where an operation asks for them, and otherwise not rounded. What is moved is bilinear here, bicubic
there; what comes in from outside has ImageNet's mean colour.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from paradigm.errors import UserError

OPERATIONS = ("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color",
              "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")  # fmt: skip
FILL = (0.485, 0.456, 0.406)
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as in PIL


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Planes [B, 3, H, W] in [0, 1] -> the same, some operations later."""

    layers: int = 2
    magnitude: float = 9.0
    std: float = 0.5
    probability: float = 0.5

    def __post_init__(self):
        if self.layers < 1 or not 0 <= self.magnitude <= 10 or self.std < 0 or not 0 <= self.probability <= 1:
            raise UserError(
                f"RandAugment: layers={self.layers}, magnitude={self.magnitude}, std={self.std}, probability="
                f"{self.probability}: take 1 layer or more, a magnitude from 0 to 10 and a probability"
            )

    def __call__(self, x, keys):
        def one(key, x):
            for i in range(self.layers):
                which, done, strength, sign = jax.random.split(jax.random.fold_in(key, i), 4)
                m = jnp.clip(self.magnitude + self.std * jax.random.normal(strength), 0.0, 10.0)
                m = m / 10 * jnp.where(jax.random.bernoulli(sign), 1.0, -1.0)
                chosen = jax.random.randint(which, (), 0, len(OPERATIONS))
                x = jnp.where(jax.random.bernoulli(done, self.probability), operate(chosen, x, m), x)
            return x

        return jax.vmap(one)(keys, x)


def operate(which, x, m):
    """x [3, H, W] after the operation of this number. m: strength in [-1, 1], of which some read the size alone."""
    functions = [_OPERATIONS[name] for name in OPERATIONS]
    return jax.lax.switch(which, [lambda x, m, f=f: jnp.clip(f(x, m), 0.0, 1.0) for f in functions], x, m)


def levels(x):
    """Pixels as 0 .. 255."""
    return jnp.floor(x * 255 + 0.5)


def luma(x):
    return sum(w * x[i : i + 1] for i, w in enumerate(GREY))


def blend(x, other, m):
    return other + jnp.maximum(0.1, 1 + 0.9 * m) * (x - other)


def autocontrast(x, m):
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    return jnp.where(high > low, (x - low) / jnp.where(high > low, high - low, 1.0), x)


def equalize(x, m):
    """PIL's ImageOps.equalize: each channel's levels by their cumulated histogram."""

    def channel(x):
        at = levels(x).astype(jnp.int32)
        histogram = jnp.zeros(256, jnp.int32).at[at].add(1)
        last = histogram[jnp.max(jnp.where(histogram > 0, jnp.arange(256), 0))]
        step = (histogram.sum() - last) // 255
        table = (step // 2 + jnp.cumsum(histogram) - histogram) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.minimum(table, 255)[at] / 255.0, x)

    return jax.vmap(channel)(x)


def posterize(x, m):
    shift = 2.0 ** (8 - (4 - jnp.floor(4 * jnp.abs(m))))
    return jnp.floor(levels(x) / shift) * shift / 255.0


def solarize(x, m):
    return jnp.where(levels(x) < 256 - jnp.floor(256 * jnp.abs(m)), x, 1.0 - x)


def solarize_add(x, m):
    return jnp.where(levels(x) < 128, x + jnp.minimum(128.0, jnp.floor(110 * jnp.abs(m))) / 255.0, x)


def sharpness(x, m):
    """A blend with PIL's SMOOTH: the mean of 3 x 3, the middle five times, borders as they are."""
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = x.at[:, 1:-1, 1:-1].set((around + 4 * x[:, 1:-1, 1:-1]) / 13)
    return blend(x, smooth, m)


def move(x, a, b, c, d, e, f):
    """As PIL's AFFINE: at column u and row v is what stood at (a u + b v + c, d u + e v + f); pixels' middles are half
    a pixel from the corner."""
    height, width = x.shape[1:]
    v, u = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    places = d * u + e * v + f - 0.5, a * u + b * v + c - 0.5
    fill = jnp.array(FILL)[:, None, None]
    return fill + jax.vmap(lambda plane: map_coordinates(plane, places, 1, mode="constant"))(x - fill)


def rotate(x, m):
    turn, (height, width) = jnp.deg2rad(30 * m), x.shape[1:]
    cos, sin, u, v = jnp.cos(turn), jnp.sin(turn), width / 2, height / 2
    return move(x, cos, -sin, u - cos * u + sin * v, sin, cos, v - sin * u - cos * v)


_OPERATIONS = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": lambda x, m: 1.0 - x,
    "rotate": rotate,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": lambda x, m: blend(x, luma(x), m),
    "contrast": lambda x, m: blend(x, luma(x).mean(), m),
    "brightness": lambda x, m: blend(x, 0.0, m),
    "sharpness": sharpness,
    "shear_x": lambda x, m: move(x, 1.0, 0.3 * m, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda x, m: move(x, 1.0, 0.0, 0.0, 0.3 * m, 1.0, 0.0),
    "translate_x": lambda x, m: move(x, 1.0, 0.0, 0.45 * m * x.shape[2], 0.0, 1.0, 0.0),
    "translate_y": lambda x, m: move(x, 1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * m * x.shape[1]),
}
