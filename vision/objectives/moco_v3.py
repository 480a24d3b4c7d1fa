"""MoCo v3: Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers".

    q = unit(predictor(projector(f(x))))    k = unit(the teacher's projector(encoder(x)))
    loss = ctr(q1, k2) + ctr(q2, k1),    ctr(q, k) = 2 T mean over rows of -log softmax(q k^T / T)      (algorithm 1)

The negatives are the other keys of the global batch; there is no queue. The teacher follows by
m = 1 - (1 - 0.99) (1 + cos(pi t / total)) / 2. A ViT is stable with its patch projection as it was drawn
(frozen_patches=True, section 4.2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm import momentum
from paradigm.contrastive import info_nce
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from paradigm.schedule import Schedule, as_schedule
from vision.heads import Head, spread, unit
from vision.images import move
from vision.two_views import TwoViews, mean, prefixed

TEACHER = ("encoder", "projector")


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

    pairs = True

    def __post_init__(self):
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

    def init_extra(self, params, key):
        extra = super().init_extra(params, key)
        copied = lambda tree: {name: jax.tree.map(jnp.copy, tree[name]) for name in TEACHER if name in tree}
        stats = extra["batch_stats"]
        return {**extra, "teacher": copied(params), "batch_stats": {**stats, "teacher": copied(stats)}}

    def encode(self, params, extra, batch, ctx):
        views, index, stats = self.look(batch, ctx), batch["index"], extra["batch_stats"]
        online, moments = self.encode_views(params, stats, views, index, ctx, apart=True)
        teacher, seen = self.encode_views(extra["teacher"], stats["teacher"], views, index, ctx, apart=True)
        loss = Loss(stats={**moments, **prefixed("teacher", seen)})
        return {"online": online, "teacher": jax.lax.stop_gradient(teacher)}, loss

    def project(self, params, stats, pooled, ctx, names):
        """([unit vectors [B, output] of either view], moments) of pooled [B, 2, D] after the heads of these names."""
        views = []
        for x in (pooled[:, 0], pooled[:, 1]):
            moments = {}
            for name in names:
                x, _, seen = self.apply(name, params, stats, x, ctx)
                moments.update(seen)
            views.append((unit(x), moments))
        return [z for z, _ in views], mean([moments for _, moments in views])

    def pair_loss(self, params, extra, embeddings, batch, ctx):
        heads, stats = ("projector", "predictor"), extra["batch_stats"]
        q, moments = self.project(params, stats, embeddings["online"], ctx, heads)
        k, seen = self.project(extra["teacher"], stats["teacher"], embeddings["teacher"], ctx, heads[:1])
        k, mask, scale = jax.lax.stop_gradient(k), batch["mask"], 1.0 / self.temperature
        there, back = info_nce(q[0], k[1], scale, mask), info_nce(q[1], k[0], scale, mask)
        nll, correct = there[0] + back[0], there[1] + back[1]
        rows = mask.sum()
        term = Term(2.0 * self.temperature * jnp.sum(nll * mask), rows)
        metrics = {
            "contrast_accuracy": (jnp.sum(correct * mask), 2 * rows),
            "spread": (spread(k[0], mask) * rows, rows),
        }
        return Loss({"contrast": term}, metrics, stats={**moments, **prefixed("teacher", seen)})

    def update_extra(self, extra, params, loss, ctx):
        # The official code moves its teacher at the start of step t, by the momentum of t. It is moved here at the
        # end of the step before, so that evaluation sees the same teacher; its momentum is still that of t.
        decay = as_schedule(self.momentum)(ctx.step + 1)
        teacher = momentum.ema(extra["teacher"], {name: params[name] for name in TEACHER}, decay)
        return {**extra, "teacher": teacher, "batch_stats": move(extra["batch_stats"], loss.stats)}

    def variables(self, params, extra, which="online"):
        if which == "teacher":
            return {"params": extra["teacher"], "batch_stats": extra["batch_stats"]["teacher"]}
        return super().variables(params, extra, which)

    def flops(self, batch_spec):
        rows = 2 * batch_spec["mask"].size
        shared = self.encoder.flops(rows) + self.projector.flops(rows, self.encoder.features)
        return 4.0 * shared + 3.0 * self.predictor.flops(rows, self.output)  # the teacher goes forward only
