"""Momentum contrast with a queue: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning",
and Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning" (v2).

    q = l2_normalize(f(one view))    k = l2_normalize(teacher(the other view))
    logits = [q.k, q.queue] / T, the first is right
    then: teacher <- m teacher + (1 - m) f;    the keys of the batch replace the oldest in the queue       (section 3.1)

The official code shuffles the batch over GPUs so that no BatchNorm sees a query and its key together (section 3.3).
Here BatchNorm has the statistics of the global batch, one view at a time, and nothing is shuffled: another cure for the
same leak (MoCo v3's), not the paper's, and its accuracy is not claimed to be the same.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm import rng
from paradigm.contrastive import info_nce
from paradigm.errors import UserError
from paradigm.objective import MAIN, Loss, Term
from paradigm.schedule import Schedule
from paradigm.teacher import Teacher, push
from vision.heads import Head, embedding_std, l2_normalize
from vision.objectives.two_views import Projected, prefixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class _MoCo(Projected):
    """What both versions are.

    queue: keys kept, a multiple of the batch. momentum: m, or a Schedule of it. temperature: of the softmax.
    output: the embedding's width.
    """

    queue: int = 65536
    momentum: float | Schedule = 0.999
    temperature: float = 0.07
    output: int = 128

    hidden_layers = 0  # of the head

    @property
    def teacher(self):
        return Teacher(self.momentum, ("encoder", "projector"))

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"{type(self).__name__}.temperature={self.temperature} must be positive")

    @property
    def projector(self):
        hidden = (self.encoder.features,) * self.hidden_layers
        return Head((*hidden, self.output), norm=False, dtype=self.encoder.dtype)

    def batch_spec(self, batch_size, phase=MAIN):
        """Raises UserError when the queue is not a multiple of the batch."""
        if self.queue % batch_size:
            near = max(1, round(self.queue / batch_size)) * batch_size
            name = type(self).__name__
            raise UserError(
                f"{name}.queue={self.queue} is not a multiple of the batch of {batch_size}, which replaces its oldest "
                f"keys: set {name}.queue = {near}, or another batch size"
            )
        return super().batch_spec(batch_size, phase)

    def init_extra(self, params, key):
        """The teacher, the queue and its cursor; batch_stats where the encoder has BatchNorm."""
        queue = l2_normalize(jax.random.normal(rng.fold(key, "queue"), (self.queue, self.output)))
        return {**super().init_extra(params, key), "queue": queue, "cursor": jnp.zeros((), jnp.int32)}

    def embed(self, variables, view, batch, ctx, dropout="dropout"):
        """(unit vectors [B, output], moments) of a view."""
        pooled, moments = self.encode_views(variables, (view,), batch["index"], ctx, apart=True, dropout=dropout)
        return l2_normalize(self.apply("projector", variables, pooled[:, 0], ctx=ctx)[0]), moments

    def loss(self, params, extra, batch, ctx):
        query, key = self.augment_views(batch, ctx)
        q, moments = self.embed(self.variables(params, extra), query, batch, ctx)
        k, seen = self.embed(extra["teacher"], key, batch, ctx, "dropout/teacher")
        k, queue, mask = jax.lax.stop_gradient(k), extra["queue"], batch["mask"]
        nll, correct = info_nce(q, queue, 1.0 / self.temperature, positives=k)
        rows = mask.sum()
        metrics = {
            "contrast_accuracy": (jnp.sum(correct * mask), rows),
            "embedding_std": (embedding_std(queue) * rows, rows),
        }
        term = Term(jnp.sum(nll * mask), rows)
        return Loss({"contrast": term}, metrics, {"keys": k}, {**moments, **prefixed("teacher", seen)})

    def update_extra(self, extra, params, loss, ctx):
        queue, cursor = push(extra["queue"], extra["cursor"], loss.rows["keys"])
        return {**super().update_extra(extra, params, loss, ctx), "queue": queue, "cursor": cursor}

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        heads = {"projector": self.projector.flops(rows, self.encoder.features)}
        return {
            "encoder": self.encoder_flops(rows, self.views[:1]),
            **heads,
            "logits": 2 * rows * self.output * self.queue,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV1(_MoCo):
    """MoCo v1: a linear head. Views: moco_v1_views."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV2(_MoCo):
    """MoCo v2: a head of two layers, a higher temperature (section 3; `--mlp --moco-t 0.2`). Views: moco_v2_views."""

    temperature: float = 0.2

    hidden_layers = 1
