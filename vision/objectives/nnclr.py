"""NNCLR: Dwibedi et al. 2021, "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning ...".

    z = l2_normalize(projector(f(x)))    p = l2_normalize(predictor(projector(f(x))))
    n(z) = the nearest neighbour of z in a queue of earlier z1
    loss = mean over rows of ctr(n(z1), p2) / 2 + ctr(n(z2), p1) / 2,    ctr(n, p) = -log softmax_j(n_i p_j / T)_i
                                                                                        (equations 3, 4; algorithm 1)

The negatives are the other predictions of the global batch. The neighbours are constants; z1 of the batch replaces the
oldest in the queue.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm import rng
from paradigm.contrastive import info_nce, nearest
from paradigm.errors import UserError
from paradigm.objective import MAIN, Loss, Term
from paradigm.teacher import push
from vision.heads import Head, embedding_std, l2_normalize
from vision.objectives.two_views import TwoViews


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNCLR(TwoViews):
    """A view's nearest neighbour is the positive of the other view.

    temperature: T. queue: embeddings kept, a multiple of the batch. projector_widths: of its three layers, all with
    BatchNorm. hidden: of the predictor. Views: byol_views, or SimCLR's (section 4.1 has BYOL's multi-view settings).

    BatchNorm has one view of the global batch at a time.
    """

    temperature: float = 0.1
    queue: int = 98304
    projector_widths: tuple = (2048, 2048, 256)
    hidden: int = 4096

    full_batch = True

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"NNCLR.temperature={self.temperature} must be positive")

    @property
    def output(self):
        """The embedding's width."""
        return self.projector_widths[-1]

    def modules(self):
        dtype = self.encoder.dtype
        projector = Head(tuple(self.projector_widths), last_norm="plain", dtype=dtype)
        predictor = Head((self.hidden, self.output), dtype=dtype)
        heads = {
            "projector": (projector, jnp.zeros((1, self.encoder.features))),
            "predictor": (predictor, jnp.zeros((1, self.output))),
        }
        return {**super().modules(), **heads}

    def batch_spec(self, batch_size, phase=MAIN):
        """Raises UserError when the queue is not a multiple of the batch."""
        if self.queue % batch_size:
            near = max(1, round(self.queue / batch_size)) * batch_size
            raise UserError(
                f"NNCLR.queue={self.queue} is not a multiple of the batch of {batch_size}, which replaces its oldest "
                f"embeddings: set NNCLR.queue = {near}, or another batch size"
            )
        return super().batch_spec(batch_size, phase)

    def init_extra(self, params, key):
        """The queue and its cursor, and batch_stats."""
        queue = l2_normalize(jax.random.normal(rng.fold(key, "queue"), (self.queue, self.output)))
        return {**super().init_extra(params, key), "queue": queue, "cursor": jnp.zeros((), jnp.int32)}

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        variables, mask, scale = self.variables(params, extra), batch["mask"], 1.0 / self.temperature
        z, moments = self.project(variables, embeddings["online"], ctx, "projector")
        p, more = self.project(variables, jnp.stack(z, 1), ctx, "predictor")
        z, p = [jax.lax.stop_gradient(l2_normalize(x)) for x in z], [l2_normalize(x) for x in p]
        neighbours = [nearest(x, extra["queue"]) for x in z]
        there, back = (info_nce(neighbours[i], p[1 - i], scale, mask) for i in (0, 1))
        nll, correct = (there[0] + back[0]) / 2, there[1] + back[1]
        rows = mask.sum()
        metrics = {
            "contrast_accuracy": (jnp.sum(correct * mask), 2 * rows),
            "embedding_std": (embedding_std(z[0], mask) * rows, rows),
        }
        return Loss({"contrast": Term(jnp.sum(nll * mask), rows)}, metrics, {"keys": z[0]}, {**moments, **more})

    def update_extra(self, extra, params, loss, ctx):
        queue, cursor = push(extra["queue"], extra["cursor"], loss.rows["keys"])
        return {**super().update_extra(extra, params, loss, ctx), "queue": queue, "cursor": cursor}
