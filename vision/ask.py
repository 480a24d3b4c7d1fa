"""Asking a classifier in a notebook: pictures in, labels out."""

import functools
import os
import pathlib

import jax
import numpy as np
from PIL import Image

from paradigm.capabilities import Classified
from paradigm.errors import UserError
from vision.decode_image import decode, pixels_of
from vision.reading import reason_of

TOGETHER = 32  # pictures at once


def classify(objective, variables, labels, images):
    """Labels of pictures.

    Args:
        objective: ClassifyingPictures. variables: of objective.apply. labels: names of the classes; () for numbers.
        images: as of `pictures`.

    Returns:
        a Classified for each picture, in a list; or one.

    Raises:
        UserError: pictures of other channels than the encoder reads, or of another kind.
    """
    images, alone = pictures(images, objective.encoder.channels)
    if not images:
        return []
    rows = [objective.preprocess({"image": image}, None, 0, False) for image in images]
    found = []
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        padded = some + [some[-1]] * (TOGETHER - len(some))
        batch = {name: np.stack([row[name] for row in padded]) for name in ("image", "aspect")}
        found += list(np.asarray(_chances(objective)(variables, batch))[: len(some)])
    names = labels or tuple(map(str, range(len(found[0]))))
    each = [{names[k]: float(row[k]) for k in np.argsort(-row, kind="stable")} for row in found]
    told = [Classified(next(iter(named)), named) for named in each]
    return told[0] if alone else told


def pictures(images, channels):
    """(a list of arrays, whether one picture was given and not several).

    Args:
        images: arrays uint8 [h, w, C] of any sizes, Pillow's pictures or paths of files, which are read as data are; or
            one of these.

    Raises:
        UserError: a path where no picture is.
    """
    alone = isinstance(images, (str, os.PathLike, Image.Image)) or isinstance(images, np.ndarray) and images.ndim < 4
    return [_pixels(one, channels) for one in ([images] if alone else images)], alone


def _pixels(one, channels):
    try:
        if isinstance(one, (str, os.PathLike)):
            return decode(pathlib.Path(one).expanduser().read_bytes(), str(one), channels)
        return pixels_of(one, channels) if isinstance(one, Image.Image) else np.asarray(one)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{one} cannot be read as a picture ({getattr(error, 'strerror', None) or reason_of(error)})"
        ) from None


@functools.lru_cache(maxsize=8)
def _chances(objective):
    return jax.jit(lambda variables, batch: jax.nn.softmax(objective.logits(variables, objective.view(batch))))
