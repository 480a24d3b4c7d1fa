"""MoCo v3: Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers".

    q = l2_normalize(predictor(projector(f(x))))    k = l2_normalize(the teacher's projector(encoder(x)))
    loss = ctr(q1, k2) + ctr(q2, k1),    ctr(q, k) = 2 T mean over rows of -log softmax(q k^T / T)      (algorithm 1)

The negatives are the other keys of the global batch; there is no queue. The teacher follows by
m = 1 - (1 - 0.99) (1 + cos(pi t / total)) / 2. A ViT is stable with its patch projection as it was drawn
(section 4.2): Experiment.freeze = (('^encoder/embed/', True),).
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.contrastive import info_nce
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from paradigm.schedule import Schedule
from paradigm.teacher import Teacher
from vision.heads import Head, embedding_std, l2_normalize
from vision.objectives.two_views import TwoViews, prefixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV3(TwoViews):
    """Both views' queries against the other view's keys.

    momentum: m, or a Schedule: Cosine(peak=0.99, final=1.0), over the run, is the paper's.
    temperature: 0.2 for a ViT, 1.0 for a ResNet. projector_layers: 3 for a ViT, 2 for a ResNet. hidden: the width
    of the heads' hidden layers. output: the embedding's. predictor_norm: BatchNorm on the predictor's output, as the
    official code has it for a ViT and not for a ResNet.

    BatchNorm has one view of the global batch at a time.
    """

    momentum: float | Schedule = 0.99
    temperature: float = 0.2
    projector_layers: int = 3
    hidden: int = 4096
    output: int = 256
    predictor_norm: bool = True

    full_batch = True

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"MoCoV3.temperature={self.temperature} must be positive")

    @property
    def projector(self):
        widths = (self.hidden,) * (self.projector_layers - 1) + (self.output,)
        return Head(widths, last_norm="plain", dtype=self.encoder.dtype)

    @property
    def predictor(self):
        last = "plain" if self.predictor_norm else "none"
        return Head((self.hidden, self.output), last_norm=last, dtype=self.encoder.dtype)

    def modules(self):
        heads = {
            "projector": (self.projector, jnp.zeros((1, self.encoder.features))),
            "predictor": (self.predictor, jnp.zeros((1, self.output))),
        }
        return {**super().modules(), **heads}

    @property
    def teacher(self):
        # The official code moves its teacher at the start of step t, by the momentum of t. It is moved here at the
        # end of the step before, so that evaluation sees the same teacher; its momentum is still that of t.
        return Teacher(self.momentum, ("encoder", "projector"), ahead=1)

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        variables = self.variables(params, extra)
        q, moments = self.project(variables, embeddings["online"], ctx, "projector", "predictor")
        k, seen = self.project(extra["teacher"], embeddings["teacher"], ctx, "projector")
        q, k = [l2_normalize(x) for x in q], [jax.lax.stop_gradient(l2_normalize(x)) for x in k]
        mask, scale = batch["mask"], 1.0 / self.temperature
        there, back = info_nce(q[0], k[1], scale, mask), info_nce(q[1], k[0], scale, mask)
        nll, correct = there[0] + back[0], there[1] + back[1]
        rows = mask.sum()
        term = Term(2.0 * self.temperature * jnp.sum(nll * mask), rows)
        metrics = {
            "contrast_accuracy": (jnp.sum(correct * mask), 2 * rows),
            "embedding_std": (embedding_std(k[0], mask) * rows, rows),
        }
        return Loss({"contrast": term}, metrics, stats={**moments, **prefixed("teacher", seen)})
