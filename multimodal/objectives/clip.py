"""CLIP: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.3.

z_i = l2_normalize(W_i f(image)), z_t = l2_normalize(W_t g(text))
s = min(exp(t), 100), t learned, log(1 / 0.07) at first
loss = mean over pairs of (nll of the text among the batch's texts + nll of the image among its images) / 2
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from multimodal.objectives.base import ImageText
from paradigm.contrastive import info_nce
from paradigm.objective import Loss, Term

FIRST, SMALLEST, LARGEST = math.log(1 / 0.07), 0.0, math.log(100.0)  # of t; openai/CLIP model.py, open_clip's clamp


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIP(ImageText):
    """Each picture picks its caption among those of the batch, and each caption its picture.

    first_log_scale: t at first; it is learned as `log_scale`, and read as if clamped to 0 .. log(100) after each step.
    """

    first_log_scale: float = FIRST

    @property
    def scalars(self):
        return {"log_scale": self.first_log_scale}

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        image, text, mask = embeddings["image"], embeddings["text"], batch["mask"]
        scale = self.scale(params)
        to_text, found_text = info_nce(image, text, scale, mask)
        to_image, found_image = info_nce(text, image, scale, mask)
        rows = mask.sum()
        metrics = {
            "image_to_text": (jnp.sum(found_text * mask), rows),
            "text_to_image": (jnp.sum(found_image * mask), rows),
            "scale": (scale, jnp.float32(1.0)),
        }
        return Loss({"pairs": Term(jnp.sum((to_text + to_image) / 2 * mask), rows)}, metrics)

    def scale(self, params):
        """[] what cosines are multiplied by."""
        return jnp.exp(clamped(params["log_scale"], SMALLEST, LARGEST))

    def logits(self, params, image, text):
        """Unit vectors [B, E], [T, E] -> float32 [B, T], whose softmax over texts is the zero-shot probability.

        By exp(t) as it is: released weights lie a rounding above the clamp.
        """
        return jnp.exp(params["log_scale"]) * jnp.dot(image, text.T, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def clamped(x, low, high):
    """x within [low, high]; at a bound, a step further out gets no gradient, a step back does.

    It is what clamping the parameter after every step comes to. A plain clip would have no gradient outside, and a
    parameter that had left would never return.
    """
    return jnp.clip(x, low, high)


def _clamped_gradient(low, high, x, g):
    outwards = ((x >= high) & (g < 0)) | ((x <= low) & (g > 0))  # descent moves x by -g
    return (jnp.where(outwards, 0.0, g),)


clamped.defvjp(lambda x, low, high: (clamped(x, low, high), x), _clamped_gradient)
