"""What every objective on images shares: what a batch holds, how an encoder is applied, where its statistics live.

The host hands over whole pictures of one size, `host_image_size` pixels a side whatever their shape was, with their
aspect ratio; crops and all else that is random happens on the device (see augment.py).
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm import trees
from paradigm.capabilities import ImageFeatures
from paradigm.errors import UserError
from paradigm.objective import MAIN, Objective, rows_spec
from vision.augment import Augment
from vision.partition import PARTITION_RULES
from vision.preprocess import PreprocessImage, told_of_pictures
from vision.views import draw_views, view_groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageObjective(ImageFeatures, Objective):
    """Base of the objectives on images.

    encoder: a ViT or a ResNet; its parameters are `encoder` in every objective's tree, so that any may start from any.
    augment: an Augment, or groups of views (see vision.views); the first one's `plain` view is what is evaluated. One
        without a size has the encoder's image_size.
    host_image_size: pixels a side that the host hands over; None: the encoder's image_size.
    """

    encoder: Any
    augment: Any
    host_image_size: int | None = None

    def __post_init__(self):
        size = self.encoder.image_size

        def sized(x):  # an Augment, or groups of them with their numbers
            return tuple(map(sized, x)) if isinstance(x, tuple) else x.sized(size) if isinstance(x, Augment) else x

        object.__setattr__(self, "augment", sized(self.augment))
        object.__setattr__(self, "host_image_size", self.host_image_size or size)

    LONE = 2

    @property
    def groups(self):
        """((Augments that share their draws, number of views), ...); a lone Augment stands for LONE views."""
        return view_groups(self.augment, self.LONE)

    @property
    def views(self):
        """The Augment of each view; where a crop has several sizes, the first."""
        return tuple(sizes[0] for sizes, count in self.groups for _ in range(count))

    def augment_views(self, batch, ctx):
        """Random views of each picture, one entry a view: float32 [B, H, W, C], or a tuple of a crop's sizes."""
        keys = lambda number: ctx.keys(f"view/{number}", batch["index"])
        return draw_views(self.groups, batch["image"], self.aspect(batch), keys)

    def encode_views(self, variables, views, index, ctx, apart=False, dropout="dropout"):
        """(pooled [B, V, D], moments) of V views; in one pass those of one size that follow one another.

        apart: whether a BatchNorm in the encoder sees one view at a time, or all of a size together. dropout: the
        stream that its masks are drawn from, a teacher's another than the student's; None for a teacher that has none.
        """
        apart = apart and self.encoder.has_batch_norm
        keys = None
        if ctx.train and dropout and self.draws(self.encoder):
            keys = [ctx.keys(f"{dropout}/{i}", index) for i in range(len(views))]
        # Views of a picture side by side: on a mesh each device keeps its own rows, as it would not if they were
        # concatenated.  V x [B, ...] -> [B, V, ...] -> [B V, ...]
        flat = lambda xs: jnp.stack(xs, 1).reshape(-1, *xs[0].shape[1:])
        runs = itertools.groupby(range(len(views)), key=lambda i: i if apart else views[i].shape)
        pooled, moments = [], []
        for run in (list(run) for _, run in runs):
            own = keys and flat([keys[i] for i in run])
            x, seen = self.pooled(variables, flat([views[i] for i in run]), ctx, own)
            pooled.append(x.reshape(-1, len(run), x.shape[-1]))
            moments += [seen] * len(run)  # each view counts once
        if len(pooled) == 1:
            return pooled[0], moments[0]
        return jnp.concatenate(pooled, 1), trees.mean(moments)

    def patches_of(self, size):
        """How many patches a view of this size has; None for an encoder without patches."""
        return None if self.encoder.grid is None else (size // self.encoder.patch) ** 2

    def encoder_flops(self, rows, views):
        """Forward FLOPs of the encoder for these views, Augments of sizes of their own, of `rows` pictures."""
        measure = (lambda size: size) if self.encoder.grid is None else self.patches_of
        return sum(self.encoder.flops(rows, measure(view.size)) for view in views)

    def pooled(self, variables, images, ctx, keys):
        """(a vector of each view [B, D], moments): what `encode_views` makes of views of one size."""
        x, _, moments = self.apply("encoder", variables, images, ctx=ctx, keys=keys)
        return x, moments

    def check_crops(self):
        """Raises UserError for a view of more pixels than the host hands over, which would show nothing more."""
        largest, name = max(view.size for sizes, _ in self.groups for view in sizes), type(self).__name__
        if largest > self.host_image_size:
            raise UserError(
                f"{name}: a crop of {largest} pixels is larger than the pictures of {self.host_image_size}: make "
                f"the crop smaller, or set {name}.host_image_size"
            )

    @property
    def model(self):
        """The Flax module that a notebook asks for."""
        return self.encoder

    def check_data(self, prepared):
        """As of any objective: lines where pictures lose most of what they show by how they are read."""
        return tuple(told_of_pictures(prepared.source("train"), self.host_image_size))

    @property
    def preprocess(self):
        return PreprocessImage(self.host_image_size, self.encoder.channels)

    def batch_spec(self, batch_size, phase=MAIN):
        self.check_crops()
        image = (batch_size, self.host_image_size, self.host_image_size, self.encoder.channels)
        return {
            "image": jax.ShapeDtypeStruct(image, jnp.uint8),
            "aspect": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            **rows_spec(batch_size),
        }

    def modules(self):
        size = self.views[0].size
        return {"encoder": (self.encoder, jnp.zeros((1, size, size, self.encoder.channels)))}

    def features(self, variables, images):
        """float32 [B, H, W, C], normalised -> (pooled [B, D], intermediates): the encoder in evaluation."""
        return self.apply("encoder", variables, images)[:2]

    def view(self, batch):
        """The plain view of a batch's pictures, [B, H, W, C], normalised."""
        return self.views[0].plain(batch["image"], self.aspect(batch))

    def aspect(self, batch):
        """float32 [B], width / height of a batch's pictures as every view of them takes it to be."""
        return batch["aspect"]

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "images", batch_spec["mask"].size
