"""What the objectives on two views of a picture share, beside what all objectives on images do."""

import dataclasses

import jax
import jax.numpy as jnp

from vision.objectives.base import ImageObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoViews(ImageObjective):
    """Base of the objectives on two views. Evaluation draws them too, by index: two equal views would be no task."""

    def augment_views(self, batch, ctx):
        """The two views of each picture, float32 [B, H, W, C] each."""
        image, aspect, index = batch["image"], batch["aspect"], batch["index"]
        return tuple(view(image, aspect, ctx.keys(f"view/{i}", index)) for i, view in enumerate(self.views))

    def encode_views(self, variables, views, index, ctx, apart):
        """(pooled [B, V, D], moments) of V views; see `apply`.

        apart: whether a BatchNorm in the encoder sees one view at a time, or all of them together.
        """
        count = len(views)
        keys = None
        if ctx.train and self.encoder.is_random:
            keys = [ctx.keys(f"dropout/{i}", index) for i in range(count)]
        if apart and self.encoder.has_batch_norm:
            each = [self.apply("encoder", variables, x, ctx=ctx, keys=keys and keys[i]) for i, x in enumerate(views)]
            return jnp.stack([pooled for pooled, _, _ in each], 1), mean([moments for _, _, moments in each])
        # Views of a picture side by side: on a mesh each device keeps its own rows, as it would not if they were
        # concatenated.  V x [B, ...] -> [B, V, ...] -> [B V, ...]
        flat = lambda xs: jnp.stack(xs, 1).reshape(-1, *xs[0].shape[1:])
        x, _, moments = self.apply("encoder", variables, flat(views), ctx=ctx, keys=keys and flat(keys))
        return x.reshape(-1, count, x.shape[-1]), moments


def mean(trees):
    """The mean of trees, leaf by leaf."""
    return jax.tree.map(lambda *xs: sum(xs) / len(xs), *trees)


def prefixed(name, named):
    return {f"{name}/{key}": value for key, value in named.items()}
