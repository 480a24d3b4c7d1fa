"""What training on images looks like: evaluators whose artefacts are pictures, for samples/ and TensorBoard."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import rng
from paradigm.capabilities import GeneratingImages, ImageFeatures, Reconstructing
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.records import Subset
from paradigm.schedule import FINAL
from vision.probe import features
from vision.sheet import sheet


def _some(part, data, count):
    """`count` validation examples of a Part as one batch, on the device."""
    return {name: jnp.asarray(array) for name, array in part.examples(data, count).items()}


@dataclasses.dataclass(frozen=True)
class Reconstructions(Evaluator):
    """Pictures, what a masked autoencoder sees of each, and what is made of that; a tokenizer sees all. count: of
    them."""

    count: int = 8

    needs = Reconstructing
    counts = ("count",)

    def run(self, objective, variables, data):
        part = self.part(objective)
        objective, variables, batch = part.objective, part.variables(variables), _some(part, data, self.count)
        images = objective.view(batch)
        keys = rng.per_example(rng.key(0, "pictures"), batch["index"])
        shown = jax.jit(objective.reconstruct)(variables, images, keys)
        columns = {"original": images, **{name: shown[name] for name in ("masked", "reconstructed") if name in shown}}
        rows = zip(*(np.asarray(objective.views[0].undo(x)) for x in columns.values()))
        return {}, [Artefact("reconstructions", "image", sheet(list(rows), list(columns)))]


@dataclasses.dataclass(frozen=True)
class GeneratedImages(Evaluator):
    """Pictures as ids, their upper halves, two ends that are written for each, and a picture written from nothing.

    count: of rows. temperature: of sampling.
    """

    count: int = 8
    temperature: float = 1.0

    needs = GeneratingImages
    counts = ("count",)

    def check(self, objective, data):
        super().check(objective, data)
        if not self.temperature > 0:
            raise UserError(f"GeneratedImages.temperature={self.temperature}: what is drawn needs one above 0")

    def run(self, objective, variables, data):
        part = self.part(objective)
        objective, variables, batch = part.objective, part.variables(variables), _some(part, data, self.count)
        ids = objective.ids(variables, objective.view(batch))
        half = ids.shape[1] // 2
        write = jax.jit(functools.partial(objective.generate, temperature=self.temperature))
        drawn = lambda name, known: objective.pictures(
            variables, write(variables, ids, known, rng.per_example(rng.key(0, name), batch["index"]))
        )
        whole = objective.pictures(variables, ids)
        upper = (jnp.arange(whole.shape[1]) < whole.shape[1] // 2)[:, None, None]
        columns = {"original": whole, "upper half": jnp.where(upper, whole, 0.5)}
        columns |= {
            "completed": drawn("first", half),
            "another": drawn("second", half),
            "from nothing": drawn("free", 0),
        }
        return {}, [Artefact("generated", "image", sheet(list(zip(*map(np.asarray, columns.values()))), list(columns)))]


@dataclasses.dataclass(frozen=True)
class Views(Evaluator):
    """Pictures beside the random views of each that the objective draws in training. count: of pictures."""

    count: int = 8

    needs = ImageFeatures
    counts = ("count",)

    def run(self, objective, variables, data):
        del variables
        part = self.part(objective)
        objective, batch = part.objective, _some(part, data, self.count)
        columns = {"original": objective.views[0].undo(objective.view(batch))}
        for i, augment in enumerate(objective.views):
            keys = rng.per_example(rng.key(0, f"view/{i}"), batch["index"])
            name = f"view {i + 1}" if len(objective.views) > 1 else "view"
            columns[name] = augment.undo(jax.jit(augment.__call__)(batch["image"], objective.aspect(batch), keys))
        rows = zip(*map(np.asarray, columns.values()))
        return {}, [Artefact("views", "image", sheet(list(rows), list(columns)))]


@dataclasses.dataclass(frozen=True)
class Neighbours(Evaluator):
    """Validation pictures, each before its nearest training pictures by cosine of the features.

    Below each stand its class, where it has one, and the cosine; those of the query's class have a frame.

    queries: how many. nearest: how many of each. train_images: how many are searched.
    """

    queries: int = 8
    nearest: int = 7
    train_images: int = 5000

    needs = ImageFeatures
    counts = ("queries", "nearest", "train_images")

    def run(self, objective, variables, data):
        part = self.part(objective)
        objective, variables = part.objective, part.variables(variables)
        train = Subset.drawn(data.records("train"), self.train_images, 0)
        test = Subset.drawn(data.records("valid"), self.queries, 0)
        unit = lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
        (x, y, at), (q, wanted, asked) = (features(objective, variables, source) for source in (train, test))
        cosines = unit(q) @ unit(x).T
        order = np.argsort(-cosines, axis=1)[:, : self.nearest]
        square = lambda source, i: objective.preprocess(source[int(i)], None, FINAL, False)["image"] / 255.0
        classes = getattr(data.records("valid"), "classes", None)
        named = lambda label: [] if label < 0 else [str(classes[label] if classes else label)]
        rows, captions, framed = [], [], []
        for i, near in enumerate(order):
            rows.append([square(test, asked[i]), *(square(train, at[j]) for j in near)])
            said = [named(wanted[i]), *(named(y[j]) + [f"{cosines[i, j]:.3f}"] for j in near)]
            captions.append([" · ".join(words) for words in said])
            framed.append([False, *(bool(wanted[i] == y[j] >= 0) for j in near)])
        headings = ["query", *(f"nearest {k + 1}" for k in range(order.shape[1]))]
        return {}, [Artefact("neighbours", "image", sheet(rows, headings, captions, framed))]


@dataclasses.dataclass(frozen=True)
class PatchPCA(Evaluator):
    """Pictures beside the first three principal components of their patches' features, as red, green and blue.

    The components are of all patches shown, as in Oquab et al. 2023 (DINOv2), section 7.5. count: of pictures.
    """

    count: int = 8

    needs = ImageFeatures
    counts = ("count",)

    def check(self, objective, data):
        super().check(objective, data)
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
        return {}, [Artefact("patch_pca", "image", sheet(list(zip(originals, maps)), ["original", "patches"]))]
