"""MAGMA: Eichenberg et al. 2022, "MAGMA - Multimodal Augmentation of Generative Models through Adapter-based
Finetuning"; and what it builds on, Frozen (Tsimpoukelli et al. 2021, "Multimodal Few-Shot Learning with Frozen Language
Models").

A language model that was trained on text stays as it is, and reads a picture as if it were words before the caption:

    v = norm(dropout(W f(image) + b))       one vector of the model's width for each patch          (section 3.1)
    loss = -mean over tokens of log p(y[t] | v, y[<t])                                               (section 3.2)

What is trained: f, W and b, and adapters in the model, which follow the MLP of every layer (section 3.3):

    Experiment.adapt = @BottleneckAdapter(), BottleneckAdapter.style = 'mlp', BottleneckAdapter.where = '^model/'
    BottleneckAdapter.train = ('^encoder/',)                           without the last, the picture's encoder stays too
    Experiment.init = (@text/Init(), @image/Init())

Frozen trains f, W and b alone: adapt = @LinearProbe() with LinearProbe.train = ('^encoder/',). The picture's encoder of
the paper is CLIP's ResNet before its pooling, here it is a ViT. A caption begins with the vocabulary's start, by which
the model knows where a text begins; the official build_labels predicts its first token from the picture's last vector.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from multimodal.objectives.captioner import CaptionObjective
from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.layers import Dense, LayerNorm, drop
from paradigm.objective import EVALUATION, Loss
from paradigm.partition import BATCH, constrain
from t5like.models import PARTITION_RULES, Decoder


class ImagePrefix(nn.Module):
    """Patches [B, N, C] -> ([B, N, width], {}), vectors that stand where embeddings of words do."""

    width: int
    dropout: float = 0.1
    std: float | None = None
    dtype: Any = jnp.float32

    @property
    def is_random(self):
        return self.dropout > 0

    @nn.compact
    def __call__(self, patches, keys=None):
        x = Dense((self.width,), 1, True, self.std, self.dtype, name="project")(patches)
        x = drop(constrain(x, BATCH, None, None), keys, "prefix", self.dropout)
        return LayerNorm(dtype=self.dtype, name="norm")(x), {}


class PrefixedDecoder(Decoder, kw_only=True):
    """A Decoder, with its parameters, that reads `before` vectors and then tokens."""

    before: int

    @property
    def places(self):
        return super().places - self.before

    def decode(self, encoded, tokens, input_segments=None, keys=None, cache=None):
        """[B, before, D] and int32 [B, L] -> (hidden [B, L, D], intermediates).

        encoded: None when the cache holds them. cache: see `new_cache`.
        """
        del input_segments
        offset = 0 if cache is None else cache["index"]
        x = self.embed(tokens)
        x = x * jnp.asarray(self.d_model**0.5, x.dtype) if self.scale_embeddings else x
        x = x if encoded is None else jnp.concatenate([encoded.astype(x.dtype), x], 1)
        positions = jnp.arange(x.shape[1]) + jnp.reshape(offset, (-1, 1))
        if self.positions == "learned":
            x = x + self.learned(positions + self.position_offset)
        mask = AttentionMask(True, offset=None if cache is None else offset, window=self.window)
        own = None if cache is None else cache["decoder"]
        hidden, found = self.decoder(constrain(x, BATCH, None, None), mask, positions=positions, keys=keys, cache=own)
        if cache is not None:
            found = {**found, "cache": {"index": offset + x.shape[1], "decoder": found["cache"]}}
        return hidden[:, -tokens.shape[1] :], found

    def __call__(self, encoded, tokens):
        x, found = self.decode(encoded, tokens)
        if self.is_initializing():
            self.score(x)
        return x, found

    @nn.nowrap
    def new_cache(self, batch, length):
        """An empty cache for the vectors and `length` tokens."""
        return super().new_cache(batch, self.before + length)

    @nn.nowrap
    def flops(self, batch, length):
        """Forward FLOPs for captions of `length` tokens, all logits counted."""
        out = 2 * batch * length * self.d_model * self.vocab_size
        return self.stack(parent=None).flops(batch, self.before + length) + out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magma(CaptionObjective):
    """Captions from pictures, by a language model.

    encoder: a ViT, module `encoder`. model: a Decoder, module `model`, as runs on text and the transformers library's
    files have it. length: tokens of a caption, its start and its end included. dropout: of the picture's vectors.

    Raises UserError for another kind of model, an encoder without patches, and where the model has no positions for a
    picture and a caption.
    """

    model: Any = None
    length: int = 64
    dropout: float = 0.1

    reader = "model"

    def __post_init__(self):
        if not isinstance(self.model, Decoder):
            raise UserError(f"Magma.model is of type {type(self.model).__name__}: give it a Decoder, such as @gpt()")
        if self.encoder.grid is None:
            raise UserError("Magma reads patches: choose a ViT as its encoder")
        super().__post_init__()
        if self.model.positions == "learned" and self._prefixed.places < self.length - 1:
            raise UserError(
                f"Magma: {self.patches} patches and captions of {self.length} tokens, and the model has "
                f"{self.model.places} learned positions: lower the length, or choose larger patches"
            )

    @property
    def patches(self):
        """N."""
        return int(np.prod(self.encoder.grid))

    @property
    def _prefixed(self):
        fields = type(self.model).__dataclass_fields__
        same = {name: getattr(self.model, name) for name in fields if name not in ("parent", "name")}
        return PrefixedDecoder(**same, before=self.patches)

    def modules(self):
        n, e = self.patches, self.encoder
        prefix = ImagePrefix(self.model.d_model, self.dropout, dtype=self.model.dtype)
        read = jnp.zeros((1, n, self.model.d_model)), jnp.zeros((1, self.length - 1), jnp.int32)
        return {
            **super().modules(),
            "prefix": (prefix, jnp.zeros((1, n, e.features))),
            "model": (self._prefixed, read),
        }

    def loss(self, params, extra, batch, ctx):
        variables, (inputs, targets, weights) = self.variables(params, extra), self.scored(batch)
        encoded, moments = self._vectors(variables, self._images(batch, ctx), ctx, batch["index"])
        keys = self._keys("dropout/text", self.model, ctx, batch["index"])
        hidden, _, _ = self.apply("model", variables, encoded, inputs, ctx=ctx, method="decode", keys=keys)
        loss = self.caption_loss(params, hidden, targets, weights)
        return loss.join(Loss(metrics=self._cut(batch), stats=moments))

    def _vectors(self, variables, images, ctx, index=None):
        """([B, N, D] as the model reads them, moments) of pictures."""
        keys = self._keys("dropout/image", self.encoder, ctx, index)
        _, seen, moments = self.apply("encoder", variables, images, ctx=ctx, keys=keys)
        keys = ctx.keys("dropout/prefix", index) if ctx.train and self.dropout else None
        return self.apply("prefix", variables, seen["patches"], keys, ctx=ctx)[0], moments

    def see(self, variables, images):
        return self._vectors(variables, images, EVALUATION)[0]

    @property
    def partition_rules(self):
        return (*PARTITION_RULES, *super().partition_rules)

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        return {
            "encoder": self.encoder.flops(rows),
            "prefix": 2 * rows * self.patches * self.encoder.features * self.model.d_model,
            "model": self._prefixed.flops(rows, self.length - 1),
        }
