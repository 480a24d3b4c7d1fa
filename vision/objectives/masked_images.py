"""What objectives that hide patches of one view share: the view, the mask, and a prediction for what is hidden."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from paradigm.errors import UserError, choose
from paradigm.layers import Dense
from paradigm.objective import Loss, Term
from vision.masking import MASKS, check_count, hidden_first, masks
from vision.objectives.base import ImageObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneView(ImageObjective):
    """One view of each picture, of the encoder's size, which is cut into whole patches.

    Raises UserError where the view has another size, or patches do not divide it.
    """

    LONE = 1  # view

    def __post_init__(self):
        super().__post_init__()
        who, size, patch = type(self).__name__, self.encoder.image_size, getattr(self.encoder, "patch", None)
        if patch is None:
            raise UserError(f"{who}: {type(self.encoder).__name__} has no patches to hide: take a ViT as encoder")
        if self.views[0].size != size:
            raise UserError(
                f"{who}: views of {self.views[0].size} pixels, but the encoder reads {size}: "
                "make augment's size the encoder's image_size"
            )
        if size % patch:
            near = max(patch, round(size / patch) * patch)
            raise UserError(
                f"{who}: an image of {size} x {size} does not divide into patches of {patch} x {patch}, and what is "
                f"left over would not be predicted: choose an image_size such as {near}, or a patch that divides {size}"
            )

    @property
    def patches(self):
        """N."""
        return (self.encoder.image_size // self.encoder.patch) ** 2

    def draw(self, batch, ctx):
        """The view of each picture [B, H, W, C]: random in training, plain in evaluation; a tuple if it has sizes."""
        if ctx.train:
            return self.augment_views(batch, ctx)[0]
        sizes = self.groups[0][0]
        plain = tuple(augment.plain(batch["image"], batch["aspect"]) for augment in sizes)
        return plain[0] if len(plain) == 1 else plain

    def dropout_keys(self, batch, ctx, stream="dropout"):
        return ctx.keys(stream, batch["index"]) if ctx.train and self.draws(self.encoder) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImages(OneView):
    """Some patches hidden behind the encoder's mask token.

    encoder: a ViT with mask_token=True. masking: random, block or grid (see vision/masking.py). mask_ratio: the part of
    the patches that is hidden. mask_unit: of `random`, the side in patches of what is hidden at once. block_smallest,
    block_largest, block_aspect: of `block`.

    Raises UserError for an encoder without mask token, and for masks that leave nothing to see or to predict.
    """

    masking: str = "random"
    mask_ratio: float = 0.6
    mask_unit: int = 1
    block_smallest: int = 16
    block_largest: int | None = None
    block_aspect: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        who, grid = type(self).__name__, self.encoder.grid
        choose(f"{who}.masking", self.masking, MASKS)
        if not self.encoder.mask_token:
            raise UserError(f"{who} hides patches behind a mask token: set the encoder's mask_token=True")
        if self.masking == "random" and any(n % self.mask_unit for n in grid):
            raise UserError(f"{who}.mask_unit={self.mask_unit} does not divide a grid of {grid[0]} x {grid[1]} patches")
        if self.masking == "block" and not 0 < self.block_smallest <= self.hidden:
            raise UserError(
                f"{who}.block_smallest={self.block_smallest}, and {self.hidden} patches are hidden: "
                "choose at most as many"
            )
        check_count(who, self.mask_ratio, self.hidden, self.patches)

    @property
    def hidden(self):
        """How many patches are hidden, at most."""
        if self.masking == "grid":
            return self.patches - (self.encoder.grid[0] // 2) * (self.encoder.grid[1] // 2)
        unit = self.mask_unit**2 if self.masking == "random" else 1
        return unit * self._units

    @property
    def _units(self):
        unit = self.mask_unit**2 if self.masking == "random" else 1
        # SimMIM's official MaskGenerator rounds up; BEiT's count of 75 of 196 is floor(0.385 * 196).
        return (math.ceil if self.masking == "random" else int)(self.patches // unit * self.mask_ratio)

    def mask(self, keys):
        """Keys [B] -> bool [B, N], True where a patch is hidden."""
        how = {
            "random": {"unit": self.mask_unit},
            "block": {"smallest": self.block_smallest, "largest": self.block_largest, "aspect": self.block_aspect},
            "grid": {},
        }
        return masks(self.masking, keys, self.encoder.grid, self._units, **how[self.masking])


class PatchHead(nn.Module):
    """[..., D] -> ([..., outputs], {}), one linear layer."""

    outputs: int
    std: float | str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return Dense((self.outputs,), 1, True, self.std, self.dtype, name="predict")(x), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedRegression(MaskedImages):
    """Something of the hidden patches, by one linear layer on the encoder's output.

    A subclass gives `outputs`, the numbers of a patch, `target(images)` float32 [B, N, outputs] and
    `error(difference)`.
    """

    @property
    def outputs(self):
        raise NotImplementedError

    def target(self, images):
        raise NotImplementedError

    def target_of(self, extra, images):
        """The same, of objectives whose targets come from a teacher."""
        del extra
        return self.target(images)

    def error(self, difference):
        """What is averaged over a hidden patch's numbers."""
        return jnp.square(difference)

    def modules(self):
        head = PatchHead(self.outputs, self.encoder.init_std, self.encoder.dtype)
        return {**super().modules(), "decoder": (head, jnp.zeros((1, self.encoder.d_model)))}

    def predict(self, variables, images, mask, keys=None):
        """images, mask [B, N] -> (float32 [B, M, outputs] of the hidden patches, their places [B, M])."""
        _, seen, _ = self.apply("encoder", variables, images, mask=mask, keys=keys)
        places = hidden_first(mask, self.hidden)
        patches = jnp.take_along_axis(seen["patches"], places[..., None], 1)
        return self.apply("decoder", variables, patches)[0].astype(jnp.float32), places

    def loss(self, params, extra, batch, ctx):
        images, mask = self.draw(batch, ctx), self.mask(ctx.keys("mask", batch["index"]))
        keys = self.dropout_keys(batch, ctx)
        predicted, places = self.predict(self.variables(params, extra), images, mask, keys)
        target = jnp.take_along_axis(self.target_of(extra, images), places[..., None], 1)
        # A mask by blocks may have fewer patches than the places there are for them.
        weight = jnp.take_along_axis(mask, places, 1) * batch["mask"][:, None]
        error = self.error(predicted - target).mean(-1)
        return Loss({"patches": Term(jnp.sum(error * weight), weight.sum())})

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        head = 2 * rows * self.hidden * self.encoder.d_model * self.outputs
        return {"encoder": self.encoder.flops(rows), "decoder": head}
