"""Two towers and a shared space: image encoders as CLIP has them, a text encoder, and the heads of both.

An image tower is any encoder of `vision`: images -> (pooled [B, D], intermediates). A text tower is a t5like.pooled
model: tokens -> (pooled [B, D], intermediates). A head takes either to [B, E].
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from paradigm.architecture import Architecture
from paradigm.attention import AttentionMask
from paradigm.errors import build, choose
from paradigm.layers import Dense
from paradigm.partition import BATCH, constrain
from paradigm.transformer import MLP, Attention
from t5like.pooled import PooledText
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


class TextTower(PooledText, kw_only=True):
    """A pooled text model with CLIP's settings (openai/CLIP model.py)."""

    embed_std: float = 0.02
    position_std: float | None = 0.01
    norm: str = "layer"
    eps: float = 1e-5
    bias: bool = True
    activation: str = "quick_gelu"
    dropout_style: str = "gpt2"


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
    return _text_tower(fields | {"vocab_size": vocab_size, "max_length": length}, overrides)


def siglip_text(size, vocab_size=None, length=64, **overrides: Any):
    """SigLIP's text tower: every token sees all, pooled at the last place (Zhai et al. 2023, section 4; big_vision).

    Args: as `clip_text`; size is a ViT's, since both towers are of one.
    """
    d_model, layers, d_ff, heads = choose("ViT size", str(size).lower(), VIT_SIZES)
    fields = {"d_model": d_model, "layers": layers, "heads": heads, "d_ff": d_ff, "init_std": "xavier"}
    fields |= {"embed_std": d_model**-0.5, "position_std": d_model**-0.5, "causal": False, "pool": "last"}
    fields |= {"eps": 1e-6, "activation": "gelu", "vocab_size": vocab_size, "max_length": length}
    return _text_tower(fields, overrides)


def _text_tower(fields, overrides):
    model = build(TextTower, fields, overrides)
    choose("pool", model.pool, dict.fromkeys(("end", "highest", "last")))
    assert model.head_width > 0  # raises now rather than in the first trace
    return model
