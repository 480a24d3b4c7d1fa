"""Asking a classifier in a notebook: pictures in, labels out."""

import functools

import jax
import numpy as np

from paradigm.capabilities import Classified

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
    if isinstance(images, np.ndarray) and images.ndim < 4:
        return classify(objective, variables, labels, [images])[0]
    if not len(images):
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
    return [Classified(next(iter(named)), named) for named in each]


@functools.lru_cache(maxsize=8)
def _chances(objective):
    return jax.jit(lambda variables, batch: jax.nn.softmax(objective.logits(variables, objective.view(batch))))
