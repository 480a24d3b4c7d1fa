"""Pictures of any shape become pictures of one shape: numpy and Pillow alone, since data workers import it."""

import contextlib
import dataclasses

import numpy as np
from PIL import Image

from paradigm.errors import UserError
from paradigm.records import spread

LOOKED, FAR = 16, 4  # pictures that are looked at, and how many times as large as they are read is worth a word
BLACK = 16  # of 255: as bright as 12 bits in 16 are


@dataclasses.dataclass(frozen=True)
class PreprocessImage:
    """The preprocessing of every objective on images: the whole picture resized to a square, and the shape that it had.

    size: pixels a side. channels: what the encoder reads. Nothing is cropped and nothing is random here: views are
    taken on the device, which undoes the resizing by `aspect`.
    """

    size: int
    channels: int

    def __call__(self, example, rng, step, train):
        """{"image": uint8 [h, w, C], "label": int if it has one, ...} -> what a batch holds of it:

        {"image": uint8 [size, size, C], "aspect": float32, width / height of the original, "label": int32, -1 if none}.
        Raises UserError naming both counts if the picture does not have the encoder's channels.
        """
        image = np.asarray(example["image"])
        image = image[:, :, None] if image.ndim == 2 else image
        if image.ndim != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise UserError(
                f"a picture is {image.dtype} {list(image.shape)}: sources give uint8 [height, width, channels]"
            )
        if image.shape[2] != self.channels:
            raise UserError(
                f"pictures have {image.shape[2]} channels and the encoder reads {self.channels}: set "
                f"ImageData.channels = {self.channels}, or the encoder's channels to {image.shape[2]}"
            )
        return {
            "image": resize_to_square(image, self.size),
            "aspect": np.float32(image.shape[1] / image.shape[0]),
            "label": np.int32(example.get("label", -1)),
        }


@dataclasses.dataclass(frozen=True)
class PreprocessRegions(PreprocessImage):
    """The same with a map of classes, resized by the nearest pixel. classes: how many the head has; 255 is none."""

    classes: int

    def __call__(self, example, rng, step, train):
        """What PreprocessImage gives, and "regions" uint8 [size, size].

        Raises UserError for a picture without a map, or with a class that the head has not.
        """
        if "regions" not in example:
            raise UserError(
                "pictures come without maps of classes: set ImageData.regions to the folder that holds them, or to "
                "'shape' with the source shapes"
            )
        regions = np.asarray(example["regions"])
        if (known := regions[regions != 255]).size and known.max() >= self.classes:
            raise UserError(f"a region has the class {known.max()}, and Segmentation.classes={self.classes}: raise it")
        made = super().__call__(example, rng, step, train)
        regions = Image.fromarray(regions).resize((self.size, self.size), Image.Resampling.NEAREST)
        return {**made, "regions": np.asarray(regions)}


def resize_to_square(image, size):
    """uint8 [h, w, C] -> [size, size, C], without aliasing: exact means of pixels where they divide, else bicubic."""
    height, width, channels = image.shape
    if height == width == size:
        return image
    exact = height % size == 0 and width % size == 0
    how = Image.Resampling.BOX if exact else Image.Resampling.BICUBIC
    if channels == 3:
        return np.asarray(Image.fromarray(image).resize((size, size), how))
    planes = [Image.fromarray(np.ascontiguousarray(image[:, :, c])).resize((size, size), how) for c in range(channels)]
    return np.stack([np.asarray(p) for p in planes], axis=-1)


def look(source):
    """Some records of a source that can be read, spread over it."""
    for place in spread(len(source), min(LOOKED, len(source))).tolist():
        with contextlib.suppress(Exception):  # a broken one is told when its turn comes
            yield source[place]


def told_of_pictures(source, size):
    """Lines where the pictures of a source are far larger than the `size` pixels a side at which they are read, or
    nearly black, as small numbers in files of 16 bits are. Of some that can be read, spread over it."""
    seen = [(record["image"].shape[:2], int(record["image"].max())) for record in look(source)]
    if not seen:
        return
    sides, brightest = zip(*seen)
    if (middle := float(np.median(np.max(sides, 1)))) >= FAR * size:
        yield (
            f"warning: pictures of about {middle:.0f} pixels a side ({len(sides)} looked at) are read at {size}: make "
            "the encoder's image_size larger, unless that is meant"
        )
    if max(brightest) <= BLACK:
        yield (
            f"warning: pictures are nearly black, the brightest pixel of {len(sides)} looked at is {max(brightest)} of "
            "255: numbers of 8 to 12 bits in files of 16 have to be scaled to all 16 first"
        )
