"""What a block, a stack and a whole model share: their fields, and what is made from these alone."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from paradigm import attention_kernels
from paradigm.attention import DistanceBias, RelativeBias, alibi
from paradigm.errors import UserError, choose
from paradigm.layers import NORMS, drop

POSITIONS = ("relative", "relative_per_layer", "rope", "alibi", "learned", "none")


class Architecture(nn.Module, kw_only=True):
    """The fields that a block, a stack and a whole model share.

    d_model, heads, d_ff: widths D, H, F. head_dim: K, or None for d_model / heads.
    kv_heads: G, a divisor of H; each key and value head serves H / G neighbouring heads (grouped-query attention,
        Ainslie et al. 2023); None is H, and 1 multi-query attention.
    qk_norm: RMSNorm of each head's query and key, before rotary positions (Dehghani et al. 2023, section 2.1; Qwen3).
    activation: relu, gelu (tanh form), gelu_exact, silu, quick_gelu, or gated: gated_gelu, gated_gelu_exact,
        gated_silu.
    norm: rms, layer or layer_unbiased, with `eps`. norm_place: pre, or post: norm(x + branch(x)), and no norm after the
        last block (Vaswani et al. 2017; BERT). input_norm: one before the first block (BERT's embedding, CLIP's ViT).
    bias: on every Dense; qkv_bias, out_bias: on those of attention, None is as `bias`.
    positions: relative (T5's buckets, one table for all layers), relative_per_layer (UMT5), rope, alibi (no
        parameters), learned (added by the model to its embedding) or none.
    rope_theta: the base of its frequencies. rope_scaling: a value of rope.py, or None.
    global_every: n, where the mask has a window: every n-th layer from the first on sees all that the rest of the mask
        lets through (ModernBERT, Warner et al. 2024, section 2.1.2; Gemma 2); None is no layer. local_theta: rope_theta
        of the layers with a window, None is the same.
    first_norm: whether the first block norms what its attention reads; ModernBERT, which has just normed it, does not.
    scale_attention: logits times head_dim ** -0.5; T5 folds that into the query's initialiser instead.
    init_std: of every kernel, outputs of residual branches divided by (2 * layers) ** 0.5 as in GPT-2; None is
        fan_in ** -0.5; "xavier" is Glorot's uniform for every kernel.
    layer_scale: the first value of a vector [D] on every branch (Touvron et al. 2021, CaiT, section 2.1), or None.
    dropout, dropout_style: the rate, and where: `t5` on the embedding, the attention weights, the MLP's hidden, each
        branch and the last norm, one mask for all positions; `gpt2` not on the hidden and the last norm, and a mask for
        each position. attention_dropout: of the attention weights, None is as `dropout`.
    drop_path: the rate at which the last block's branches are left out, by example; it rises linearly from 0 at the
        first (stochastic depth, Huang et al. 2016, equation 4 as DeiT has it), and what is kept is divided by 1 - rate.
    dtype: of the arithmetic; parameters are float32.
    """

    d_model: int
    heads: int
    d_ff: int
    head_dim: int | None = None
    kv_heads: int | None = None
    qk_norm: bool = False
    activation: str = "gated_gelu"
    norm: str = "rms"
    norm_place: str = "pre"
    input_norm: bool = False
    eps: float = 1e-6
    bias: bool = False
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    positions: str = "none"
    rope_theta: float = 10000.0
    rope_scaling: Any = None
    global_every: int | None = None
    local_theta: float | None = None
    first_norm: bool = True
    scale_attention: bool = True
    init_std: float | str | None = None
    layer_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float | None = None
    dropout_style: str = "t5"
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for name in ("layers", "d_model", "heads", "d_ff"):
            if isinstance(value := getattr(self, name, 1), int) and value < 1:
                raise UserError(f"{type(self).__name__}: {name}={value} must be at least 1")
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UserError(f"{type(self).__name__}: {name}={getattr(self, name)} must lie in [0, 1)")

    @nn.nowrap
    def shared(self, **changes):
        """These fields as keyword arguments for a module inside."""
        return {**{name: getattr(self, name) for name in SHARED}, **changes}

    @property
    def key_heads(self):
        """G."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def is_random(self):
        """Whether a forward pass draws anything from its keys: dropout or stochastic depth."""
        return any((self.dropout, self.attention_dropout, self.drop_path))

    @property
    def head_width(self):
        """K. Raises UserError when the heads do not divide d_model, kv_heads not the heads, or RoPE cannot pair the
        dims of a head."""
        if self.head_dim is None and self.d_model % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide d_model={self.d_model}: choose a divisor as heads, or give head_dim"
            )
        if self.key_heads < 1 or self.heads % self.key_heads:
            raise UserError(f"kv_heads={self.kv_heads} does not divide {self.heads} heads: choose a divisor")
        width = self.d_model // self.heads if self.head_dim is None else self.head_dim
        if self.positions == "rope" and width % 2:
            raise UserError(f"rope rotates pairs, and head_dim={width} is odd: choose an even head_dim")
        return width

    @nn.nowrap
    def make_norm(self, name):
        return choose("norm", self.norm, NORMS)(self.eps, self.dtype, name=name)

    @nn.nowrap
    def distance_bias(self, x, mask, cache):
        """T5's, or alibi's, for x [B, L, D] and the keys of x, or of the cache: [B or 1, H, L, S], or a DistanceBias
        where rows are so long that attention goes through them in blocks."""
        length = x.shape[1]
        columns = length if cache is None else cache["self"]["key"].shape[-2]
        places = mask.positions(length)
        if self.positions == "alibi":  # the last query is L - 1 places behind the first: so far are all distances
            bias = DistanceBias(alibi(self.heads, places[:, -1:], length + columns - 1)[:, :, 0], length)
        else:
            table = RelativeBias(self.heads, dtype=self.dtype, name="relative_bias")
            bias = table(places, columns, not mask.causal)
        return bias if length >= attention_kernels.BLOCKED else bias.expand()

    @nn.nowrap
    def dropped(self, x, keys, site, rate=None):
        """Dropout on x [B, L, D], or on attention weights [B, H, L, S], in this architecture's style."""
        rate = self.dropout if rate is None else rate
        return drop(x, keys, site, rate, (x.ndim - 2,) if self.dropout_style == "t5" else ())


# Listed here: while a scan or remat makes a class below this one, Flax takes fields out of it, and steps are traced in
# several threads.
SHARED = tuple(f.name for f in dataclasses.fields(Architecture) if f.name not in ("parent", "name"))
