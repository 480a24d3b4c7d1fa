"""SimSiam: Chen and He 2021, "Exploring Simple Siamese Representation Learning".

    z = projector(f(x))    p = predictor(z)
    loss = mean over pictures of -cos(p1, stop_gradient(z2)) / 2 - cos(p2, stop_gradient(z1)) / 2        (equation 4)

There is no teacher and there are no negatives: the stopped gradient alone keeps it from collapse (section 4.1).
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.objective import Loss, Term
from vision.heads import Head, embedding_std, l2_normalize
from vision.objectives.two_views import TwoViews


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimSiam(TwoViews):
    """Either view predicts the other's projection.

    output: the width of the projection; projector_layers: of it, all of them with BatchNorm. The hidden ones are as
    wide as the encoder's output. hidden: of the predictor, a bottleneck (section 4.4). Views: moco_v2_views.

    BatchNorm has one view of the global batch at a time.
    """

    output: int = 2048
    projector_layers: int = 3
    hidden: int = 512

    full_batch = True  # for the heads' BatchNorm
    contrasts = False

    @property
    def projector(self):
        widths = (self.encoder.features,) * (self.projector_layers - 1) + (self.output,)
        return Head(widths, last_norm="plain", dtype=self.encoder.dtype)

    @property
    def predictor(self):
        return Head((self.hidden, self.output), last_bias=True, dtype=self.encoder.dtype)

    def modules(self):
        heads = {
            "projector": (self.projector, jnp.zeros((1, self.encoder.features))),
            "predictor": (self.predictor, jnp.zeros((1, self.output))),
        }
        return {**super().modules(), **heads}

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        variables, mask = self.variables(params, extra), batch["mask"]
        z, moments = self.project(variables, embeddings["online"], ctx, "projector")
        p, more = self.project(variables, jnp.stack(z, 1), ctx, "predictor")
        p, z = [l2_normalize(x) for x in p], [jax.lax.stop_gradient(l2_normalize(x)) for x in z]
        cosine = jnp.sum(p[0] * z[1], 1) / 2 + jnp.sum(p[1] * z[0], 1) / 2
        rows = mask.sum()
        metrics = {"embedding_std": (embedding_std(z[0], mask) * rows, rows)}
        return Loss({"cosine": Term(-jnp.sum(cosine * mask), rows)}, metrics, stats={**moments, **more})
