"""BYOL: Grill et al. 2020, "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning".

    q = predictor(projector(f(x)))    k = the teacher's projector(encoder(x))
    loss = mean over pictures of |q1 - k2|^2 + |q2 - k1|^2 of unit vectors, that is 2 - 2 cos each       (equation 2)

There are no negatives. The teacher follows the new weights by m = 1 - (1 - 0.996) (cos(pi t / total) + 1) / 2.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.objective import Loss, Term
from paradigm.schedule import Schedule
from paradigm.teacher import Teacher
from vision.heads import Head, embedding_std, l2_normalize
from vision.objectives.two_views import TwoViews, prefixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOL(TwoViews):
    """Either view predicts what the teacher makes of the other.

    momentum: m, or a Schedule: Cosine(peak=0.996, final=1.0), over the run, is the paper's at 1000 epochs (0.99 at 300
    and at 100). hidden: the width of the heads' hidden layers. output: the embedding's.

    BatchNorm has one view of the global batch at a time.
    """

    momentum: float | Schedule = 0.996
    hidden: int = 4096
    output: int = 256

    full_batch = True  # for the heads' BatchNorm
    contrasts = False

    @property
    def head(self):
        return Head((self.hidden, self.output), dtype=self.encoder.dtype)

    def modules(self):
        heads = {
            "projector": (self.head, jnp.zeros((1, self.encoder.features))),
            "predictor": (self.head, jnp.zeros((1, self.output))),
        }
        return {**super().modules(), **heads}

    @property
    def teacher(self):
        return Teacher(self.momentum, ("encoder", "projector"))

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        variables, mask = self.variables(params, extra), batch["mask"]
        q, moments = self.project(variables, embeddings["online"], ctx, "projector", "predictor")
        k, seen = self.project(extra["teacher"], embeddings["teacher"], ctx, "projector")
        q, k = [l2_normalize(x) for x in q], [jax.lax.stop_gradient(l2_normalize(x)) for x in k]
        distance = jnp.sum(jnp.square(q[0] - k[1]), 1) + jnp.sum(jnp.square(q[1] - k[0]), 1)
        rows = mask.sum()
        metrics = {"embedding_std": (embedding_std(k[0], mask) * rows, rows)}
        term = Term(jnp.sum(distance * mask), rows)
        return Loss({"distance": term}, metrics, stats={**moments, **prefixed("teacher", seen)})
