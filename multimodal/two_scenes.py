"""Two drawn scenes and a sentence that is true of them or not: NLVR2 (Suhr et al. 2019) in miniature.

A sentence speaks of the largest objects alone. Of each kind as many are true as false, whatever its words, so that who
reads the sentence and no picture is at chance; a picture's partner is chosen for it, by hashes of the scene's number.
"""

import dataclasses
from typing import Any

import numpy as np

from paradigm.dataset import generators
from vision.synthetic_scenes import COLOURS, SHAPES

CLASSES = ("false", "true")
_PAIR = 51  # what a hash is for
_TRIES = 200  # partners that are looked at


@dataclasses.dataclass
class TwoScenes:
    """The scenes of the generator, each with a partner of the same split."""

    scenes: Any

    def __len__(self):
        return len(self.scenes)

    def _largest(self, position):
        """(colour, shape) of a scene."""
        labels = self.scenes.shapes.scene(self.scenes.start + position).labels
        return list(COLOURS)[labels["colour"]], SHAPES[labels["shape"]]

    def made(self, position):
        """(sentence, whether it is true, the left scene, the right one)."""
        [rng] = generators(self.scenes.shapes.seed, _PAIR, self.scenes.start + position)
        truth, kind, own = bool(rng.integers(2)), int(rng.integers(4)), self._largest(position)
        for _ in range(_TRIES):
            other = int(rng.integers(len(self)))
            theirs = self._largest(other)
            if other != position and own != theirs and (kind in (0, 3) or (own[kind - 1] == theirs[kind - 1]) == truth):
                break
        swapped = bool(rng.integers(2))
        pair = (theirs, own) if swapped else (own, theirs)
        left, right = (other, position) if swapped else (position, other)
        if kind == 0:
            words = pair[rng.integers(2)]
            while not truth and words in pair:
                words = list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
            return f"one of them is a {' '.join(words)}", truth, left, right
        if kind == 3:
            side = int(rng.integers(2))
            words = pair[side if truth else 1 - side]
            return f"the {('left', 'right')[side]} one is a {' '.join(words)}", truth, left, right
        return f"they have the same {('colour', 'shape')[kind - 1]}", truth, left, right

    def __getitem__(self, position):
        sentence, truth, left, right = self.made(position)
        picture = lambda k: self.scenes[k]["image"]
        return {"image": picture(left), "second": picture(right), "label": int(truth), "captions": (sentence,)}

    def captions(self, position):
        return (self.made(position)[0],)

    def read_labels(self):
        return np.array([self.made(position)[1] for position in range(len(self))], np.int32)

    def name(self, position):
        return self.scenes.name(position)
