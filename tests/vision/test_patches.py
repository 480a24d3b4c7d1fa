"""Patches and positions: order, inverse, formulas written out, interpolation, mistakes."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from paradigm.errors import UserError
from vision import patches


def test_patches_are_in_reading_order():
    """Element (row, column, channel) of patch (i, j) is the pixel of that place."""
    x = np.arange(2 * 6 * 9 * 2).reshape(2, 6, 9, 2)
    y = patches.patchify(x, 3)
    assert y.shape == (2, 6, 18)
    for b, i, j, row, column, c in np.ndindex(2, 2, 3, 3, 3, 2):
        assert y[b, 3 * i + j, (row * 3 + column) * 2 + c] == x[b, 3 * i + row, 3 * j + column, c]
    assert np.array_equal(patches.unpatchify(y, 3, (6, 9, 2)), x)


def test_sincos_is_the_formula():
    width, rows, columns = 12, 3, 4
    table = patches.sincos(width, rows, columns)
    for i, j, k in np.ndindex(rows, columns, width // 4):
        f = 10000.0 ** (-k / (width // 4))
        wanted = [math.sin(j * f), math.cos(j * f), math.sin(i * f), math.cos(i * f)]  # the column comes first
        assert table[i * columns + j, k :: width // 4] == pytest.approx(wanted, abs=1e-6)


def test_sincos_of_another_grid_covers_the_same_square():
    """Twice as many patches a side: each old centre is the middle of four new ones; and the ends mirror each other."""
    nominal, fine = patches.sincos(8, 4, 4), patches.sincos(8, 8, 8, (4, 4)).reshape(8, 8, 8)
    assert np.array_equal(patches.sincos(8, 4, 4, (4, 4)), nominal)
    x = np.arcsin(fine[0, :4, 0])  # sin of x at frequency 1, which is monotonous below 1.57
    assert x == pytest.approx([-0.25, 0.25, 0.75, 1.25], abs=1e-5)
    resized = np.asarray(patches.resize_table(jnp.asarray(nominal), (4, 4), (8, 8))).reshape(8, 8, 8)
    assert np.abs(resized - fine)[2:-2, 2:-2].max() < 0.1  # what interpolation would approximate
    assert np.abs(np.roll(resized, 1, 0) - fine)[2:-2, 2:-2].max() > 0.2


def test_resizing_a_table():
    """Constants stay, ramps nearly so (exactly at a = -0.5, not torch's), the grid's orientation is kept."""
    rows, columns = np.meshgrid(np.arange(6.0), np.arange(5.0), indexing="ij")
    ramp = jnp.asarray(np.stack([rows, columns, np.ones_like(rows)], -1).reshape(30, 3), jnp.float32)
    assert patches.resize_table(ramp, (6, 5), (6, 5)) is ramp
    y = np.asarray(patches.resize_table(ramp, (6, 5), (12, 20))).reshape(12, 20, 3)
    assert y[..., 2] == pytest.approx(np.ones((12, 20)), abs=1e-6)
    assert y[4:-4, 0, 0] == pytest.approx((np.arange(12)[4:-4] + 0.5) / 2 - 0.5, abs=0.05)
    assert y[0, 8:-8, 1] == pytest.approx((np.arange(20)[8:-8] + 0.5) / 4 - 0.5, abs=0.05)
    assert (np.diff(y[:, 0, 0]) > 0).all() and np.abs(np.diff(y[:, 0, 1])).max() < 1e-5


@pytest.mark.parametrize("new", [(3, 2), (12, 20), (4, 9), (1, 1)])
def test_antialiased_resizing_is_that_of_images(new):
    """Torch's antialiased bicubic is Pillow's, which resizes planes of floats."""
    table = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    found = patches.resize_table(jnp.asarray(table.reshape(30, 2)), (6, 5), new, antialias=True)
    planes = [Image.fromarray(table[..., i]).resize(new[::-1], Image.Resampling.BICUBIC) for i in range(2)]
    np.testing.assert_allclose(np.asarray(found).reshape(*new, 2), np.stack(planes, -1), atol=1e-5)


def test_mistakes():
    with pytest.raises(UserError, match="30 x 6 is smaller than a patch of 8 x 8: choose a larger image_size"):
        patches.patchify(np.zeros((1, 30, 6, 3)), 8)
    with pytest.raises(UserError, match="a width divisible by 4, and it is 126: choose 128, or 'learned'"):
        patches.sincos(126, 2, 2)
