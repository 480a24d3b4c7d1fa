"""iGPT: Chen et al. 2020, "Generative Pretraining from Pixels".

A picture is a row of ids, of its pixels' nearest colours (section 3.1) or of a frozen tokenizer; a transformer predicts
each from those before it, in raster order:

    loss = -1/N sum over places t of log p(id_t | id_<t)                                              (section 2.1)

A picture's features are the mean over places of a block's output in the middle (section 2.3), where probes read best.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.architecture import Architecture
from paradigm.attention import AttentionMask
from paradigm.capabilities import GeneratingImages
from paradigm.errors import UserError, build, choose
from paradigm.layers import Dense, Embed
from paradigm.objective import Loss, Term
from paradigm.partition import BATCH, constrain
from paradigm.transformer import Stack
from vision.objectives.base import ImageObjective
from vision.palette import Palette
from vision.patches import unpatchify


class ImageGPT(Architecture, kw_only=True):
    """Ids int [B, L] -> (logits float32 [B, L, V] of each place from those before it, {"layers": [n, B, L, D]}).

    layers: how many. codes: V. image_size, patch: a picture is (image_size / patch)^2 ids; patch is 1 for pixels.
    """

    layers: int
    codes: int = 512
    image_size: int = 32
    patch: int = 1
    channels: int = 3
    activation: str = "quick_gelu"  # as the official code has it
    norm: str = "layer"
    bias: bool = True
    init_std: float | str | None = 0.02
    dropout_style: str = "gpt2"
    scan: bool = True

    has_batch_norm = False

    @property
    def features(self):
        return self.d_model

    @property
    def grid(self):
        return (self.image_size // self.patch,) * 2

    @property
    def length(self):
        """N."""
        return self.grid[0] * self.grid[1]

    @nn.nowrap
    def stack(self, **changes):
        return Stack(**self.shared(positions="none", layers=self.layers, scan=self.scan) | changes)

    @nn.compact
    def __call__(self, ids, *, offset=None, cache=None, keys=None):
        """offset: int32 [], the place of the first id of one for each row, with a cache; None is a whole picture.

        Whole pictures are read with a start token in front, and their last id is not; with a cache `ids` are those
        before the place, and -1 is the start token.
        """
        table = Embed(self.codes, self.d_model, 0.02, self.dtype, name="ids")
        first = self.param("class_token", nn.initializers.normal(0.02), (1, 1, self.d_model)).astype(self.dtype)
        places = Embed(self.length, self.d_model, 0.01, self.dtype, name="positions")
        if cache is None:
            start = jnp.broadcast_to(first, (len(ids), 1, self.d_model))
            x = jnp.concatenate([start, table(ids[:, :-1])], 1) + places(jnp.arange(ids.shape[1]))
            mask = AttentionMask(causal=True)
        else:
            x = jnp.where(ids[..., None] < 0, first, table(jnp.maximum(ids, 0))) + places(offset[None])
            mask = AttentionMask(causal=True, offset=jnp.full(len(ids), offset))
        x, more = self.stack(name="blocks")(constrain(x, BATCH, None, None), mask, cache=cache, keys=keys)
        logits = Dense((self.codes,), 1, False, self.init_std, self.dtype, name="predict")
        return constrain(logits(x).astype(jnp.float32), BATCH, None, None), more

    @nn.nowrap
    def flops(self, batch):
        tokens = batch * self.length
        return self.stack(parent=None).flops(batch, self.length) + 2 * tokens * self.d_model * self.codes


def image_gpt(size="tiny", **fields):
    """An ImageGPT by name: tiny (this project's), s, m, l (Chen et al. 2020, section 3.3); fields: any other."""
    sizes = {"tiny": (64, 4, 4), "s": (512, 24, 8), "m": (1024, 36, 8), "l": (1536, 48, 16)}
    d_model, layers, heads = choose("ImageGPT size", size, sizes)
    return build(ImageGPT, {"d_model": d_model, "layers": layers, "heads": heads, "d_ff": 4 * d_model}, fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IGPT(GeneratingImages, ImageObjective):
    """The next id of a picture.

    encoder: an ImageGPT, whose codes and grid are the source's. source: a Palette, or the VQ or DVAE whose run gives
    module `tokenizer` (Experiment.init, Experiment.freeze). feature_layer: of the block that probes read, None is that
    in the middle.

    Raises UserError where encoder and source differ in codes or grid.
    """

    source: Any = Palette()
    feature_layer: int | None = None

    LONE = 1  # view

    def __post_init__(self):
        super().__post_init__()
        e, palette = self.encoder, isinstance(self.source, Palette)
        grid = (e.image_size,) * 2 if palette else self.source.encoder.grid
        if e.codes != self.source.codes:
            raise UserError(f"IGPT: the encoder has {e.codes} ids and its source {self.source.codes}: set codes alike")
        if e.grid != grid or not palette and e.image_size != self.source.encoder.image_size:
            raise UserError(
                f"IGPT: the encoder has {e.grid[0]} x {e.grid[1]} places and its source {grid[0]} x {grid[1]}: set the "
                "encoder's image_size and patch to the source's (a Palette's patch is 1)"
            )
        if e.channels != (self.source.channels if palette else self.source.encoder.channels):
            raise UserError(f"IGPT: the encoder has {e.channels} channels and its source not: set channels alike")
        if self.views[0].size != e.image_size:
            raise UserError(f"IGPT: views of {self.views[0].size} pixels, but the encoder reads {e.image_size}")

    @property
    def given(self):
        return () if isinstance(self.source, Palette) else ("tokenizer",)

    def modules(self):
        modules = {"encoder": (self.encoder, jnp.zeros((1, self.encoder.length), jnp.int32))}
        if self.given:
            modules["tokenizer"] = (self.source.tokenizer, super().modules()["encoder"][1])
        return modules

    def ids(self, variables, images):
        """Normalised images [B, H, W, C] -> int32 [B, N]."""
        if self.given:
            return self.apply("tokenizer", variables, images)[0]
        return self.source.ids(self.views[0].undo(images))

    def pictures(self, variables, ids):
        """int [B, N] -> pixels float32 [B, H, W, C] in [0, 1]."""
        if not self.given:
            return self.source.pixels(ids, self.encoder.image_size)
        e = self.source.encoder
        outputs = self.source.pixels(self.apply("tokenizer", variables, ids, method="decode")[0])
        return self.views[0].undo(unpatchify(outputs, e.patch, (e.image_size, e.image_size, e.channels)))

    def features(self, variables, images):
        _, more, _ = self.apply("encoder", variables, self.ids(variables, images))
        layer = self.encoder.layers // 2 if self.feature_layer is None else self.feature_layer
        patches = more["layers"][layer]
        return patches.mean(1), {**more, "patches": patches}

    def loss(self, params, extra, batch, ctx):
        images = self.augment_views(batch, ctx)[0] if ctx.train else self.view(batch)
        variables = self.variables(params, extra)
        ids = self.ids(variables, images)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train and self.encoder.is_random else None
        logits, _, _ = self.apply("encoder", variables, ids, keys=keys)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]
        weight = jnp.broadcast_to(batch["mask"][:, None], ids.shape)
        right = (jnp.argmax(logits, -1) == ids) * weight
        return Loss({"ids": Term(jnp.sum(nll * weight), weight.sum())}, {"accuracy": (right.sum(), weight.sum())})

    def generate(self, variables, ids, known, keys, temperature=1.0):
        """Pictures from left to right and from top to bottom: ids int [B, N] whose first `known` stay, keys [B].

        Returns the ids [B, N].
        """
        cache = self.encoder.stack(parent=None).new_cache(len(ids), self.encoder.length)

        def step(state, t):
            cache, last = state
            logits, more, _ = self.apply("encoder", variables, last[:, None], offset=t, cache=cache)
            draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, t), row / temperature)
            drawn = jax.vmap(draw)(keys, logits[:, 0])
            new = jnp.where(t < known, ids[:, t], drawn)
            return ({"self": more["cache"]["self"]}, new), new

        start = cache, jnp.full(len(ids), -1)
        _, drawn = jax.lax.scan(step, start, jnp.arange(self.encoder.length))
        return drawn.T

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        parts = {"encoder": self.encoder.flops(rows)}
        if self.given:
            theirs = self.source.forward_flops(batch_spec)
            parts["tokenizer"] = theirs["encoder"] + theirs["quantizer"]
        return parts
