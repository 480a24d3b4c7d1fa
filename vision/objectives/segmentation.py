"""Semantic segmentation by a linear head on patches, as DINOv2 evaluates its features (Oquab et al. 2023, section 7.4)
and Segmenter's simplest decoder (Strudel et al. 2021, section 3.2).

    z = upsample(W h + b)              [classes] at each patch, made as large as the picture bilinearly
    loss = -1/P sum over labelled pixels of log softmax(z_pixel)[its class]

A picture and its regions go through the same crop and mirror; where the crop blends regions the larger part counts.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Segmenting
from paradigm.errors import UserError
from paradigm.objective import MAIN, Loss, Term
from vision.objectives.base import ImageObjective
from vision.objectives.classify import Linear
from vision.preprocess import PreprocessRegions, look
from vision.views import own_colours

UNLABELLED = 255  # of a pixel: it weighs nothing and is not scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Segmenting, ImageObjective):
    """A class for every pixel.

    classes: how many, the background too. names: of them, for pictures and tables. augment: one view.

    A pixel of the value 255 is not labelled. Raises UserError for an encoder without patches.
    """

    classes: int
    names: tuple[str, ...] = ()

    LONE = 1  # view
    new_modules = ("segmenter",)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "names", tuple(self.names))
        if self.encoder.grid is None:
            raise UserError(f"Segmentation reads patches, and a {type(self.encoder).__name__} has none: take a ViT")
        if self.views[0].rand is not None:
            raise UserError(
                "Segmentation moves a picture and its regions alike, and Augment.rand moves one: leave it out"
            )
        if not 2 <= self.classes <= UNLABELLED:
            raise UserError(f"Segmentation.classes={self.classes}: give 2 to {UNLABELLED}, the background too")
        if self.names and len(self.names) != self.classes:
            raise UserError(f"Segmentation.names are {len(self.names)}, and its classes {self.classes}: name each")

    @property
    def preprocess(self):
        return PreprocessRegions(self.host_image_size, self.encoder.channels, self.classes)

    def check_data(self, prepared):
        """As of any objective on images; UserError for maps in black and white, whose white is not labelled."""
        maps = [record["regions"] for record in look(prepared.source("train")) if "regions" in record]
        held = set().union(*(np.unique(regions).tolist() for regions in maps))
        said = f"the maps of {prepared.name} ({len(maps)} looked at) hold"
        if UNLABELLED in held and len(held) <= 2:
            raise UserError(
                f"{said} {' and '.join(map(str, sorted(held)))} alone, and {UNLABELLED} is of pixels that are not "
                "labelled: number the classes 0, 1 ..."
            )
        if (most := max(held - {UNLABELLED}, default=0)) >= self.classes:
            raise UserError(f"{said} the class {most}, and Segmentation.classes={self.classes}: raise it")
        warned = (f"warning: {said} no class but {min(held)}",) if len(held) == 1 else ()
        return (*warned, *super().check_data(prepared))

    def batch_spec(self, batch_size, phase=MAIN):
        side = self.host_image_size
        regions = jax.ShapeDtypeStruct((batch_size, side, side), jnp.uint8)
        return {**super().batch_spec(batch_size, phase), "regions": regions}

    def modules(self):
        return {**super().modules(), "segmenter": (Linear(self.classes), jnp.zeros((1, self.encoder.features)))}

    def regions(self, batch, keys=None):
        """int32 [B, H, W] of the plain view, or of the random one of these keys; -1 where nothing is labelled."""
        pixels = {"mean": (0.0,) * self.classes, "std": (1.0,) * self.classes}
        how = own_colours(self.views[0], filter="bilinear", **pixels)
        planes = jnp.uint8(255) * (batch["regions"][..., None] == jnp.arange(self.classes, dtype=jnp.uint8))
        share = how.plain(planes, batch["aspect"]) if keys is None else how(planes, batch["aspect"], keys)
        return jnp.where(share.sum(-1) > 0.5, jnp.argmax(share, -1), -1)

    def scores(self, variables, images, ctx=None, keys=None):
        """(float32 [B, H, W, classes] of normalised images, moments)."""
        how = {} if ctx is None else {"ctx": ctx, "keys": keys}
        _, seen, moments = self.apply("encoder", variables, images, **how)
        grid = tuple(n // self.encoder.patch for n in images.shape[1:3])
        logits = self.apply("segmenter", variables, seen["patches"])[0].reshape(len(images), *grid, self.classes)
        covered = [n * self.encoder.patch for n in grid]  # pixels beyond the last whole patch are as their neighbours
        logits = jax.image.resize(logits, (len(images), *covered, self.classes), "bilinear")
        beyond = [(0, n - m) for n, m in zip(images.shape[1:3], covered)]
        return jnp.pad(logits, ((0, 0), *beyond, (0, 0)), mode="edge"), moments

    def segment(self, variables, images):
        return jnp.argmax(self.scores(variables, images)[0], -1)

    def loss(self, params, extra, batch, ctx):
        view = ctx.keys("view/0", batch["index"]) if ctx.train else None
        images = self.view(batch) if view is None else self.augment(batch["image"], batch["aspect"], view)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        logits, moments = self.scores(self.variables(params, extra), images, ctx, keys)
        regions = self.regions(batch, view)
        weights = batch["mask"][:, None, None] * (regions >= 0)
        at = jnp.maximum(regions, 0)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), at[..., None], -1)[..., 0]
        hits = (jnp.argmax(logits, -1) == at) * weights
        return Loss(
            {"pixels": Term(jnp.sum(nll * weights), weights.sum())},
            {"accuracy": (hits.sum(), weights.sum())},
            stats=moments,
        )

    def forward_flops(self, batch_spec):
        rows, patches = batch_spec["mask"].size, self.patches_of(self.views[0].size)
        head = 2 * rows * patches * self.encoder.features * self.classes
        return {"encoder": self.encoder_flops(rows, self.views[:1]), "segmenter": head}
