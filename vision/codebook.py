"""What the codes of a tokenizer stand for: the patches that have each, beside what the decoder makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Tokenizing
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from vision.patches import patchify
from vision.sheet import sheet


@dataclasses.dataclass(frozen=True)
class Codebook(Evaluator):
    """The most used codes, a row each: what the decoder makes of a picture of this code alone, in its middle, and
    patches of validation pictures that have it. Below the first stand the code's number and its share of all patches.

    images: how many are read. count: of codes. patches: shown of each.
    """

    images: int = 256
    count: int = 12
    patches: int = 8

    needs = Tokenizing
    counts = ("images", "count", "patches")

    def run(self, objective, variables, data):
        """({}, a sheet "codebook")."""
        part = self.part(objective)
        objective, variables = part.objective, part.variables(variables)
        batch = {name: jnp.asarray(x) for name, x in part.examples(data, self.images).items()}
        images, patch = objective.view(batch), objective.encoder.patch
        ids = np.asarray(jax.jit(objective.ids)(variables, images)).reshape(-1)
        pixels = np.asarray(patchify(objective.views[0].undo(images), patch))
        pixels = pixels.reshape(len(ids), patch, patch, -1)
        used = np.bincount(ids, minlength=objective.codes)
        shown = [k for k in np.argsort(-used, kind="stable")[: self.count] if used[k]]
        decoded = self._decoded(objective, variables, shown)
        rows, captions, nothing = [], [], np.ones_like(pixels[0])
        for i, code in enumerate(shown):
            own = pixels[np.flatnonzero(ids == code)[: self.patches]]
            row = [*own, *[nothing] * (self.patches - len(own))]
            rows.append(row if decoded is None else [decoded[i], *row])
            captions.append([f"{code}: {used[code] / len(ids):.1%}", *[""] * (len(rows[-1]) - 1)])
        first = [] if decoded is None else ["code, decoded"]
        return {}, [Artefact("codebook", "image", sheet(rows, [*first, *["a patch of it"] * self.patches], captions))]

    @staticmethod
    def _decoded(objective, variables, codes):
        """[codes, patch, patch, C]: the middle patch of pictures of one code; None where no pixels are made."""
        ids = jnp.broadcast_to(jnp.asarray(codes)[:, None], (len(codes), int(np.prod(objective.encoder.grid))))
        found = objective.decoded(variables, ids)
        if found is None:
            return None
        pixels, size = np.asarray(objective.views[0].undo(found)), objective.encoder.patch
        top = objective.encoder.grid[0] // 2 * size
        return pixels[:, top : top + size, top : top + size]
