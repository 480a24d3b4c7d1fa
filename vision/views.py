"""How many random views an objective takes of each picture, and by which Augment: groups.

simclr_views(224)                           as many views of one recipe as the objective takes
moco_v3_views(224)                          a pair of recipes, one view by each
((big, 2), (small, 8))                      counts: two large crops and eight small ones (DINO)
(((big, small), 1),)                        one crop at two sizes: both draw alike (BEiT)
"""

import dataclasses
import itertools

from paradigm.errors import UserError
from vision.augment import Augment


def own_colours(view, **changes):
    """An Augment's crops and mirrors in the pictures' own colours. changes: of its other fields."""
    plain = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0, "rand": None}
    return dataclasses.replace(view, **plain | changes)


def view_groups(augment, count):
    """((Augments that share their draws, number of views), ...) of an objective's `augment` setting.

    count: views of a lone Augment.

    Raises:
        UserError: when it is none of the forms above.
    """
    if isinstance(augment, Augment):
        return (((augment,), count),)
    pairs = [(a, 1) if isinstance(a, Augment) else a for a in augment] if isinstance(augment, tuple) else []
    groups = []
    for pair in pairs:
        sizes, number = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, 0)
        sizes = (sizes,) if isinstance(sizes, Augment) else sizes
        known = isinstance(sizes, tuple) and sizes and all(isinstance(a, Augment) for a in sizes)
        if not known or not isinstance(number, int) or number < 1:
            raise UserError(f"augment has {pair!r}: a group of views is (Augment, count), with a count of 1 or more")
        groups.append((sizes, number))
    if not groups:
        raise UserError(f"augment={augment!r} is neither an Augment nor a tuple of Augments or of (Augment, count)")
    return tuple(groups)


def draw_views(groups, image, aspect, keys):
    """One entry a view: float32 [B, H, W, C], or a tuple of them where one crop has several sizes.

    keys: a function of a view's number, counted through all groups -> typed PRNG keys [B].
    """
    numbers = itertools.count()
    views = []
    for sizes, count in groups:
        for number in itertools.islice(numbers, count):
            drawn = tuple(augment(image, aspect, keys(number)) for augment in sizes)
            views.append(drawn[0] if len(drawn) == 1 else drawn)
    return tuple(views)
