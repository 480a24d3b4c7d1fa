"""Models that write about pictures: text decoders that attend to a picture, and one stack for patches and tokens.

All have what t5like.decode asks for: `decode(encoded, tokens, ...)`, `score`, `new_cache`, and `length`: the tokens of
a row of captions, its start included, one more than are read (max_length), since the last one is only predicted.

Parameter paths are those of t5like.models, and (D model, N patches, P = patch * patch * C):

    class_token [1, 1, D]                   CoCaText
    mask_token [1, 1, D]                    CaptionDecoder with mask_token=True
    multimodal/...                          CoCaText: a stack that attends to the picture
    patches/kernel [P, D], patches/bias [D] SingleStream
    image_positions/embedding [N, D]        SingleStream
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from paradigm.architecture import Architecture
from paradigm.attention import AttentionMask
from paradigm.errors import UserError, build, choose
from paradigm.layers import Dense, Embed
from paradigm.partition import BATCH, constrain
from paradigm.transformer import Attention
from t5like.models import TextModel
from vision.patches import grid_of, patchify
from vision.vit import VIT_SIZES


class Pooler(Architecture, kw_only=True):
    """[B, N, C] -> [B, queries, D]: learned queries attend to all, once (Yu et al. 2022, "CoCa", section 3.2).

    Norms of the queries and of the output are open_clip's (AttentionalPooler's ln_q, and ln_post).
    """

    queries: int = 1

    @nn.compact
    def __call__(self, x):
        query = self.param("query", nn.initializers.normal(1.0), (1, self.queries, self.d_model), jnp.float32)
        query = self.make_norm("query_norm")(jnp.broadcast_to(query.astype(self.dtype), (len(x), *query.shape[1:])))
        inner = self.shared(positions="none", out_std=self.init_std)
        y, _ = Attention(**inner, name="attention")(constrain(query, BATCH, None, None), AttentionMask(), source=x)
        return self.make_norm("norm")(y)


class TaskPoolers(Architecture, kw_only=True):
    """Patches [B, N, C] -> (the picture's vector [B, D], {"tokens": [B, queries, D]}), each by a pooler of its own.

    cascade: the vector is pooled from the tokens, not from the patches (CoCa, table 8b, where it does better).
    one: a single pooler, `caption`, whose first token is the vector and whose others are the caption's (open_clip).
    """

    queries: int = 256
    cascade: bool = True
    one: bool = False

    @nn.compact
    def __call__(self, x):
        tokens = Pooler(**self.shared(queries=self.queries), name="caption")(x)
        if self.one:
            return tokens[:, 0], {"tokens": tokens[:, 1:]}
        one = Pooler(**self.shared(), name="contrast")(tokens if self.cascade else x)
        return one[:, 0], {"tokens": tokens}

    @nn.nowrap
    def flops(self, batch, patches):
        """Forward FLOPs of the products, for patches of width D."""
        width = self.heads * self.head_width

        def pooler(queries, source):
            return 4 * batch * width * (self.d_model * (queries + source) + queries * source)

        contrast = 0 if self.one else pooler(1, self.queries if self.cascade else patches)
        return pooler(self.queries, patches) + contrast


def task_poolers(encoder, queries, cascade=True, one=False, width=None, heads=None):
    """The TaskPoolers of an encoder's kind; of its width and heads where these are None."""
    inner = encoder.shared() | {"dropout": 0.0, "attention_dropout": None, "drop_path": 0.0}
    inner |= {"d_model": width or encoder.d_model, "heads": heads or encoder.heads}
    return TaskPoolers(**inner, queries=queries, cascade=cascade, one=one)


class Captioner(TextModel, kw_only=True):
    """What the models here share. max_length: tokens that are read, the start included."""

    norm: str = "layer"
    bias: bool = True
    activation: str = "gelu"
    dropout_style: str = "gpt2"
    positions: str = "learned"
    init_std: float | str | None = 0.02
    embed_std: float = 0.02

    has_batch_norm = False

    @property
    def features(self):
        """D."""
        return self.d_model

    @property
    def length(self):
        return self.max_length + 1

    @nn.nowrap
    def places_of(self, tokens, offset):
        """int32 [B or 1, L]: positions of tokens, of which the first has this offset."""
        return jnp.arange(tokens.shape[1]) + jnp.reshape(offset, (-1, 1))


class CaptionDecoder(Captioner, kw_only=True):
    """A causal decoder that attends to a picture's patches.

    mask_token: whether there is one, to stand for every token of a caption that is predicted in parallel.
    """

    mask_token: bool = False

    def setup(self):
        super().setup()
        self.decoder = self.stack(cross=True)
        if self.mask_token:
            first = nn.initializers.normal(self.embed_std)
            self.token = self.param("mask_token", first, (1, 1, self.d_model), jnp.float32)

    def decode(self, encoded, tokens, input_segments=None, keys=None, parallel=None, cache=None):
        """[B, S, C] and int32 [B, L] -> (hidden [B, L, D], intermediates).

        encoded: of the picture; None when the cache already holds its keys and values.
        parallel: bool [B] or None; rows that read mask tokens alone, all of which see each other.
        cache: from `new_cache`; intermediates["cache"] is the next one.
        """
        offset = 0 if cache is None else cache["index"]
        places, prefix = self.places_of(tokens, offset), None
        x = self.embedded(tokens, places)
        if parallel is not None:
            hidden = jnp.broadcast_to(self.token.astype(self.dtype) + self.learned(places), x.shape)
            x = jnp.where(parallel[:, None, None], hidden, x)
            prefix = jnp.where(parallel, tokens.shape[1], 0)
        x, intermediates = self.decoder(
            x,
            AttentionMask(True, prefix, offset=offset),
            source=encoded,
            source_mask=AttentionMask(keys=input_segments),
            keys=keys,
            cache=None if cache is None else cache["decoder"],
        )
        return x, _advanced(intermediates, cache, tokens.shape[1], ("decoder",), (intermediates,))

    def __call__(self, encoded, tokens):
        """[B, S, C] and int32 [B, L] -> (hidden [B, L, D], intermediates)."""
        x, intermediates = self.decode(encoded, tokens)
        if self.is_initializing():
            self.score(x)
        return x, intermediates

    @nn.nowrap
    def new_cache(self, batch, length):
        """An empty cache for `length` tokens; see t5like.models.EncoderDecoder."""
        own = self.stack(cross=True, parent=None).new_cache(batch, length)
        return {"index": jnp.zeros((batch,), jnp.int32), "decoder": own}

    @nn.nowrap
    def flops(self, batch, source):
        """Forward FLOPs for captions of max_length tokens and pictures of `source` of them, all logits counted."""
        out = 2 * batch * self.max_length * self.d_model * self.vocab_size
        return self.stack(cross=True, parent=None).flops(batch, self.max_length, source) + out


class CoCaText(Captioner, kw_only=True):
    """A decoder whose first half reads text alone and whose second half attends to a picture (CoCa, section 3.2).

    layers: of the first half; multimodal_layers: of the second. A learned class token after the text, which sees its
    real tokens, is the text's vector; it has no part in the second half.

    open_clip: as the weights of open_clip have it (its transformer.py: MultimodalTransformer, and TextTransformer with
        correct_cls_mask=False). The class token has a position, the last of max_length + 1; it sees the text's end and
        one place more, and itself only where that is its own; padding is read as id 0, whatever the vocabulary's is;
        attention to the picture is a layer of its own (cross_mlp).
    """

    multimodal_layers: int = 12
    open_clip: bool = False

    pool = "class"

    def setup(self):
        super().setup()
        self.decoder = self.stack()
        self.multimodal = self.stack(**self._second)
        first = nn.initializers.normal(self.embed_std)
        self.class_token = self.param("class_token", first, (1, 1, self.d_model), jnp.float32)

    @property
    def position_rows(self):
        return self.max_length + self.open_clip

    @property
    def _second(self):
        return {"cross": True, "cross_mlp": self.open_clip, "layers": self.multimodal_layers}

    def __call__(self, tokens, segments, encoded=None, keys=None):
        """int32 [B, L] -> (the text's vector [B, D], intermediates), in one pass for both halves.

        segments: int32 [B, L], 1 for real tokens and 0 for padding.
        encoded: [B, S, C] of the pictures; given, intermediates["hidden"] [B, L, D] is the second half's output.
        """
        ones = jnp.ones((len(tokens), 1), jnp.int32)
        token = jnp.broadcast_to(self.class_token.astype(self.dtype), (len(tokens), 1, self.d_model))
        if self.open_clip:  # all that is read, and the end behind it, and one place more, which holds their padding
            real = jnp.concatenate([ones, segments], 1)[:, :-1]
            tokens = jnp.where(real > 0, tokens, 0)
            mask = AttentionMask(True, keys=jnp.concatenate([ones, real], 1))
            token = token + self.learned(jnp.full((1, 1), self.max_length))
        else:
            segments = jnp.concatenate([segments, ones], 1)
            mask = AttentionMask(True, queries=segments, keys=segments)
        x = jnp.concatenate([self.embedded(tokens, self.places_of(tokens, 0)), token], 1)
        normed, found = self.decoder(constrain(x, BATCH, None, None), mask, keys=_fold(keys, 0))
        seen = {"layers": found["layers"]}
        if encoded is not None:
            text = found["layers"][-1][:, :-1]  # as it stands in the residual stream: the norm is the vector's
            hidden, more = self.multimodal(
                text, AttentionMask(True), source=encoded, source_mask=AttentionMask(), keys=_fold(keys, 1)
            )
            seen |= {"hidden": hidden, "multimodal": more["layers"]}
            if self.is_initializing():
                self.score(hidden)
        return normed[:, -1], seen

    def decode(self, encoded, tokens, input_segments=None, cache=None):
        """The next tokens' hidden states without the class token, as CaptionDecoder.decode."""
        offset = 0 if cache is None else cache["index"]
        own, cross = (None, None) if cache is None else (cache["decoder"], cache["multimodal"])
        x = self.embedded(tokens, self.places_of(tokens, offset))
        _, one = self.decoder(x, AttentionMask(True, offset=offset), cache=own)
        x, two = self.multimodal(
            one["layers"][-1],
            AttentionMask(True, offset=offset),
            source=encoded,
            source_mask=AttentionMask(keys=input_segments),
            cache=cross,
        )
        return x, _advanced(two, cache, tokens.shape[1], ("decoder", "multimodal"), (one, two))

    @nn.nowrap
    def new_cache(self, batch, length):
        """An empty cache for `length` tokens in both halves."""
        halves = {"decoder": self.stack(parent=None), "multimodal": self.stack(**self._second, parent=None)}
        caches = {name: half.new_cache(batch, length) for name, half in halves.items()}
        return {"index": jnp.zeros((batch,), jnp.int32), **caches}

    @nn.nowrap
    def flops(self, batch, source):
        """Forward FLOPs for captions of max_length tokens and a class token, and `source` tokens of the picture."""
        first = self.stack(parent=None).flops(batch, self.max_length + 1)
        second = self.stack(**self._second, parent=None).flops(batch, self.max_length, source)
        return first + second + 2 * batch * self.max_length * self.d_model * self.vocab_size


class SingleStream(Captioner, kw_only=True):
    """One transformer for patches and, after them, tokens.

    image_size, patch: in pixels. channels: C. Patches have learned positions of their own and see each other.
    mask_token: whether there is one, to stand for tokens that are hidden.

    Called with images alone it is an encoder: (the patches' mean [B, D], {"patches" [B, N, D], "layers"}).
    """

    image_size: int = 224
    patch: int = 16
    channels: int = 3
    mask_token: bool = False

    def setup(self):
        super().setup()
        if self.mask_token:
            first = nn.initializers.normal(self.embed_std)
            self.token = self.param("mask_token", first, (1, 1, self.d_model), jnp.float32)
        self.blocks = self.stack()
        self.patches = Dense((self.d_model,), 1, True, self.init_std, self.dtype)
        count = int(np.prod(self.grid))
        self.image_positions = Embed(count, self.d_model, self.embed_std, self.dtype)

    @property
    def grid(self):
        """(rows, columns) of patches."""
        return grid_of(self.image_size, self.image_size, self.patch)

    @property
    def count(self):
        """N."""
        return int(np.prod(self.grid))

    def see(self, images):
        """[B, H, W, C] -> (patches as the stack reads them [B, N, D], {})."""
        if images.shape[1:] != (self.image_size, self.image_size, self.channels):
            raise UserError(
                f"images {list(images.shape[1:])}, and the model reads {self.image_size} x {self.image_size} pixels of "
                f"{self.channels} channels"
            )
        x = self.patches(patchify(images, self.patch)) + self.image_positions(jnp.arange(self.count)[None])
        return constrain(x, BATCH, None, None), {}

    def __call__(self, images, *, train=False, keys=None):
        """The model as an encoder of pictures."""
        del train
        patches, _ = self.see(images)
        if self.is_initializing():
            self.score(self.decode(patches, jnp.zeros((len(images), 1), jnp.int32))[0])
        x, found = self.blocks(patches, AttentionMask(), keys=keys)
        return x.mean(1), {"patches": x, **found}

    def decode(self, encoded, tokens, input_segments=None, keys=None, prefix=None, cache=None, hidden=None):
        """[B, N, D] of `see` and int32 [B, L] -> (hidden [B, L, D], intermediates).

        encoded: None when the cache holds the patches. prefix: int32 [B] or None; so many first tokens are read as the
        patches are: they see each other and all patches, which see them. cache: see `new_cache`. hidden: bool [B, L] or
        None, the places that hold the mask token.
        """
        del input_segments
        offset = 0 if cache is None else cache["index"]
        places = self.places_of(tokens, jnp.maximum(offset - self.count, 0))
        x = self.embedded(tokens, places)
        if hidden is not None:
            x = jnp.where(hidden[..., None], self.token.astype(self.dtype) + self.learned(places), x)
        x = x if encoded is None else jnp.concatenate([encoded, x], 1)
        seen = jnp.full((len(tokens),), self.count) if prefix is None else self.count + prefix
        own = None if cache is None else cache["decoder"]
        x, found = self.blocks(x, AttentionMask(True, seen, offset=offset), keys=keys, cache=own)
        return x[:, -tokens.shape[1] :], _advanced(found, cache, x.shape[1], ("decoder",), (found,))

    @nn.nowrap
    def new_cache(self, batch, length):
        """An empty cache for the patches and `length` tokens."""
        own = self.stack(parent=None).new_cache(batch, self.count + length)
        return {"index": jnp.zeros((batch,), jnp.int32), "decoder": own}

    @nn.nowrap
    def flops(self, batch, tokens=None):
        """Forward FLOPs for pictures with captions of `tokens` (max_length) tokens, all logits counted."""
        tokens = self.max_length if tokens is None else tokens
        embed = 2 * batch * self.count * self.patch**2 * self.channels * self.d_model
        out = 2 * batch * tokens * self.d_model * self.vocab_size
        return embed + self.stack(parent=None).flops(batch, self.count + tokens) + out


def _advanced(intermediates, cache, length, names, found):
    """Intermediates with the next cache, where there was one: each stack's own under its name."""
    if cache is None:
        return intermediates
    return {
        **intermediates,
        "cache": {"index": cache["index"] + length, **{n: f["cache"] for n, f in zip(names, found)}},
    }


def _fold(keys, side):
    """Keys for the first (0) and the second half (1), so that equal sites draw different masks."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, side)


# ---- Sizes by name ---------------------------------------------------------------------------------------------------


def coca_text(size, vocab_size=None, length=64, **overrides: Any):
    """CoCa's text decoder by the name of its image tower's size, as wide as that (Yu et al. 2022, table 1: 12 + 12
    layers for b and l).

    Args:
        size: tiny, s, b, l. vocab_size: rows of its table; None: as many as the vocabulary has ids.
        length: tokens of a caption, its end included. overrides: any field of CoCaText.

    Raises:
        UserError: an unknown size or field (the nearest is named), heads that do not divide the width.
    """
    return _built(CoCaText, size, vocab_size, length, {"layers": 2, "multimodal_layers": 2}, overrides, 12)


def cappa_text(size, vocab_size=None, length=64, layers=6, **overrides: Any):
    """CapPa's decoder: 6 layers as wide as the image tower, without biases (Tschannen et al. 2023, section 3.1 and
    big_vision's cappa.py). Args and errors as `coca_text`."""
    fixed = {"bias": False, "layers": layers, "mask_token": True, "embed_std": 1.0, "init_std": "xavier"}
    overrides.setdefault("position_std", VIT_SIZES.get(str(size).lower(), (1,))[0] ** -0.5)
    return _built(CaptionDecoder, size, vocab_size, length, fixed, overrides)


def single_stream(size, image_size=224, patch=16, vocab_size=None, length=64, **overrides: Any):
    """One transformer of a ViT's size for patches and tokens. Args and errors as `coca_text`, of SingleStream."""
    fixed = {"image_size": image_size, "patch": patch}
    return _built(SingleStream, size, vocab_size, length, fixed, overrides)


def _built(kind, size, vocab_size, length, fixed, overrides, layers=None):
    d_model, depth, d_ff, heads = choose("ViT size", str(size).lower(), VIT_SIZES)
    fields = {"d_model": d_model, "layers": depth, "d_ff": d_ff, "heads": heads}
    fields |= {"vocab_size": vocab_size, "max_length": length} | fixed
    if layers is not None and size != "tiny":
        fields |= dict.fromkeys(("layers", "multimodal_layers"), layers)
    model = build(kind, fields, overrides)
    if model.positions != "learned":
        raise UserError(f"{kind.__name__}.positions={model.positions!r}: captions have learned positions here")
    if model.max_length < 2:
        raise UserError(f"captions of {model.max_length} tokens hold no text: make length 2 or more")
    assert model.head_width > 0  # raises now rather than in the first trace
    return model
