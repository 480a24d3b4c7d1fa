"""Asking a model in a notebook: pictures in; labels, vectors, maps of classes out."""

import functools
import os

import jax
import numpy as np
from PIL import Image

from paradigm.capabilities import Classified
from paradigm.errors import UserError
from paradigm.storage import expand
from vision.decode_image import decode, pixels_of
from vision.preprocess import PreprocessImage
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
        UserError: a path where no picture is, pictures of other channels than the encoder reads, or of another kind.
    """
    rows, alone = asked(_chances(objective), objective, variables, images)
    found = [classified(row, labels) for row in rows]
    return found[0] if alone else found


def embed(objective, variables, images):
    """float32 [n, D] of pictures, what the encoder pools of their plain view; of one [D]. objective: ImageFeatures; the
    others, and what is raised, as of `classify`."""
    rows, alone = asked(_pooled(objective), objective, variables, images)
    found = np.reshape(rows, (len(rows), objective.encoder.features))
    return found[0] if alone else found


def segment(objective, variables, images):
    """int32 [n, H, W] of pictures, the class of each pixel of their plain view, which is what the encoder sees; of one
    [H, W]. objective: Segmenting; the others, and what is raised, as of `classify`."""
    rows, alone = asked(_regions(objective), objective, variables, images)
    found = np.reshape(rows, (len(rows), objective.views[0].size, objective.views[0].size))
    return found[0] if alone else found


def asked(function, objective, variables, images):
    """([numpy] of pictures, TOGETHER at a time, and whether one was given and not several).

    function: (variables, {"image", "aspect"}) -> [B, ...]. images: as of `pictures`.
    """
    images, alone = pictures(images, objective.encoder.channels)
    prepare = PreprocessImage(objective.host_image_size, objective.encoder.channels)
    found = []
    for batch in batches(images, prepare):
        rows = len(batch["image"])
        whole = {name: np.pad(x, [(0, TOGETHER - rows)] + [(0, 0)] * (x.ndim - 1), "edge") for name, x in batch.items()}
        found += list(np.asarray(function(variables, whole))[:rows])  # one size, one program
    return found, alone


def batches(images, prepare):
    """{"image", "aspect"} of TOGETHER pictures after the other, and of what is left. prepare: a PreprocessImage."""
    for start in range(0, len(images), TOGETHER):
        rows = [prepare({"image": image}, None, 0, False) for image in images[start : start + TOGETHER]]
        yield {name: np.stack([row[name] for row in rows]) for name in ("image", "aspect")}


def classified(chances, labels):
    """The Classified of probabilities [classes]. labels: names of these; () for numbers."""
    names = labels or tuple(map(str, range(len(chances))))
    named = {names[k]: float(chances[k]) for k in np.argsort(-chances, kind="stable")}
    return Classified(next(iter(named)), named)


def pictures(images, channels):
    """(a list of arrays, whether one picture was given and not several).

    Args:
        images: a list of arrays uint8 [h, w, C] of any sizes, Pillow's pictures or paths of files, which are read as
            data are; or one of these.

    Raises:
        UserError: a path where no picture is.
    """
    alone = not isinstance(images, (list, tuple)) and getattr(images, "ndim", 0) < 4
    return [_pixels(one, channels) for one in ([images] if alone else images)], alone


def _pixels(one, channels):
    try:
        if isinstance(one, (str, os.PathLike)):
            return decode(expand(one).read_bytes(), channels)
        return pixels_of(one, channels) if isinstance(one, Image.Image) else np.asarray(one)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{one} cannot be read as a picture ({getattr(error, 'strerror', None) or reason_of(error)})"
        ) from None


@functools.lru_cache(maxsize=8)
def _chances(objective):
    return jax.jit(lambda variables, batch: jax.nn.softmax(objective.logits(variables, objective.view(batch))))


@functools.lru_cache(maxsize=8)
def _pooled(objective):
    pool = lambda variables, images: objective.features(variables, images)[0].astype(np.float32)
    return jax.jit(lambda variables, batch: pool(variables, objective.view(batch)))


@functools.lru_cache(maxsize=8)
def _regions(objective):
    return jax.jit(lambda variables, batch: objective.segment(variables, objective.view(batch)))
