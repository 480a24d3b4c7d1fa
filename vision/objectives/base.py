"""What every objective on images shares: what a batch holds, how an encoder is applied, where its statistics live.

The host hands over whole pictures of one size, `host_image_size` pixels a side whatever their shape was, with their
aspect ratio; crops and all else that is random happens on the device (see augment.py).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from paradigm import momentum, rng, trees
from paradigm.capabilities import ImageFeatures
from paradigm.objective import MAIN, Objective, rows_spec
from vision.partition import PARTITION_RULES
from vision.preprocess import PreprocessImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageObjective(ImageFeatures, Objective):
    """Base of the objectives on images.

    encoder: a ViT or a ResNet; its parameters are `encoder` in every objective's tree, so that any may start from any.
    augment: an Augment, or a pair of them, one for each view; the first one's `plain` view is what is evaluated.
    host_image_size: pixels a side that the host hands over.
    """

    encoder: Any
    augment: Any
    host_image_size: int

    @property
    def views(self):
        """The Augment of either view."""
        return self.augment if isinstance(self.augment, tuple) else (self.augment, self.augment)

    @property
    def model(self):
        """The Flax module that a notebook asks for."""
        return self.encoder

    @property
    def preprocess(self):
        return PreprocessImage(self.host_image_size, self.encoder.channels)

    def batch_spec(self, batch_size, phase=MAIN):
        image = (batch_size, self.host_image_size, self.host_image_size, self.encoder.channels)
        return {
            "image": jax.ShapeDtypeStruct(image, jnp.uint8),
            "aspect": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            **rows_spec(batch_size),
        }

    def modules(self):
        """name -> (module, an example of its input, or a tuple of inputs): what `init` makes, a tree for each."""
        size = self.views[0].size
        return {"encoder": (self.encoder, jnp.zeros((1, size, size, self.encoder.channels)))}

    def init(self, key):
        return {name: v["params"] for name, v in self._first(key).items()}

    def init_extra(self, params, key):
        """{"batch_stats": running moments by module} where there is BatchNorm, else {}."""
        stats = {name: v["batch_stats"] for name, v in self._first(key).items() if "batch_stats" in v}
        return {"batch_stats": stats} if stats else {}

    def _first(self, key):
        """name -> the module's first variables."""
        first = lambda name, module, x: module.init(rng.fold(key, name), *(x if isinstance(x, tuple) else (x,)))
        return {name: first(name, *pair) for name, pair in self.modules().items()}

    def apply(self, name, params, stats, x, ctx, **how):
        """(output, intermediates, moments) of one module of this objective's, in training or in evaluation.

        params, stats: trees by module name (the teacher's, perhaps); stats is {} where there is no BatchNorm.
        moments: {"NAME/.../mean": array} of this batch, for Loss.stats; {} in evaluation.
        """
        module, variables = self.modules()[name][0], own(name, {"params": params, "batch_stats": stats})
        if not ctx.train or "batch_stats" not in variables:
            return *module.apply(variables, x, **how), {}
        (output, intermediates), seen = module.apply(variables, x, train=True, mutable=["moments"], **how)
        return output, intermediates, {f"{name}/{path}": m for path, m in trees.named_leaves(seen["moments"])}

    def variables(self, params, extra, which="online"):
        variables = super().variables(params, extra, which)
        return {**variables, "batch_stats": extra["batch_stats"]} if "batch_stats" in extra else variables

    def features(self, variables, images):
        """float32 [B, H, W, C], normalised -> (pooled [B, D], intermediates): the encoder in evaluation."""
        return self.encoder.apply(own("encoder", variables), images)

    def view(self, batch):
        """The plain view of a batch's pictures, [B, H, W, C], normalised."""
        return self.views[0].plain(batch["image"], batch["aspect"])

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "images", batch_spec["mask"].size


def own(name, variables):
    """A module's part of each collection: {"params": {name: x}} -> {"params": x}."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


def update_batch_stats(batch_stats, moments, decay=0.9):
    """Running statistics moved towards a batch's moments (PyTorch's BatchNorm momentum of 0.1, TensorFlow's of 0.9)."""
    return momentum.ema(batch_stats, trees.nested(moments), decay)
