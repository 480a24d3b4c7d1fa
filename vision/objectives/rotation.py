"""Rotation prediction: Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations".

Each picture is shown turned by 0, 90, 180 and 270 degrees, and which of the four it is has to be told (section 3.1):

    loss = -1/4 sum over k of log softmax(W f(x turned by k) + b)_k                                   (equation 3)
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.objective import Loss, Term
from vision.objectives.base import ImageObjective
from vision.objectives.classify import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(ImageObjective):
    """How far a picture was turned, of all four in a batch."""

    LONE = 1  # view

    def modules(self):
        return {**super().modules(), "classifier": (Linear(4), jnp.zeros((1, self.encoder.features)))}

    def loss(self, params, extra, batch, ctx):
        view = self.augment_views(batch, ctx)[0] if ctx.train else self.view(batch)
        turned = tuple(jnp.rot90(view, k, (1, 2)) for k in range(4))
        variables = self.variables(params, extra)
        pooled, moments = self.encode_views(variables, turned, batch["index"], ctx)  # [B, 4, D]
        logits, _, _ = self.apply("classifier", variables, pooled, ctx=ctx)
        nll = -jnp.diagonal(jax.nn.log_softmax(logits), axis1=1, axis2=2)  # [B, 4]
        right = jnp.argmax(logits, -1) == jnp.arange(4)
        weight = jnp.broadcast_to(batch["mask"][:, None], nll.shape)
        metrics = {"accuracy": (jnp.sum(right * weight), weight.sum())}
        return Loss({"turns": Term(jnp.sum(nll * weight), weight.sum())}, metrics, stats=moments)

    def forward_flops(self, batch_spec):
        rows = 4 * batch_spec["mask"].size
        return {"encoder": self.encoder_flops(rows, self.views[:1]), "classifier": 2 * rows * self.encoder.features * 4}
