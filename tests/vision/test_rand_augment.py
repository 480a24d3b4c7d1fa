"""RandAugment: each operation beside Pillow's, which timm calls, and how operations are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from paradigm.errors import UserError
from vision.augment import Augment
from vision.rand_augment import FILL, OPERATIONS, RandAugment, operate

DRAW = np.random.default_rng(0)
PIXELS = np.uint8(np.clip(DRAW.normal(120, 50, (20, 24, 3)), 15, 225))
IMAGE = Image.fromarray(PIXELS)
FILLING = tuple(round(255 * x) for x in FILL)
M = 0.93
affine = lambda *how: IMAGE.transform(
    IMAGE.size, Image.Transform.AFFINE, how, Image.Resampling.BILINEAR, fillcolor=FILLING
)
enhance = lambda kind: kind(IMAGE).enhance(1 + 0.9 * M)
THEIRS = {
    "autocontrast": lambda: ImageOps.autocontrast(IMAGE),
    "equalize": lambda: ImageOps.equalize(IMAGE),
    "invert": lambda: ImageOps.invert(IMAGE),
    "rotate": lambda: IMAGE.rotate(30 * M, Image.Resampling.BILINEAR, fillcolor=FILLING),
    "posterize": lambda: ImageOps.posterize(IMAGE, 4 - int(4 * M)),
    "solarize": lambda: ImageOps.solarize(IMAGE, 256 - int(256 * M)),
    "solarize_add": lambda: IMAGE.point(
        [min(255, i + min(128, int(110 * M))) if i < 128 else i for i in range(256)] * 3
    ),
    "color": lambda: enhance(ImageEnhance.Color),
    "contrast": lambda: enhance(ImageEnhance.Contrast),
    "brightness": lambda: enhance(ImageEnhance.Brightness),
    "sharpness": lambda: enhance(ImageEnhance.Sharpness),
    "shear_x": lambda: affine(1, 0.3 * M, 0, 0, 1, 0),
    "shear_y": lambda: affine(1, 0, 0, 0.3 * M, 1, 0),
    "translate_x": lambda: affine(1, 0, 0.45 * M * 24, 0, 1, 0),
    "translate_y": lambda: affine(1, 0, 0, 0, 1, 0.45 * M * 20),
}
run = jax.jit(operate)
planes = lambda pixels: jnp.asarray(np.moveaxis(np.float32(pixels) / 255, -1, 0))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name):
    """To a level or two, since nothing is rounded here; where it interpolates, at the picture's edge aside."""
    found = np.moveaxis(np.asarray(run(OPERATIONS.index(name), planes(PIXELS), M)), 0, -1) * 255
    off = np.abs(found - np.float32(THEIRS[name]())).max(-1)
    moves = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    assert np.mean(off <= 2.5) > (0.9 if moves else 0.999), (name, np.mean(off <= 2.5), off.max())
    assert np.abs(found - PIXELS).max() > 10, "it did something"


def test_what_is_drawn():
    """Nothing with probability 0; with 1 and one layer any of the operations, by an example's own key alone."""
    small = planes(PIXELS[:8, :8])
    x, keys = jnp.broadcast_to(small, (96, 3, 8, 8)), jax.random.split(jax.random.key(0), 96)
    np.testing.assert_array_equal(RandAugment(probability=0.0)(x[:4], keys[:4]), x[:4])
    found = np.asarray(jax.jit(RandAugment(layers=1, std=0.0, magnitude=5.0, probability=1.0))(x, keys))
    again = jax.jit(lambda kinds, signs: jax.vmap(lambda k, s: operate(k, small, 0.5 * s))(kinds, signs))
    kinds = np.asarray(again(jnp.tile(jnp.arange(15), 2), jnp.repeat(jnp.array([-1.0, 1.0]), 15)))
    near = np.abs(found[:, None] - kinds[None]).max((2, 3, 4))
    assert np.all(near.min(1) < 1e-5) and len(set(near.argmin(1) % 15)) > 12


def test_a_view_is_augmented_in_training_alone():
    images, aspect = np.broadcast_to(PIXELS[None, :20, :20], (4, 20, 20, 3)), np.ones(4, np.float32)
    keys = jax.random.split(jax.random.key(1), 4)
    plain = Augment(16, crop="centre", flip=0.0, centre=None)
    rand = Augment(16, crop="centre", flip=0.0, centre=None, rand=RandAugment(probability=1.0))
    np.testing.assert_array_equal(rand.plain(images, aspect), plain.plain(images, aspect))
    assert np.all(np.abs(np.asarray(rand(images, aspect, keys)) - plain(images, aspect, keys)).max((1, 2, 3)) > 0.05)


def grey():
    keys = jax.random.split(jax.random.key(0), 1)
    return Augment(8, rand=RandAugment())(np.zeros((1, 8, 8, 1), np.uint8), np.ones(1), keys)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: RandAugment(magnitude=11), "magnitude=11, std=0.5, probability=0.5: take 1 layer or more, a magnitud"),
        (grey, "Augment.rand is for pictures of 3 channels, and these have 1"),
    ],
)
def test_what_a_person_can_set_wrong(make, text):
    with pytest.raises(UserError, match=text):
        make()
