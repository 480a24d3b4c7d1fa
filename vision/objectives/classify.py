"""Supervised classification: softmax cross-entropy on labels, from scratch or from any encoder that is here.

    loss = mean over labelled examples of -sum_c y_c log softmax(W z + b)_c,   y smoothed towards uniform

It is the yardstick of the others and, started from their encoders, the full fine-tune of He et al. 2022, appendix A.1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.layers import Dense
from paradigm.objective import Loss, Term
from vision.objectives.base import ImageObjective


class Linear(nn.Module):
    """[B, D] -> logits [B, classes]; small at first (std 0.01), so that an encoder that knows something keeps it."""

    classes: int

    @nn.compact
    def __call__(self, x):
        return Dense((self.classes,), bias=True, std=0.01, name="output")(x.astype(jnp.float32)), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(ImageObjective):
    """Labels from pictures. classes: how many. smoothing: the part of a label's probability given to all classes alike.

    An example without a label (-1) weighs nothing.
    """

    classes: int
    smoothing: float = 0.0

    LONE = 1  # view

    def modules(self):
        return {**super().modules(), "classifier": (Linear(self.classes), jnp.zeros((1, self.encoder.features)))}

    def logits(self, variables, images):
        """Normalised images [B, H, W, C] -> float32 [B, classes], in evaluation."""
        pooled, _ = self.features(variables, images)
        return self.apply("classifier", variables, pooled)[0]

    def loss(self, params, extra, batch, ctx):
        if ctx.train:
            images = self.augment(batch["image"], batch["aspect"], ctx.keys("view/0", batch["index"]))
        else:
            images = self.view(batch)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables = self.variables(params, extra)
        pooled, _, moments = self.apply("encoder", variables, images, ctx=ctx, keys=keys)
        logits, _, _ = self.apply("classifier", variables, pooled, ctx=ctx)
        weights = batch["mask"] * (batch["label"] >= 0)
        at = jnp.where(batch["label"] >= 0, batch["label"], 0)
        logs = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(logs, at[:, None], 1)[:, 0]
        nll = -(1 - self.smoothing) * right - self.smoothing * logs.mean(1)
        hits = (jnp.argmax(logits, 1) == at) * weights
        term = Term(jnp.sum(nll * weights), weights.sum())
        return Loss({"labels": term}, {"accuracy": (hits.sum(), weights.sum())}, stats=moments)

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        return {"encoder": self.encoder.flops(rows), "classifier": 2 * rows * self.encoder.features * self.classes}
