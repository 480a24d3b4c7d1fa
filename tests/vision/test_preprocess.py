import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from paradigm.dataset import Dataset
from paradigm.errors import UserError
from tests.vision import tiny
from tests.vision.pictures import encoded, folder, opened, pixels
from tests.vision.test_simclr import simclr
from vision.ask import pictures
from vision.objectives import Classify
from vision.preprocess import PreprocessImage, resize_to_square


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def ramp(height, width):
    """A smooth picture: red grows to the right, green downwards, blue is flat."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 99)], -1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(16, 16), (30, 20), (7, 50), (1, 1), (32, 48)])
def test_every_shape_becomes_one_shape_and_its_aspect_is_kept(shape):
    made = PreprocessImage(16, 3)({"image": picture(*shape), "label": 5, "caption": "x"}, None, 0, True)
    assert set(made) == {"image", "aspect", "label"}
    assert made["image"].shape == (16, 16, 3) and made["image"].dtype == np.uint8
    assert made["aspect"] == np.float32(shape[1] / shape[0]) and made["aspect"].dtype == np.float32
    assert made["label"] == 5 and made["label"].dtype == np.int32


def test_no_part_of_the_picture_is_lost():
    small = resize_to_square(ramp(90, 40), 10)
    wanted = ramp(1000, 1000).reshape(10, 100, 10, 100, 3).mean((1, 3))
    assert np.abs(small - wanted).max() < 8  # corners included: a crop would lose the ends of the ramps
    assert np.abs(resize_to_square(ramp(7, 5), 20)[-1, -1, :2].astype(int) - 255).max() < 12


def test_shrinking_does_not_alias_and_is_exact_where_pixels_divide():
    checks = np.indices((60, 90)).sum(0).astype(np.uint8)[:, :, None] % 2 * 200
    for size in (15, 17):  # exact, and not
        assert np.abs(resize_to_square(checks, size).astype(int) - 100).max() <= 25, size
    assert (np.diff(resize_to_square(ramp(5, 5), 20)[10, :, 0]) > 0).sum() > 12, "smooth where it grows"
    image = picture(32, 48)
    means = image.reshape(8, 4, 8, 6, 3).mean((1, 3))
    assert np.abs(resize_to_square(image, 8) - means).max() <= 1
    assert (
        resize_to_square(image[:32, :32], 32) is not None
        and (resize_to_square(image[:32, :32], 32) == image[:32, :32]).all()
    )


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_are_resized_one_by_one(channels):
    image = picture(20, 30, channels)
    made = PreprocessImage(7, channels)({"image": image}, None, 0, False)
    assert made["image"].shape == (7, 7, channels) and made["label"] == -1
    for c in range(channels):
        alone = resize_to_square(np.repeat(image[:, :, c : c + 1], 3, axis=2), 7)
        assert (made["image"][:, :, c] == alone[:, :, 0]).all()
    if channels == 1:
        assert (PreprocessImage(7, 1)({"image": image[:, :, 0]}, None, 0, False)["image"] == made["image"]).all()


def test_a_picture_that_does_not_fit_is_named():
    with pytest.raises(
        UserError, match=r"^pictures have 1 channels and the encoder reads 3: set ImageData.channels = 3"
    ):
        PreprocessImage(8, 3)({"image": picture(9, 9, 1)}, None, 0, True)
    for bad in (picture(4, 4).astype(np.float32), np.zeros((0, 5, 3), np.uint8), np.zeros(5, np.uint8)):
        with pytest.raises(UserError, match=r"a picture is \w+ \[.*\]: sources give uint8 \[height, width, channels\]"):
            PreprocessImage(8, 3)({"image": bad}, None, 0, True)


class Pictures(list):
    fingerprint = "pictures"


def test_it_prepares_batches_in_workers():
    preprocess = pickle.loads(pickle.dumps(PreprocessImage(8, 3)))
    assert preprocess == PreprocessImage(8, 3) and hash(preprocess) == hash(PreprocessImage(8, 3))
    source = Pictures({"image": picture(9 + i, 12, seed=i), "label": i} for i in range(5))
    batch = Dataset(source, preprocess, 4, train=False).batch(1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((4, 8, 8, 3), "uint8"), "aspect": ((4,), "float32"), "label": ((4,), "int32"),
        "index": ((4, 2), "uint32"), "mask": ((4,), "float32"),
    }  # fmt: skip
    assert batch["label"][0] == 4 and batch["mask"].tolist() == [1, 0, 0, 0]
    code = "import vision.preprocess, vision.data, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("make", [simclr, lambda: Classify(encoder=tiny.encoder(), augment=tiny.views(), classes=2)])
def test_pictures_that_are_read_far_smaller_are_told(make, tmp_path):
    """Large photographs in a run for digits: most of what they show is lost without a word."""
    files = {f"{'ab'[i % 2]}/{i}.png": pixels(i, 70, 96) for i in range(8)} | {"a/x.png": b"broken"}
    prepared, objective = opened(folder(tmp_path / "d", files)), make()
    [line] = objective.check_data(prepared)
    assert line.startswith("warning: pictures of about 96 pixels a side (")
    assert line.endswith(
        f" are read at {objective.host_image_size}: make the encoder's image_size larger, unless that is meant"
    )
    assert not dataclasses.replace(objective, host_image_size=32).check_data(prepared)


def test_pictures_of_few_bits_in_many_are_told(tmp_path):
    """Of 12 bits in 16, as microscopes write them: read as 16, they are nearly black."""
    deep = np.random.default_rng(0).integers(0, 4096, (6, 9)).astype(np.uint16)
    for scale in (1, 16):
        files = {f"{'ab'[i % 2]}/{i}.png": encoded(deep * scale) for i in range(8)}
        said = simclr().check_data(opened(folder(tmp_path / str(scale), files)))
        told = "warning: pictures are nearly black, the brightest pixel of 6 looked at is 16 of 255: numbers of 8 to"
        assert [line.startswith(told) for line in said] == [True] * (scale == 1)


def test_a_notebook_may_give_arrays_paths_or_pillows_pictures(tmp_path):
    """Turned and laid on white as a run reads them, which an array of one's own is not."""
    path, rgba = tmp_path / "a.png", Image.fromarray(np.dstack([pixels(0), np.zeros((6, 9), np.uint8)]))
    rgba.save(path)
    for given in (path, str(path), rgba, Image.open(path)):
        [found], alone = pictures(given, 3)
        assert alone and found.shape == (6, 9, 3) and (found == 255).all()
    found, alone = pictures([path, pixels(1)], 3)
    assert not alone and (found[1] == pixels(1)).all()
    for lost, said in ((tmp_path / "b.png", "No such file"), (__file__, "cannot identify image file")):
        with pytest.raises(UserError, match=f"cannot be read as a picture .{said}"):
            pictures(lost, 3)
