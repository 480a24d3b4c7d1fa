"""I-JEPA: Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".

Four blocks of a picture are to be found, as a teacher that sees all of it represents them, from a context: one large
block less these four (section 3).

    loss = mean over blocks and their patches of smooth_l1(predictor(context, places of the block) - norm(teacher))

The paper has the squared distance (equation 1), the official code smooth L1 and a layer norm without parameters on the
teacher's output. Blocks are drawn as in its MaskCollator, but for each picture by itself, and a context is not cut to
the smallest of the batch: what is missing to the largest possible is padding that nothing sees.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.layers import Dense
from paradigm.objective import Loss, Term
from paradigm.partition import BATCH, constrain
from paradigm.schedule import Schedule
from paradigm.teacher import Teacher
from vision.masking import hidden_first
from vision.objectives.data2vec import smooth_l1, standardized
from vision.objectives.masked_images import OneView
from vision.patches import sincos


class Predictor(nn.Module):
    """(context [B, n, D], places [B, n], whether real, targets' places [B, T], whether real) -> ([B, T, D], {})."""

    encoder: Any
    width: int = 384
    layers: int = 12
    heads: int = 12

    @nn.nowrap
    def stack(self, **changes):
        how = {"d_model": self.width, "d_ff": 4 * self.width, "heads": self.heads, "layers": self.layers}
        return self.encoder.stack(**how, **changes)

    @nn.compact
    def __call__(self, context, places, real, target, wanted):
        e = self.encoder
        dense = lambda n, name: Dense((n,), 1, True, e.init_std, e.dtype, name=name)
        table = jnp.asarray(sincos(self.width, *e.grid), e.dtype)
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
        x = dense(self.width, "embed")(context) + table[places]
        x = jnp.concatenate([x, token.astype(x.dtype) + table[target]], 1)
        mask = AttentionMask(keys=jnp.concatenate([real, wanted], 1).astype(jnp.int32))
        x, _ = self.stack(name="blocks")(constrain(x, BATCH, None, None), mask)
        return dense(e.d_model, "predict")(x[:, context.shape[1] :]), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IJEPA(OneView):
    """What a teacher says of four blocks, from the rest.

    encoder: a ViT without class token, pool='mean'. blocks: how many are to be found. target_scale, target_aspect:
    their part of the picture, and height / width. context_scale: the part that the context's square block has. context:
    how many patches the encoder reads at most, the first of a context that has more, as in the official code; None
    reads all. predictor_width, predictor_layers, predictor_heads: its size. beta: of smooth L1; 0 is the
    squared distance. momentum: of the teacher, Linear from 0.996 to 1 over the run in the official code.

    Raises UserError for an encoder with class token, and for blocks that leave nothing to see.
    """

    blocks: int = 4
    target_scale: tuple = (0.15, 0.2)
    target_aspect: tuple = (0.75, 1.5)
    context_scale: tuple = (0.85, 1.0)
    context: int | None = None
    predictor_width: int = 384
    predictor_layers: int = 12
    predictor_heads: int = 12
    beta: float = 1.0
    momentum: float | Schedule = 0.996

    def __post_init__(self):
        super().__post_init__()
        if self.encoder.prefix:
            raise UserError("IJEPA reads patches alone: set the encoder's class_token=False, registers=0, pool='mean'")
        if self.encoder.grid_bias != "none":
            raise UserError("IJEPA reads some patches of the grid: set the encoder's grid_bias='none'")
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise UserError(f"IJEPA.{name}={(low, high)} are parts of a picture: two rising numbers up to 1")
        rows, columns = self.encoder.grid
        smallest = self._side(self.context_scale[0], 1.0, rows) * self._side(self.context_scale[0], 1.0, columns)
        if min(rows, columns) < 3 or smallest <= self.largest or self.context is not None and self.context < 1:
            raise UserError(
                f"IJEPA: a context of {smallest} patches and targets of up to {self.largest}, of a grid of {rows} x "
                f"{columns}, leave nothing to see: choose a larger image_size / patch, a smaller target_scale or a "
                "larger context"
            )

    def _side(self, scale, ratio, most):
        """Patches of a block's side, at most one less than the grid's, as in the official code."""
        return min(most - 1, max(1, round(math.sqrt(int(self.patches * scale) * ratio))))

    @property
    def largest(self):
        """T: patches of the largest target block."""
        (low, high), (flat, tall) = self.target_scale, self.target_aspect
        draws = [i / 1000 for i in range(1001)]  # of the one number that decides
        blocks = [(low + u * (high - low), flat + u * (tall - flat)) for u in draws]
        rows, columns = self.encoder.grid
        return max(self._side(s, r, rows) * self._side(s, 1 / r, columns) for s, r in blocks)

    @property
    def read(self):
        """n: patches of the largest context."""
        rows, columns = self.encoder.grid
        scale = self.context_scale[1]
        most = self._side(scale, 1.0, rows) * self._side(scale, 1.0, columns)
        return most if self.context is None else min(most, self.context)

    @property
    def teacher(self):
        return Teacher(self.momentum, ("encoder",))

    @property
    def predictor(self):
        return Predictor(self.encoder, self.predictor_width, self.predictor_layers, self.predictor_heads)

    def modules(self):
        places = lambda n: (jnp.zeros((1, n), jnp.int32), jnp.ones((1, n), bool))
        inputs = jnp.zeros((1, self.read, self.encoder.d_model)), *places(self.read), *places(self.largest)
        return {**super().modules(), "decoder": (self.predictor, inputs)}

    def block(self, key, scale, aspect):
        """bool [rows, columns]: a block anywhere. One number draws its size and its shape, as in the official code."""
        rows, columns = self.encoder.grid
        u = jax.random.uniform(key, (3,))
        area = jnp.floor(self.patches * (scale[0] + u[0] * (scale[1] - scale[0])))
        ratio = aspect[0] + u[0] * (aspect[1] - aspect[0])
        height = jnp.clip(jnp.round(jnp.sqrt(area * ratio)), 1, rows - 1)
        width = jnp.clip(jnp.round(jnp.sqrt(area / ratio)), 1, columns - 1)
        # torch.randint leaves the last place out.
        top, left = jnp.floor(u[1] * (rows - height)), jnp.floor(u[2] * (columns - width))
        y, x = jnp.arange(rows)[:, None], jnp.arange(columns)
        return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)

    def draw_blocks(self, keys):
        """Keys [B] -> (context bool [B, N], targets bool [B, blocks, N]). No patch is in both.

        A context that the targets cover is what they leave of the picture; the official code draws again.
        """

        def one(key):
            keys = jax.random.split(key, self.blocks + 1)
            targets = jax.vmap(lambda k: self.block(k, self.target_scale, self.target_aspect))(keys[1:])
            context = self.block(keys[0], self.context_scale, (1.0, 1.0)) & ~targets.any(0)
            context = jnp.where(context.any(), context, ~targets.any(0))
            return context.reshape(-1), targets.reshape(self.blocks, -1)

        return jax.vmap(one)(keys)

    def predict(self, variables, images, context, targets, keys=None):
        """-> (float32 [B, blocks, T, D], the targets' places [B, blocks, T], whether each is one)."""
        places = hidden_first(context, self.read)
        real = jnp.take_along_axis(context, places, 1)
        seen = AttentionMask(keys=real.astype(jnp.int32))
        _, more, _ = self.apply("encoder", variables, images, keep=places, attention=seen, keys=keys)
        b = len(images)
        wanted_places = hidden_first(targets.reshape(b * self.blocks, -1), self.largest)
        wanted = jnp.take_along_axis(targets.reshape(b * self.blocks, -1), wanted_places, 1)
        each = lambda x: jnp.repeat(x, self.blocks, 0)
        read = each(more["patches"]), each(places), each(real), wanted_places, wanted
        found = self.apply("decoder", variables, *read)[0].astype(jnp.float32)
        shaped = lambda x: x.reshape(b, self.blocks, *x.shape[1:])
        return shaped(found), shaped(wanted_places), shaped(wanted)

    def loss(self, params, extra, batch, ctx):
        images = self.draw(batch, ctx)
        context, targets = self.draw_blocks(ctx.keys("blocks", batch["index"]))
        keys = self.dropout_keys(batch, ctx)
        found, places, wanted = self.predict(self.variables(params, extra), images, context, targets, keys)
        whole = self.apply("encoder", extra["teacher"], images)[1]["patches"]
        whole = jax.lax.stop_gradient(standardized(whole))[:, None]
        difference = found - jnp.take_along_axis(whole, places[..., None], 2)
        error = smooth_l1(difference, self.beta) if self.beta else jnp.square(difference)
        weight = wanted * batch["mask"][:, None, None]
        return Loss({"patches": Term(jnp.sum(error.mean(-1) * weight), weight.sum())})

    def forward_flops(self, batch_spec):
        rows, width = batch_spec["mask"].size, self.predictor_width
        length = self.read + self.largest
        predictor = self.predictor.stack(parent=None).flops(rows * self.blocks, length)
        predictor += 2 * rows * self.blocks * length * width * self.encoder.d_model
        return {"encoder": self.encoder.flops(rows, self.read), "decoder": predictor}
