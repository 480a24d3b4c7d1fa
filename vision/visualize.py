"""What training on images looks like: evaluators whose artefacts are pictures, for samples/ and TensorBoard."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import rng
from paradigm.capabilities import ImageFeatures, Reconstructing
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.records import Subset
from paradigm.schedule import FINAL
from vision.probe import features

GAP = 2  # white pixels between two pictures
SMALLEST = 96  # small pictures are enlarged to about this many pixels a side, each pixel whole


def sheet(rows):
    """Rows of pictures, each float [H, W, C] in [0, 1] of one size -> uint8 [height, width, 3], with white gaps."""
    side = rows[0][0].shape[0]
    times = max(1, round(SMALLEST / side))
    lines = []
    for row in rows:
        cells = []
        for picture in row:
            picture = np.clip(np.asarray(picture, np.float32), 0, 1).repeat(times, 0).repeat(times, 1)
            picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
            cells.append(np.pad(picture, ((0, GAP), (0, GAP), (0, 0)), constant_values=1))
        lines.append(np.concatenate(cells, 1))
    width = max(line.shape[1] for line in lines)
    lines = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=1) for line in lines]
    return np.uint8(np.round(255 * np.concatenate(lines)))


def _some(part, data, count):
    """`count` validation examples of a Part as one batch, on the device."""
    return {name: jnp.asarray(array) for name, array in part.examples(data, count).items()}


@dataclasses.dataclass(frozen=True)
class Reconstructions(Evaluator):
    """Triptychs of a masked autoencoder: what the encoder sees, what is made of it, and the picture. count: of them."""

    count: int = 8

    needs = Reconstructing

    def run(self, objective, variables, data):
        part = self.part(objective)
        objective, variables, batch = part.objective, part.variables(variables), _some(part, data, self.count)
        images = objective.view(batch)
        keys = rng.per_example(rng.key(0, "pictures"), batch["index"])
        shown = jax.jit(objective.reconstruct)(variables, images, keys)
        columns = (shown["masked"], shown["reconstructed"], images)
        columns = [np.asarray(objective.views[0].undo(x)) for x in columns]
        return {}, [Artefact("reconstructions", "image", sheet(list(zip(*columns))))]


@dataclasses.dataclass(frozen=True)
class Views(Evaluator):
    """Pictures beside two random views of each, as the objective draws them in training. count: of pictures."""

    count: int = 8

    needs = ImageFeatures

    def run(self, objective, variables, data):
        del variables
        part = self.part(objective)
        objective, batch = part.objective, _some(part, data, self.count)
        rows = [objective.views[0].undo(objective.view(batch))]
        for i, augment in enumerate(objective.views):
            keys = rng.per_example(rng.key(0, f"view/{i}"), batch["index"])
            rows.append(augment.undo(jax.jit(augment.__call__)(batch["image"], batch["aspect"], keys)))
        return {}, [Artefact("views", "image", sheet([list(np.asarray(row)) for row in zip(*rows)]))]


@dataclasses.dataclass(frozen=True)
class Neighbours(Evaluator):
    """Validation pictures, each before its nearest training pictures by cosine of the features.

    queries: how many. nearest: how many of each. train_images: how many are searched.
    """

    queries: int = 8
    nearest: int = 7
    train_images: int = 5000

    needs = ImageFeatures

    def run(self, objective, variables, data):
        part = self.part(objective)
        objective, variables = part.objective, part.variables(variables)
        train = Subset.drawn(data.records("train"), self.train_images, 0)
        test = Subset.drawn(data.records("valid"), self.queries, 0)
        unit = lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
        (x, _), (q, _) = (features(objective, variables, source) for source in (train, test))
        order = np.argsort(-unit(q) @ unit(x).T, axis=1)[:, : self.nearest]
        square = lambda source, i: objective.preprocess(source[int(i)], None, FINAL, False)["image"] / 255.0
        rows = [[square(test, i), *(square(train, j) for j in near)] for i, near in enumerate(order)]
        return {}, [Artefact("neighbours", "image", sheet(rows))]


@dataclasses.dataclass(frozen=True)
class PatchPCA(Evaluator):
    """Pictures above the first three principal components of their patches' features, as red, green and blue.

    The components are of all patches shown, as in Oquab et al. 2023 (DINOv2), section 7.5. count: of pictures.
    """

    count: int = 8

    needs = ImageFeatures

    def check(self, objective, data):
        encoder = self.part(objective).objective.encoder
        if encoder.grid is None:
            raise UserError(f"PatchPCA: {type(encoder).__name__} has no patches; leave it out")

    def run(self, objective, variables, data):
        self.check(objective, data)
        part = self.part(objective)
        objective, variables = part.objective, part.variables(variables)
        images = objective.view(_some(part, data, self.count))
        _, intermediates = jax.jit(objective.features)(variables, images)
        patches = np.asarray(intermediates["patches"], np.float64)  # [B, N, D]
        flat = patches.reshape(-1, patches.shape[-1])
        flat = flat - flat.mean(0)
        _, _, axes = np.linalg.svd(flat, full_matrices=False)
        shown = flat @ axes[:3].T
        low, high = np.percentile(shown, (1, 99), axis=0)
        side = int(patches.shape[1] ** 0.5)
        shown = ((shown - low) / (high - low + 1e-9)).reshape(-1, side, side, 3)
        times = objective.encoder.patch
        maps = shown.repeat(times, 1).repeat(times, 2)
        originals = np.asarray(objective.views[0].undo(images))[:, : side * times, : side * times]  # what patches cover
        return {}, [Artefact("patch_pca", "image", sheet([list(originals), list(maps)]))]
