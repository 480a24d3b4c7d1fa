"""Two towers and a shared space: image encoders as CLIP has them, a text encoder, and the heads of both.

An image tower is any encoder of `vision`: images -> (pooled [B, D], intermediates). A text tower is tokens -> (pooled
[B, D], intermediates). A head takes either to [B, E].

Parameter paths of a text tower (n layers stacked in front):

    embed/embedding [V, D], positions/embedding [L, D]
    decoder/layers/..., decoder/norm/...    when causal: the names of t5like's Decoder, whose weights fit
    encoder/layers/..., encoder/norm/...    otherwise: those of its Encoder
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from paradigm.attention import AttentionMask
from paradigm.errors import UserError, build, choose
from paradigm.layers import Dense, Embed
from paradigm.partition import BATCH, constrain
from paradigm.transformer import MLP, Architecture, Attention, Stack
from vision.vit import VIT_SIZES, ViT

PROJECTIONS = {"linear": False, "affine": True, "none": None}  # whether the projection has a bias


class ClipViT(ViT, kw_only=True):
    """CLIP's ViT: class token, learned positions, and a LayerNorm before the first block (Radford et al. 2021, 2.4).

    Its parameters are `blocks/pre_norm/{scale, bias}`. The patches' bias, which CLIP leaves out, adds nothing to what
    the positions can say.
    """

    positions: str = "learned"
    input_norm: bool = True
    eps: float = 1e-5


class Table(Embed):
    """An Embed whose table is gathered before it is read: rows of a table that is cut by columns would be spread over
    them, and bringing them back to their examples costs more (XLA's partitioner then keeps a copy of the batch)."""

    @nn.compact
    def __call__(self, ids):
        table = self.param("embedding", nn.initializers.normal(self.std), (self.count, self.features), jnp.float32)
        return constrain(table.astype(self.dtype), None, None)[ids]


class TextTower(Architecture, kw_only=True):
    """Tokens int32 [B, L] -> (pooled [B, D], intermediates).

    vocab_size: V; None until a vocabulary says it (objective.bind). layers: how many. length: L, of the table of
        positions.
    causal: whether a token sees only those before it (CLIP), or all, padding too (SigLIP).
    pool: end, the output at the first `end_id` (None: the vocabulary's; the last place where there is none); highest,
        at the first of a row's highest id, which is the end of a caption where no id lies above the end's (openai/CLIP
        model.py); or last, that of the last place, which is padding after all but the longest captions and, without
        causality, has seen them whole.
    embed_std, position_std: of the two tables.
    remat, scan: see Stack.

    intermediates: "tokens" [B, L, D], after the last norm; "layers" [n, B, L, D].
    """

    vocab_size: int | None
    layers: int
    length: int
    causal: bool = True
    pool: str = "end"
    end_id: int | None = None
    embed_std: float = 0.02
    position_std: float = 0.01
    norm: str = "layer"
    eps: float = 1e-5
    bias: bool = True
    activation: str = "quick_gelu"
    init_std: float | str | None = None
    dropout_style: str = "gpt2"
    remat: str = "none"
    scan: bool = True

    @property
    def features(self):
        """D of the pooled output."""
        return self.d_model

    @nn.nowrap
    def stack(self, **changes):
        return Stack(**self.shared(layers=self.layers, remat=self.remat, scan=self.scan) | changes)

    @nn.compact
    def __call__(self, tokens, *, keys=None):
        """keys: typed PRNG keys [B] for dropout, or None. Raises UserError for more tokens than there are positions."""
        if tokens.shape[1] > self.length:
            raise UserError(f"captions of {tokens.shape[1]} tokens, and the text tower has {self.length} positions")
        if self.vocab_size is None or (self.pool == "end" and self.end_id is None):
            raise UserError("the text tower has no vocab_size or end_id: objective.bind(vocabulary) gives it both")
        x = Table(self.vocab_size, self.d_model, self.embed_std, self.dtype, name="embed")(tokens)
        places = jnp.arange(tokens.shape[1])
        x = x + Embed(self.length, self.d_model, self.position_std, self.dtype, name="positions")(places)
        stack = self.stack(name="decoder" if self.causal else "encoder")
        x, intermediates = stack(constrain(x, BATCH, None, None), AttentionMask(self.causal), keys=keys)
        return self._pooled(x, tokens), {"tokens": x, **intermediates}

    @nn.nowrap
    def _pooled(self, x, tokens):
        """[B, L, D] -> [B, D]."""
        if self.pool == "last":
            return x[:, -1]
        if self.pool == "highest":
            place = jnp.argmax(tokens, axis=1)
        else:
            ends = tokens == self.end_id
            place = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), tokens.shape[1] - 1)
        return constrain(jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0], BATCH, None)

    @nn.nowrap
    def flops(self, batch):
        """Forward FLOPs of the products for captions of `length` tokens, all pairs of positions counted."""
        return self.stack(parent=None).flops(batch, self.length)


class Head(nn.Module):
    """From a tower to the shared space: ([B, D] or, pooled by attention, [B, N, D]) -> ([B, E], {}).

    tower: the encoder, or None. Given, its patches are pooled by attention of one learned probe, in the encoder's own
        architecture, and an MLP (SigLIP's MAP head; Zhai et al. 2022, "Scaling Vision Transformers", section 3).
    width: E. projection: linear, affine (with a bias), or none.
    """

    width: int
    projection: str = "linear"
    tower: Any = None
    std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        if self.tower is not None:
            x = MapPool(**self.tower.shared(), name="pool")(x)
        bias = PROJECTIONS[self.projection]
        if bias is not None:
            x = Dense((self.width,), 1, bias, self.std, self.dtype, name="project")(x)
        return constrain(x, BATCH, None), {}

    @nn.nowrap
    def flops(self, batch, features, patches=0):
        """Forward FLOPs of the products for inputs [batch, features], or [batch, patches, features]."""
        total = 0 if self.projection == "none" else 2 * batch * features * self.width
        if self.tower is not None:
            t = self.tower
            inner, shared = t.heads * t.head_width, t.key_heads * t.head_width
            total += 4 * batch * t.d_model * (inner + patches * shared) + 4 * batch * patches * inner
            total += 4 * batch * t.d_model * t.d_ff
        return total


class MapPool(Architecture, kw_only=True):
    """[B, N, D] -> [B, D]: a probe attends to all, then a residual MLP."""

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, self.d_model), jnp.float32)
        probe = jnp.broadcast_to(probe.astype(self.dtype), (len(x), 1, self.d_model))
        inner = self.shared(positions="none", out_std=self.init_std)
        x, _ = Attention(**inner, name="attention")(probe, AttentionMask(), source=x)
        x = x + MLP(**inner, name="mlp")(self.make_norm("norm")(x))
        return x[:, 0]


# ---- Sizes by name ---------------------------------------------------------------------------------------------------

# d_model, layers, heads of CLIP's text towers, by the image tower's size (openai/CLIP; open_clip's ViT-{B,L,H}-*.json).
CLIP_TEXT_SIZES = {"tiny": (64, 2, 2), "b": (512, 12, 8), "l": (768, 12, 12), "h": (1024, 24, 16)}


def clip_vit(size, image_size=224, patch=16, **overrides: Any):
    """CLIP's image tower by the name of a ViT's size; overrides: any field of ClipViT.

    Initial kernels have a deviation of width ** -0.5, divided on residual branches, as openai/CLIP gives those of its
    text tower; its image tower keeps PyTorch's own.

    Raises:
        UserError: an unknown size or field (the nearest is named), a patch that is larger than the image.
    """
    d_model, layers, d_ff, heads = choose("ViT size", str(size).lower(), VIT_SIZES)
    fields = {"d_model": d_model, "layers": layers, "d_ff": d_ff, "heads": heads, "patch": patch}
    fields |= {"image_size": image_size, "activation": "quick_gelu"}
    fields |= {"init_std": d_model**-0.5, "token_std": d_model**-0.5}
    model = build(ClipViT, fields, overrides)
    assert model.head_width > 0 and model.grid  # raises now rather than in the first trace
    return model


def clip_text(size, vocab_size=None, length=77, **overrides: Any):
    """CLIP's text tower: causal, pooled at the end token (Radford et al. 2021, section 2.4; openai/CLIP model.py).

    First weights are openai/CLIP's but for an MLP's first kernel: width ** -0.5, where it has (2 width) ** -0.5.

    Args:
        size: tiny, b, l, h: the image tower that it goes with.
        vocab_size: rows of its table; None: as many as the vocabulary has ids. length: tokens of a caption.
        overrides: any field of TextTower.

    Raises:
        UserError: an unknown size or field (the nearest is named), heads that do not divide the width.
    """
    d_model, layers, heads = choose("CLIP text size", str(size).lower(), CLIP_TEXT_SIZES)
    fields = {"d_model": d_model, "layers": layers, "heads": heads, "d_ff": 4 * d_model, "init_std": d_model**-0.5}
    return _text_tower(fields | {"vocab_size": vocab_size, "length": length}, overrides)


def siglip_text(size, vocab_size=None, length=64, **overrides: Any):
    """SigLIP's text tower: every token sees all, pooled at the last place (Zhai et al. 2023, section 4; big_vision).

    Args: as `clip_text`; size is a ViT's, since both towers are of one.
    """
    d_model, layers, d_ff, heads = choose("ViT size", str(size).lower(), VIT_SIZES)
    fields = {"d_model": d_model, "layers": layers, "heads": heads, "d_ff": d_ff, "init_std": "xavier"}
    fields |= {"embed_std": d_model**-0.5, "position_std": d_model**-0.5, "causal": False, "pool": "last"}
    fields |= {"eps": 1e-6, "activation": "gelu", "vocab_size": vocab_size, "length": length}
    return _text_tower(fields, overrides)


def _text_tower(fields, overrides):
    model = build(TextTower, fields, overrides)
    choose("pool", model.pool, dict.fromkeys(("end", "highest", "last")))
    assert model.head_width > 0  # raises now rather than in the first trace
    return model
