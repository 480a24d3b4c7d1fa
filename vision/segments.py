"""How well the classes of pixels are found: intersection over union, and pictures of what was found."""

import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Segmenting
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact, confusion
from paradigm.partition import constrain
from vision.sheet import below, legend, sheet


@dataclasses.dataclass(frozen=True)
class Segments(Evaluator):
    """The mean over classes of intersection over union (the Jaccard index), over all labelled pixels together.

    A class that is nowhere, in truth or as found, does not count. count: of pictures that are shown.
    Metrics: mean_iou, and iou/CLASS where the classes have names.
    """

    count: int = 8

    needs = Segmenting
    counts = ("count",)

    def run(self, objective, variables, data):
        """(numbers, a sheet "segments": picture, truth, found, and which colour is which class)."""
        part = self.part(objective)
        own, classes = part.variables(variables), part.objective.classes
        both = lambda v, b: (part.objective.segment(v, part.objective.view(b)), part.objective.regions(b))
        segment = jax.jit(lambda v, b: [constrain(x, None, None, None) for x in both(v, b)])
        table = np.zeros((classes, classes), np.int64)
        for batch in part.batches(data):
            found, true = (np.asarray(x)[batch["mask"] > 0] for x in segment(own, batch))
            known = true >= 0
            table += confusion(true[known], found[known], classes)
        scores = iou(table)
        names = part.objective.names
        each = {f"iou/{name}": float(x) for name, x in zip(names, scores) if not np.isnan(x)}
        mean = float(np.nanmean(scores)) if not np.isnan(scores).all() else 0.0
        return {"mean_iou": mean, **each}, [self.pictures(part, own, segment, data)]

    def pictures(self, part, variables, segment, data):
        objective = part.objective
        batch = {name: jnp.asarray(x) for name, x in part.examples(data, self.count).items()}
        found, true = segment(variables, batch)
        pixels = np.asarray(objective.views[0].undo(objective.view(batch)))
        colours = palette(objective.classes)
        true, found = np.asarray(true), np.asarray(found)
        rows = [[x, colours[t], colours[f]] for x, t, f in zip(pixels, true, found)]
        shown = sheet(rows, ["picture", "truth", "found"])
        names = objective.names or [f"class {k}" for k in range(objective.classes)]
        seen = sorted({*np.unique(true), *np.unique(found)}, key=lambda k: k % len(colours))  # unlabelled, -1, last
        entries = [(colours[k], names[k] if k >= 0 else "not labelled") for k in seen]
        return Artefact("segments", "image", below(shown, legend(entries, shown.shape[1])))


def iou(table):
    """float64 [C], nan for a class that is nowhere. table: int [C, C], pixels of class i that were taken for j."""
    right, union = np.diag(table).astype(float), table.sum(0) + table.sum(1) - np.diag(table)
    return np.divide(right, union, out=np.full(len(table), np.nan), where=union > 0)


def palette(classes):
    """float32 [classes + 1, 3]: dark grey for class 0, hues for the others, white (the last, -1) for none."""
    hues = [colorsys.hsv_to_rgb(i / max(classes - 1, 1), 0.75, 0.95) for i in range(classes - 1)]
    return np.array([(0.2, 0.2, 0.2), *hues, (1.0, 1.0, 1.0)], np.float32)
