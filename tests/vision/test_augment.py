"""Views against PIL, colorsys and loops; crops against torchvision's rule; each example by its own key."""

import colorsys
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from paradigm.errors import UserError
from vision import augment
from vision.augment import Augment
from vision.objectives import MAE, SimCLR
from vision.vit import vit


def pictures(count, size, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def planes(count=6, size=8, seed=0):
    return np.random.default_rng(seed).random((count, 3, size, size), np.float32)


# ---- Geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 32, 32), (4, 10, 20, 12), (7, 3, 6, 9)])
@pytest.mark.parametrize("size", [8, 24])
def test_a_crop_of_whole_pixels_is_resized_as_pil_does_it(name, box, size):
    image = pictures(1, 32) // 2 + 64  # far from the ends of the range, where PIL cuts between its two passes
    left, top, width, height = box
    crop = Image.fromarray(image[0]).crop((left, top, left + width, top + height))
    wanted = np.asarray(crop.resize((size, size), getattr(Image.Resampling, name.upper())), np.float32)
    relative = tuple(jnp.array([x / 32]) for x in box)
    for flip, want in ((False, wanted), (True, wanted[:, ::-1])):
        got = augment.resample(image, relative, size, name, jnp.array([flip]))
        np.testing.assert_allclose(255 * np.moveaxis(got[0], 0, -1), want, atol=1.3)  # PIL rounds twice


def boxes(aspect, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), count=4000):
    draws = jax.random.uniform(jax.random.key(1), (2 * augment.ATTEMPTS + 2, count))
    sizes = draws[2:].reshape(2, augment.ATTEMPTS, count)
    return np.stack(augment.random_box(sizes, draws[:2], jnp.full(count, aspect), scale, ratio))


def torchvision_boxes(aspect, scale, ratio, count):
    """RandomResizedCrop by its loop, on a picture of height 1 and width `aspect`, without rounding."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        for _ in range(10):
            area = aspect * rng.uniform(*scale)
            shape = math.exp(rng.uniform(*np.log(ratio)))
            w, h = math.sqrt(area * shape), math.sqrt(area / shape)
            if w <= aspect and h <= 1:
                found.append((rng.uniform(0, aspect - w) / aspect, rng.uniform(0, 1 - h), w / aspect, h))
                break
        else:
            w, h = (
                (aspect, aspect / ratio[0])
                if aspect < ratio[0]
                else (ratio[1], 1)
                if aspect > ratio[1]
                else (aspect, 1)
            )
            found.append(((1 - w / aspect) / 2, (1 - h) / 2, w / aspect, h))
    return np.array(found).T


@pytest.mark.parametrize(
    "aspect, scale", [(0.4, (0.08, 1.0)), (1.0, (0.08, 1.0)), (2.5, (0.08, 1.0)), (1.0, (0.3, 0.5))]
)
def test_crops_are_distributed_as_torchvisions(aspect, scale):
    left, top, width, height = boxes(aspect, scale)
    assert min(left.min(), top.min()) > -1e-6 and max((left + width).max(), (top + height).max()) < 1 + 1e-6
    shape = width * aspect / height  # in the picture's own geometry
    assert 0.74 < shape.min() < 0.77 and 1.30 < shape.max() < 1.34
    area = width * height
    assert scale[0] - 1e-6 < area.min() and area.max() < scale[1] + 1e-6
    reference = torchvision_boxes(aspect, scale, (3 / 4, 4 / 3), 4000)
    for ours, theirs in zip((left, top, width, height), reference):
        np.testing.assert_allclose(ours.mean(), theirs.mean(), atol=0.02)
        np.testing.assert_allclose(np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(theirs, [0.1, 0.5, 0.9]), atol=0.04)


@pytest.mark.parametrize("aspect, wanted", [(0.25, (0, 1 / 3, 1, 1 / 3)), (4.0, (1 / 3, 0, 1 / 3, 1))])
def test_a_crop_that_cannot_fit_is_the_largest_in_the_middle(aspect, wanted):
    got = boxes(aspect, scale=(0.99, 1.0), count=8)
    np.testing.assert_allclose(got, np.array(wanted)[:, None] * np.ones(8), atol=1e-6)


def test_the_plain_view_is_the_middle_of_the_short_side():
    same = augment.no_views(16)
    image = pictures(2, 16)
    np.testing.assert_allclose(same.undo(same.plain(image, jnp.ones(2))), image / 255, atol=1e-6)
    np.testing.assert_array_equal(same(image, jnp.ones(2), keys(2)), same.plain(image, jnp.ones(2)))
    # A picture 2 wide and 1 high, resized to a square: the middle square is the middle half of the columns.
    wide = augment.no_views(16, mean=(0.0,) * 3, std=(1.0,) * 3).plain(image, jnp.array([2.0, 0.5]))
    part = lambda x, y, w, h: [jnp.array([v / 16]) for v in (x, y, w, h)]
    np.testing.assert_allclose(wide[0], np.moveaxis(augment.resample(image[:1], part(4, 0, 8, 16), 16)[0], 0, -1))
    np.testing.assert_allclose(wide[1], np.moveaxis(augment.resample(image[1:], part(0, 4, 16, 8), 16)[0], 0, -1))
    assert augment.no_views(224).centre == 0.875


# ---- Colour ----------------------------------------------------------------------------------------------------------


def settled(factor, which, count=1):
    """(factors, turn) in which one operation acts and the others do nothing."""
    factors = [jnp.ones(count)] * 3
    if which < 3:
        factors[which] = jnp.full(count, factor)
    return factors, jnp.full(count, factor if which == 3 else 0.0)


@pytest.mark.parametrize("which, name", [(0, "Brightness"), (1, "Contrast"), (2, "Color")])
@pytest.mark.parametrize("factor", [0.3, 1.6])
def test_blends_are_pils(which, name, factor):
    image = pictures(1, 16)
    wanted = getattr(ImageEnhance, name)(Image.fromarray(image[0])).enhance(factor)
    order = jnp.arange(4)[:, None]
    got = augment.jitter(jnp.moveaxis(image, -1, 1) / 255.0, *settled(factor, which), order)
    np.testing.assert_allclose(255 * np.moveaxis(got[0], 0, -1), np.asarray(wanted), atol=1.51)  # PIL cuts fractions


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 0.4])
def test_hue_is_turned_in_hsv(turn):
    x = planes(1)
    x[0, :, 0] = 0.5  # grey has no hue
    x[0, :, 1, 0] = 0.0, 0.7, 0.7  # two channels largest
    got = augment.turn_hue(x, jnp.array([turn]))

    def by_hand(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)

    np.testing.assert_allclose(got[0], np.apply_along_axis(by_hand, 0, x[0]), atol=1e-5)


def test_every_order_of_the_jitter():
    x = jnp.repeat(planes(1), 24, axis=0)
    factors, turn = [0.5, 1.9, 1.8], 0.3
    orders = np.array(list(itertools.permutations(range(4))))  # which happens first, second ...
    when = jnp.array(np.argsort(orders, axis=1).T)
    got = augment.jitter(x, [jnp.full(24, f) for f in factors], jnp.full(24, turn), when)
    assert len(np.unique(np.asarray(got).reshape(24, -1).round(4), axis=0)) > 12
    for row, order in zip(got, orders):
        y = x[:1]
        for which in order:  # one at a time
            y = augment.jitter(y, *settled(turn if which == 3 else factors[which], which), jnp.arange(4)[:, None])
        np.testing.assert_allclose(row, y[0], atol=1e-5)


def test_blur_is_a_gaussian_that_ends_at_the_border():
    x = planes(3, 9)
    sigma = np.array([0.0, 0.7, 2.0])
    got = augment.blur(x, jnp.array(sigma))
    np.testing.assert_allclose(got[0], x[0], atol=1e-6)
    for n, y, z in ((1, 0, 4), (2, 8, 8), (2, 3, 1)):
        at = np.arange(9)
        weight = np.exp(-((at[:, None] - y) ** 2 + (at - z) ** 2) / (2 * sigma[n] ** 2))
        np.testing.assert_allclose(got[n, :, y, z], (x[n] * weight).sum((1, 2)) / weight.sum(), rtol=1e-5)


def test_solarise_is_pils():
    image = pictures(1, 16)
    got = augment.solarise(image / 255)
    np.testing.assert_allclose(255 * got, np.asarray(ImageOps.solarize(Image.fromarray(image[0])))[None], atol=1e-3)


# ---- The whole -------------------------------------------------------------------------------------------------------

ALL = Augment(12, jitter=0.5, strength=(0.4, 0.4, 0.2, 0.1), grey=0.5, blur=0.5, solarise=0.5)


def test_a_view_is_a_function_of_its_examples_key():
    image, aspect, by = pictures(6, 16), jnp.linspace(0.5, 2.0, 6), keys(6)
    view = jax.jit(ALL)
    whole = view(image, aspect, by)
    assert whole.shape == (6, 12, 12, 3) and whole.dtype == jnp.float32
    turned = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(view(image[turned], aspect[turned], by[turned]), whole[turned], atol=1e-5)
    np.testing.assert_allclose(view(image[2:4], aspect[2:4], by[2:4]), whole[2:4], atol=1e-5)
    assert np.abs(view(image, aspect, keys(6, seed=1)) - whole).max(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("name", ["flip", "jitter", "grey", "blur", "solarise"])
def test_each_operation_happens_as_often_as_its_probability(name):
    count = 400
    image = np.repeat(pictures(1, 8), count, axis=0)
    still = Augment(8, crop="centre", centre=1.0, flip=0.0, strength=(0.4, 0.4, 0.2, 0.1), sigma=(1.0, 1.0))
    apply = lambda a: np.asarray(jax.jit(a)(image, jnp.ones(count), keys(count)))
    changed = np.abs(apply(dataclasses.replace(still, **{name: 0.3})) - apply(still)).max((1, 2, 3)) > 1e-4
    assert 0.23 < changed.mean() < 0.37


def test_the_order_of_grey_and_jitter():
    after = Augment(8, crop="centre", flip=0.0, jitter=1.0, strength=(0.0, 0.0, 0.0, 0.4), grey=1.0)
    before = dataclasses.replace(after, grey_first=True)
    image, by = pictures(4, 8), keys(4)
    grey = dataclasses.replace(after, jitter=0.0)(image, jnp.ones(4), by)
    np.testing.assert_allclose(before(image, jnp.ones(4), by), grey, atol=1e-5)  # grey has no hue to turn
    assert np.abs(after(image, jnp.ones(4), by) - grey).max() > 0.01


def test_grey_pictures_have_brightness_and_contrast_alone():
    image = pictures(4, 16, channels=1)
    view = ALL(image, jnp.ones(4), keys(4))
    assert view.shape == (4, 12, 12, 1)
    np.testing.assert_allclose(ALL.undo(view), view * 0.5 + 0.5)
    colourless = dataclasses.replace(ALL, jitter=1.0, strength=(0.0, 0.0, 0.4, 0.4))
    still = dataclasses.replace(ALL, jitter=0.0)
    np.testing.assert_allclose(colourless(image, jnp.ones(4), keys(4)), still(image, jnp.ones(4), keys(4)), atol=1e-5)


def test_recipes_have_their_papers_numbers():
    both = augment.moco_v3_views(224)
    assert [(v.blur, v.solarise, v.scale) for v in both] == [(1.0, 0.0, (0.08, 1.0)), (0.1, 0.2, (0.08, 1.0))]
    assert augment.simclr_views(32, strength=0.5, blur=0.0).strength == (0.4, 0.4, 0.4, 0.1)
    assert augment.simclr_views(224).mean == () and augment.simclr_views(224, flip=0.0).flip == 0.0
    assert augment.moco_v1_views(224).grey_first and not augment.moco_v2_views(224).grey_first
    assert augment.mae_views(224).scale == (0.2, 1.0) and augment.mae_views(32).centre == 1.0
    byol, dino, swav = augment.byol_views(224), augment.dino_views(224), augment.swav_views(224)
    assert {v.filter for v in byol} == {"bicubic"} and [v.blur for v in byol] == [1.0, 0.1]
    assert [v.scale for v in dino[:2]] == [(0.4, 1.0)] * 2 and dino[2][0].scale == (0.05, 0.4)
    assert dino[2][1] == 8 and (dino[2][0].size, dino[2][0].blur, dino[2][0].solarise) == (96, 0.5, 0.0)
    assert [(v.scale, n) for v, n in swav] == [((0.14, 1.0), 2), ((0.05, 0.14), 6)]
    assert augment.dino_views(224, local=0) == augment.byol_views(224, scale=(0.4, 1.0))
    image = pictures(2, 20)
    for views in (augment.simclr_views(16), augment.moco_v1_views(16), *augment.moco_v3_views(16)):
        assert np.isfinite(views(image, jnp.ones(2), keys(2))).all()


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"flip": 1.5}, r"Augment.flip=1.5 is a probability"),
        ({"scale": (0.5, 0.2)}, r"Augment.scale=\(0.5, 0.2\) must be two rising positive numbers"),
        ({"scale": (0.5, 2.0)}, "parts of a picture: <= 1"),
        ({"strength": (0.4, 0.4)}, "must be 4 numbers"),
        ({"filter": "cubic"}, "did you mean 'bicubic'"),
        ({"crop": "center"}, "did you mean 'centre'"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(UserError, match=text):
        Augment(8, **settings)


def test_moments_of_other_channels():
    with pytest.raises(UserError, match="not for pictures of 1 channels: give 1 numbers each"):
        Augment(8, mean=(0.5,) * 3, std=(0.5,) * 3).plain(pictures(1, 8, channels=1), jnp.ones(1))


def test_views_without_a_size_have_the_encoders():
    for size, centre in ((96, 1.0), (112, 0.875)):
        encoder = vit("tiny", size, 16, d_model=16, heads=2, d_ff=32, layers=1)
        plain = MAE(encoder=encoder, augment=augment.mae_views())
        assert plain == MAE(encoder=encoder, augment=augment.mae_views(size), host_image_size=size)
        assert (plain.augment.size, plain.augment.centre, plain.host_image_size) == (size, centre, size)
        pair = SimCLR(encoder=encoder, augment=augment.moco_v3_views(), host_image_size=256)
        assert [(v.size, v.centre) for v in pair.views] == [(size, centre)] * 2 and pair.host_image_size == 256
        assert pair.augment == augment.moco_v3_views(size)
    small = SimCLR(encoder=encoder, augment=augment.simclr_views(32, centre=0.5))
    assert (small.augment.size, small.augment.centre, small.host_image_size) == (32, 0.5, 112)
    image, aspect = jnp.zeros((2, 8, 8, 3), jnp.uint8), jnp.ones(2)
    for view in (augment.no_views().plain, lambda *rest: Augment()(*rest, keys(2))):
        with pytest.raises(UserError, match="^Augment.size is not set: an objective gives it its encoder's"):
            view(image, aspect)
