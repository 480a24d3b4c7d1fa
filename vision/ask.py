"""Asking a model in a notebook: pictures in; labels, vectors, maps of classes out."""

import functools

import jax
import numpy as np

from paradigm.capabilities import Classified
from vision.preprocess import PreprocessImage

TOGETHER = 32  # pictures at once


def classify(objective, variables, labels, images):
    """Labels of pictures.

    Args:
        objective: ClassifyingPictures. variables: of objective.apply. labels: names of the classes; () for numbers.
        images: arrays uint8 [h, w, C] of any sizes, or one.

    Returns:
        a Classified for each picture, in a list; or one.

    Raises:
        UserError: pictures of other channels than the encoder reads, or of another kind.
    """
    if one(images):
        return classify(objective, variables, labels, [images])[0]
    return [classified(row, labels) for row in asked(_chances(objective), objective, variables, images)]


def embed(objective, variables, images):
    """float32 [n, D] of pictures, what the encoder pools of their plain view; of one [D]. objective: ImageFeatures; the
    others, and what is raised, as of `classify`."""
    if one(images):
        return embed(objective, variables, [images])[0]
    found = asked(_pooled(objective), objective, variables, images)
    return np.stack(found) if found else np.zeros((0, objective.encoder.features), np.float32)


def segment(objective, variables, images):
    """int32 [n, H, W] of pictures, the class of each pixel of their plain view, which is what the encoder sees; of one
    [H, W]. objective: Segmenting; the others, and what is raised, as of `classify`."""
    if one(images):
        return segment(objective, variables, [images])[0]
    return asked(_regions(objective), objective, variables, images)


def one(images):
    """Whether it is a picture, and no list of them."""
    return isinstance(images, np.ndarray) and images.ndim < 4


def asked(function, objective, variables, images):
    """[numpy] of pictures, TOGETHER at a time. function: (variables, {"image", "aspect"}) -> [B, ...]."""
    prepare = PreprocessImage(objective.host_image_size, objective.encoder.channels)
    rows = [prepare({"image": image}, None, 0, False) for image in images]
    found = []
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        padded = some + [some[-1]] * (TOGETHER - len(some))
        batch = {name: np.stack([row[name] for row in padded]) for name in ("image", "aspect")}
        found += list(np.asarray(function(variables, batch))[: len(some)])
    return found


def classified(chances, labels):
    """The Classified of probabilities [classes]. labels: names of these; () for numbers."""
    names = labels or tuple(map(str, range(len(chances))))
    named = {names[k]: float(chances[k]) for k in np.argsort(-chances, kind="stable")}
    return Classified(next(iter(named)), named)


@functools.lru_cache(maxsize=8)
def _chances(objective):
    return jax.jit(lambda variables, batch: jax.nn.softmax(objective.logits(variables, objective.view(batch))))


@functools.lru_cache(maxsize=8)
def _pooled(objective):
    def pooled(variables, batch):
        return objective.features(variables, objective.view(batch))[0].astype(np.float32)

    return jax.jit(pooled)


@functools.lru_cache(maxsize=8)
def _regions(objective):
    return jax.jit(lambda variables, batch: objective.segment(variables, objective.view(batch)))
