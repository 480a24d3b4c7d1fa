"""SigLIP: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2 and algorithm 1.

z_i = l2_normalize(f(image)), z_t = l2_normalize(g(text)); exp(t') and b learned, exp(t') = 10 and b = -10 at first
loss = mean over pictures of sum over the batch's texts of -log sigmoid(+-(exp(t') z_i.z_t + b)), + for its own
"""

import dataclasses
import math

import jax.numpy as jnp

from multimodal.objectives.base import ImageText
from paradigm.contrastive import sigmoid_pairs
from paradigm.objective import Loss, Term


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIP(ImageText):
    """For each picture and each caption of the batch: do they belong together, yes or no?

    first_scale, first_bias: exp(t') and b at first, learned as `log_scale` and `bias`. The bias starts where almost
    every pair is a no, as almost every pair is.
    """

    ignore_aspect: bool = True
    first_scale: float = 10.0
    first_bias: float = -10.0

    @property
    def scalars(self):
        return {"log_scale": math.log(self.first_scale), "bias": self.first_bias}

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        mask, scale, bias = batch["mask"], self.scale(params), params["bias"]
        total, correct = sigmoid_pairs(embeddings["image"], embeddings["text"], scale, bias, mask)
        rows = mask.sum()
        metrics = {
            "image_to_text": (jnp.sum(correct * mask), rows),
            "scale": (scale, jnp.float32(1.0)),
            "bias": (bias, jnp.float32(1.0)),
        }
        return Loss({"pairs": Term(jnp.sum(total * mask), rows)}, metrics)

    def scale(self, params):
        """[] what cosines are multiplied by."""
        return jnp.exp(params["log_scale"])

    def logits(self, params, image, text):
        """Unit vectors [B, E], [T, E] -> float32 [B, T], whose sigmoid is the probability of belonging together."""
        cosines = jnp.dot(image, text.T, preferred_element_type=jnp.float32)
        return self.scale(params) * cosines + params["bias"]
