"""SimMIM: Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling".

Random squares of 32 pixels, 60 % of a picture, are behind a mask token; one linear layer on the encoder's output
predicts their raw pixels:

    loss = mean over the pixels and channels of hidden patches of |predicted - x|                     (section 3.4)
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.capabilities import Reconstructing
from vision.objectives.masked_images import MaskedRegression
from vision.patches import patchify, unpatchify


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimMIM(Reconstructing, MaskedRegression):
    """Pixels of hidden patches from a view with mask tokens. mask_unit=2: squares of 32 pixels of patches of 16."""

    mask_unit: int = 2

    @property
    def outputs(self):
        return self.encoder.patch**2 * self.encoder.channels

    def target(self, images):
        return patchify(images, self.encoder.patch)

    def error(self, difference):
        return jnp.abs(difference)

    def reconstruct(self, variables, images, keys):
        """{"masked": hidden patches grey, "reconstructed": as predicted, beside the others as they are}."""
        mask = self.mask(keys)
        predicted, places = self.predict(variables, images, mask)
        pixels = self.target(images)
        hidden = mask[..., None]
        whole = jax.vmap(lambda row, at, new: row.at[at].set(new))(pixels, places, predicted)
        shown = {"masked": jnp.where(hidden, 0.0, pixels), "reconstructed": jnp.where(hidden, whole, pixels)}
        return {name: unpatchify(x, self.encoder.patch, images.shape[1:]) for name, x in shown.items()}
