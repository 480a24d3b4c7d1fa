"""What the objectives on two views of a picture share, beside what all objectives on images do."""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm import trees
from paradigm.errors import UserError
from paradigm.objective import Loss
from vision.heads import Head
from vision.objectives.base import ImageObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoViews(ImageObjective):
    """Base of the objectives on two views. Evaluation draws them too, by index: two equal views would be no task.

    Raises UserError when `augment` gives another number of them.
    """

    def __post_init__(self):
        super().__post_init__()
        sizes = [len(group) for group, count in self.groups for _ in range(count)]
        if sizes != [1, 1]:
            raise UserError(
                f"{type(self).__name__} compares two views of a picture and its augment gives {sum(sizes)}: give one "
                "Augment for both, or a pair"
            )

    def encode(self, params, extra, batch, ctx):
        """{"online": pooled [B, 2, D]}, and "teacher" alike where there is one; BatchNorm has one view at a time."""
        views, index = self.augment_views(batch, ctx), batch["index"]
        online, moments = self.encode_views(self.variables(params, extra), views, index, ctx, apart=True)
        if self.teacher is None:
            return {"online": online}, Loss(stats=moments)
        teacher, seen = self.encode_views(extra["teacher"], views, index, ctx, apart=True, dropout="dropout/teacher")
        loss = Loss(stats={**moments, **prefixed("teacher", seen)})
        return {"online": online, "teacher": jax.lax.stop_gradient(teacher)}, loss

    def project(self, variables, pooled, ctx, *names):
        """([[B, E] of either view], moments) of pooled [B, 2, D] after the heads of these names, a view at a time."""
        views = []
        for x in (pooled[:, 0], pooled[:, 1]):
            moments = {}
            for name in names:
                x, _, seen = self.apply(name, variables, x, ctx=ctx)
                moments.update(seen)
            views.append((x, moments))
        return [z for z, _ in views], trees.mean([moments for _, moments in views])

    def forward_flops(self, batch_spec):
        """Of the encoder and of the heads, which read one another's output."""
        rows, width, parts = 2 * batch_spec["mask"].size, self.encoder.features, {}
        for name, (module, _) in self.modules().items():
            if name == "encoder":
                parts[name] = self.encoder_flops(rows // 2, self.views)
            else:
                parts[name], width = module.flops(rows, width), module.widths[-1]
        return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projected(TwoViews):
    """Base of those with one head. A subclass gives `projector`, a Head."""

    @property
    def projector(self):
        raise NotImplementedError

    def modules(self):
        return {**super().modules(), "projector": (self.projector, jnp.zeros((1, self.encoder.features)))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByDims(Projected):
    """Base of those that compare the dims of embeddings over the batch and no pictures with one another.

    widths: of the projector's layers, with BatchNorm between them, which has one view of the global batch at a time.
    """

    widths: tuple = (8192, 8192, 8192)

    full_batch = True
    contrasts = False

    @property
    def projector(self):
        return Head(tuple(self.widths), dtype=self.encoder.dtype)


def prefixed(name, named):
    return {f"{name}/{key}": value for key, value in named.items()}
