"""What every objective on images shares: what a batch holds, how an encoder is applied, where its statistics live.

The host hands over whole pictures of one size, `host_image_size` pixels a side whatever their shape was, with their
aspect ratio; crops and all else that is random happens on the device (see augment.py).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

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
        size = self.views[0].size
        return {"encoder": (self.encoder, jnp.zeros((1, size, size, self.encoder.channels)))}

    def features(self, variables, images):
        """float32 [B, H, W, C], normalised -> (pooled [B, D], intermediates): the encoder in evaluation."""
        return self.apply("encoder", variables, images)[:2]

    def view(self, batch):
        """The plain view of a batch's pictures, [B, H, W, C], normalised."""
        return self.views[0].plain(batch["image"], batch["aspect"])

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "images", batch_spec["mask"].size
