"""SwAV: Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments".

    z = l2_normalize(projector(f(any view)))    s = cosines of z with K prototypes
    q = sinkhorn(s / epsilon) of the large views, over the batch and a queue of earlier z              (equation 3)
    loss = mean over pictures and pairs of a large view i and another view v of -sum_k q_i log softmax(s_v / T)
                                                                                                   (equations 1, 2, 6)

The prototypes have no gradient in the first `freeze_steps`. The official code scales them to unit length before each
step; here they are read as unit vectors, whatever their length.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm import rng
from paradigm.errors import UserError
from paradigm.objective import MAIN, Loss, Term
from paradigm.teacher import push, sinkhorn
from vision.heads import Head, Prototypes, embedding_std, l2_normalize
from vision.objectives.multi_crop import MultiCrop, entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwAV(MultiCrop):
    """All views predict the balanced assignments of the large ones.

    temperature: T. epsilon, iterations: of Sinkhorn. hidden, output: widths of the projector, which has BatchNorm over
    all views of the global batch. queue: earlier rows of either large view that take part in Sinkhorn, a multiple of
    the batch, used once it is full; 0 for none (3840 at batch 256). queue_from: the first step that uses it.
    freeze_steps: see above. Views: swav_views.

    Raises UserError when the queue is not a multiple of the batch.
    """

    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    hidden: int = 2048
    output: int = 128
    queue: int = 0
    queue_from: int = 0
    freeze_steps: int = 313

    full_batch = True

    @property
    def projector(self):
        return Head((self.hidden, self.output), dtype=self.encoder.dtype)

    def modules(self):
        heads = {
            "projector": (self.projector, jnp.zeros((1, self.encoder.features))),
            "prototypes": (Prototypes(self.prototypes, dtype=self.encoder.dtype), jnp.zeros((1, self.output))),
        }
        return {**super().modules(), **heads}

    def batch_spec(self, batch_size, phase=MAIN):
        if self.queue % batch_size:
            near = max(1, round(self.queue / batch_size)) * batch_size
            raise UserError(
                f"SwAV.queue={self.queue} is not a multiple of the batch of {batch_size}: set SwAV.queue = {near}"
            )
        return super().batch_spec(batch_size, phase)

    def init_extra(self, params, key):
        """The queue [2, K, D] of the two large views and its cursor; batch_stats."""
        extra = super().init_extra(params, key)
        if not self.queue:
            return extra
        queue = l2_normalize(jax.random.normal(rng.fold(key, "queue"), (2, self.queue, self.output)))
        return {**extra, "queue": queue, "cursor": jnp.zeros((), jnp.int32)}

    def encode(self, params, extra, batch, ctx):
        views = self.augment_views(batch, ctx)
        pooled, moments = self.encode_views(self.variables(params, extra), views, batch["index"], ctx)
        return pooled, Loss(stats=moments)

    def assign(self, scores, variables, extra, view, mask, ctx):
        """q [B, K] of a large view's scores [B, K]."""
        scores, mask = jax.lax.stop_gradient(scores)[:, None], mask[:, None]
        if self.queue:
            # The queue's rows stand beside the batch's, some for each: on a mesh all of them stay where they are.
            kept = extra["queue"][view].reshape(len(scores), -1, self.output)
            older = jax.lax.stop_gradient(self.apply("prototypes", variables, kept)[0])
            filled = ctx.step >= max(self.queue_from, self.queue // len(scores))
            scores = jnp.concatenate([scores, older], 1)
            mask = jnp.concatenate([mask, jnp.full(older.shape[:2], filled, jnp.float32)], 1)
        return sinkhorn(scores / self.epsilon, mask, self.iterations)[:, 0]

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        variables, mask = self.variables(params, extra), batch["mask"]
        flat = embeddings.reshape(-1, embeddings.shape[-1])  # [B, V, D] -> [B V, D]
        z, _, moments = self.apply("projector", variables, flat, ctx=ctx)
        z = l2_normalize(z).reshape(*embeddings.shape[:2], -1)
        scores, _, _ = self.apply("prototypes", variables, z, ctx.step < self.freeze_steps, ctx=ctx)
        q = jnp.stack([self.assign(scores[:, i], variables, extra, i, mask, ctx) for i in (0, 1)], 1)
        rows = mask.sum()
        metrics = {
            "teacher_entropy": entropy(q, jnp.broadcast_to(mask[:, None], q.shape[:2])),
            "embedding_std": (embedding_std(z[:, 0], mask) * rows, rows),
        }
        keys = {"keys": jax.lax.stop_gradient(z[:, :2])} if self.queue else {}
        term = Term(jnp.sum(self.agreement(q, scores / self.temperature) * mask), rows)
        return Loss({"views": term}, metrics, keys, moments)

    def update_extra(self, extra, params, loss, ctx):
        new = super().update_extra(extra, params, loss, ctx)
        if not self.queue:
            return new
        one = lambda queue, rows: push(queue, extra["cursor"], rows)
        queue, cursor = jax.vmap(one, out_axes=(0, None))(extra["queue"], loss.rows["keys"].swapaxes(0, 1))
        return {**new, "queue": queue, "cursor": cursor}

    def forward_flops(self, batch_spec):
        """Without the queue's scores, which are of no row of the batch and have no gradient."""
        rows = batch_spec["mask"].size
        seen = rows * len(self.views)
        return {
            "encoder": self.encoder_flops(rows, self.views),
            "projector": self.projector.flops(seen, self.encoder.features),
            "prototypes": self.modules()["prototypes"][0].flops(seen, self.output),
        }
