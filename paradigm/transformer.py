"""The transformer, once: attention, MLP, Block and Stack, for text, patches and captions (fields: architecture.py).

Letters in shapes and in names such as q_BxHxLxK:
    B batch, L length (queries), S source length (keys), D model, H heads, G key and value heads, K head dim, F hidden,
    V vocab, N patches, P patch, C channels.

A Stack keeps one set of parameters whose leaves carry a leading layer axis, under the component `layers`; scanned and
unrolled forms share it. Dropout is per example: `keys` are typed PRNG keys [B], one for each example, and None means
deterministic. Parameters are float32; `dtype` is what the arithmetic is done in.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from paradigm import attention_kernels
from paradigm.architecture import POSITIONS, Architecture
from paradigm.attention import AttentionMask
from paradigm.errors import UserError, choose
from paradigm.layers import ACTIVATIONS, Dense, RMSNorm, drop
from paradigm.partition import BATCH, CONTEXT, constrain
from paradigm.rope import rope_angles, rotate
from paradigm.trees import STACKED

# Where the parameters of a Stack lie (see partition.py); a model appends rules for what it has beside one.
PARTITION_RULES = (
    (r"(attention|cross)/(query|key|value)/kernel$", ("fsdp", "tensor", None)),  # [D, H or G, K]
    (r"(attention|cross)/(query|key|value)/bias$", ("tensor", None)),  # [H or G, K]
    (r"(attention|cross)/out/kernel$", ("tensor", None, "fsdp")),  # [H, K, D]
    (r"mlp/(gate|up)/kernel$", ("fsdp", "tensor")),  # [D, F]
    (r"mlp/(gate|up)/bias$", ("tensor",)),  # [F]
    (r"mlp/down/kernel$", ("tensor", "fsdp")),  # [F, D]
    (r"relative_bias/embedding$", (None, "tensor")),  # [buckets, H]
    (r"(^|/)project/kernel$", (None, "fsdp")),  # [E, D]
)


class Attention(Architecture, kw_only=True):
    """Multi-head attention, to itself or to a source.

    Parameters query [D, H, K], key and value [D, G, K], out [H, K, D]; query_norm and key_norm [K] with `qk_norm`.
    """

    out_std: float | str | None = None

    @nn.compact
    def __call__(self, x, mask, *, source=None, memory=None, bias=None, angles=None, cache=None, keys=None):
        """x [B, L, D] -> ([B, L, D], {"key", "value"} as attended to).

        Args:
            source: [B, S, D] to attend to; None is x itself.
            memory: {"key", "value"} [B, G, S, K], finished, in place of a source.
            bias: [B or 1, H, L, S] on the logits, or DistanceBias. angles: of rotary positions. keys: [B] for dropout.
            cache: {"key", "value"} [B, G, T, K] into which x's own are written at mask.offset.
        """
        width, std = self.head_width, self.init_std
        qkv_bias, out_bias = (self.bias if b is None else b for b in (self.qkv_bias, self.out_bias))
        # [B, L, H, K] -> [B, H, L, K]
        heads_first = lambda y: constrain(y.swapaxes(1, 2), BATCH, "tensor", CONTEXT, None)

        def project(name, x, heads, std):
            return heads_first(Dense((heads, width), 1, qkv_bias, std, self.dtype, name=name)(x))

        normed = lambda name, y: RMSNorm(self.eps, self.dtype, name=name)(y) if self.qk_norm else y
        folded = std is None and not self.scale_attention  # Mesh-TensorFlow's fold_scaling_into_initializer
        q = project("query", x, self.heads, (self.d_model * width) ** -0.5 if folded else std)
        q = normed("query_norm", q)
        if memory is None:
            source = x if source is None else source
            memory = {name: project(name, source, self.key_heads, std) for name in ("key", "value")}
            memory["key"] = normed("key_norm", memory["key"])
        if angles is not None:
            q, memory["key"] = rotate(q, angles), rotate(memory["key"], angles)
        if cache is not None:
            write = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, 1))
            memory = {name: write(cache[name], memory[name], mask.offset) for name in memory}
        scale = width**-0.5 if self.scale_attention else 1.0
        dropped, rate = None, self.dropout if self.attention_dropout is None else self.attention_dropout
        if keys is not None and rate:
            fold = jax.vmap(jax.random.fold_in, (0, None))

            def dropped(p, start):  # blocks of queries have masks of their own, unless all positions share one
                own = keys if start is None or self.dropout_style == "t5" else fold(keys, start)
                return self.dropped(p, own, f"{self.name}/weights", rate)

        y = self.attended(q, memory["key"], memory["value"], mask, bias, scale, dropped)
        y = Dense((self.d_model,), 2, out_bias, self.out_std, self.dtype, name="out")(y.swapaxes(1, 2))
        return y, memory

    def attended(self, q, key, value, mask, bias, scale, dropped):
        """attention_kernels.attend; a method, so that an adaptation can put keys and values before these."""
        return attention_kernels.attend(q, key, value, mask, bias, scale, dropped)


class MLP(Architecture, kw_only=True):
    """[B, L, D] -> [B, L, D]: down(act(up x)), or down(act(gate x) * up x) when gated (Shazeer 2020, section 2)."""

    out_std: float | str | None = None

    @nn.compact
    def __call__(self, x, keys=None):
        act, count = choose("activation", self.activation, ACTIVATIONS)
        into = lambda name: Dense((self.d_ff,), 1, self.bias, self.init_std, self.dtype, name=name)(x)
        h = act(*(into(name) for name in ("gate", "up")[-count:]))
        h = constrain(h, BATCH, CONTEXT, "tensor")
        if self.dropout_style == "t5":
            h = self.dropped(h, keys, "mlp/hidden")
        return Dense((self.d_model,), 1, self.bias, self.out_std, self.dtype, name="down")(h)


# ---- Block and Stack -------------------------------------------------------------------------------------------------


@struct.dataclass
class Shared:
    """What all layers see alike: mask, bias [B or 1, H, L, S] or DistanceBias, rotary angles (local: of layers with a
    window where they are others), source [B, S, D], keys [B]."""

    mask: AttentionMask
    bias: Any = None
    angles: Any = None
    local_angles: Any = None
    source: Any = None
    source_mask: Any = None
    keys: Any = None


class Block(Architecture, kw_only=True):
    """One layer: attention, attention to the source when `cross`, MLP; each a branch that is added to the stream.

    cross_mlp: attention to the source is a layer of its own behind the others, which norms the source and has an MLP of
        its own: `source_norm`, `cross_mlp` (open_clip's MultimodalTransformer).
    """

    cross: bool = False
    cross_mlp: bool = False
    out_std: float | str | None = None

    @nn.compact
    def __call__(self, x, own, shared):
        """x [B, L, D], own = {"layer": int32 [], "drop_path": float32 [], "cache": ..., "bias": where layers have their
        own [B or 1, H, L, S]}, Shared -> (x, {"out": x, "cache": ...})."""
        cache, fresh = own["cache"], {}
        keys = shared.keys
        if keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, own["layer"])
        inner = self.shared(out_std=self.out_std)
        own_table = self.positions == "relative_per_layer"
        mask, angles = shared.mask, shared.angles
        if "global" in own:  # arrays and no branches: one body for all layers
            mask = mask.replace(everywhere=own["global"])
            if shared.local_angles is not None:
                angles = jax.tree.map(lambda a, b: jnp.where(own["global"], a, b), angles, shared.local_angles)
        post = choose("norm_place", self.norm_place, {"pre": False, "post": True})

        def branch(x, site, f):
            """x + f(x), with the norm where it belongs."""
            norm = self.make_norm(f"{site}_norm")
            read = x if post else norm(x)
            if site == "attention" and not self.first_norm:
                read = jnp.where(own["layer"] == 0, x, read)
            y = self.dropped(f(read), keys, site)
            if self.layer_scale is not None:
                first = nn.initializers.constant(self.layer_scale)
                y = y * self.param(f"{site}_layer_scale", first, (self.d_model,), jnp.float32).astype(y.dtype)
            if keys is not None and self.drop_path:
                y = drop(y, keys, f"{site}/path", own["drop_path"], (1, 2))
            x = constrain(x + y, BATCH, CONTEXT, None)
            return norm(x) if post else x

        def attention(x):
            y, fresh["self"] = Attention(**inner, name="attention")(
                x,
                mask,
                bias=self.distance_bias(x, mask, cache) if own_table else own.get("bias", shared.bias),
                angles=angles,
                cache=None if cache is None else cache["self"],
                keys=keys,
            )
            return y

        def cross(x):
            source = shared.source
            if self.cross_mlp and source is not None:
                source = self.make_norm("source_norm")(source)
            y, fresh["cross"] = Attention(**inner, name="cross")(
                x,
                shared.source_mask,
                source=source,
                memory=cache["cross"] if shared.source is None else None,
                keys=keys,
            )
            return y

        mlp = lambda site: lambda x: MLP(**inner, name=site)(x, keys)
        x = branch(x, "attention", attention)
        if self.cross and not self.cross_mlp:
            x = branch(x, "cross", cross)
        x = branch(x, "mlp", mlp("mlp"))
        if self.cross and self.cross_mlp:
            x = branch(branch(x, "cross", cross), "cross_mlp", mlp("cross_mlp"))
        return x, {"out": x, "cache": fresh if cache is not None else None}


REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("product", "attention_sums"),
}


class Stack(Architecture, kw_only=True):
    """`layers` blocks, their parameters stacked under the component `layers`, and a last norm unless they end in one.

    cross: blocks attend to a source as well. cross_mlp: see Block.
    last_norm: whether there is that norm.
    remat: none; full, keep only each block's input for the backward pass; dots, keep the products with kernels too.
    scan: one traced body for all layers, for fast compilation; False unrolls, which is some 10 % faster on a CPU and
        10 to 20 % on a GPU (docs/results/gpu.md), and takes longer to compile. The same parameters serve both.
    scaled_init: whether init_std is divided on residual branches (GPT-2), or the same everywhere (BERT).
    """

    layers: int
    cross: bool = False
    cross_mlp: bool = False
    last_norm: bool = True
    remat: str = "none"
    scan: bool = True
    scaled_init: bool = True

    @nn.compact
    def __call__(self, x, mask, *, positions=None, bias=None, source=None, source_mask=None, cache=None, keys=None):
        """x [B, L, D] -> ([B, L, D], intermediates); x of another width is mapped to D first (`project`).

        Args:
            mask: of x to itself (to the cache's T columns when there is a cache).
            positions: int [B, L] for rope; None counts from mask.offset.
            bias: on the logits of self-attention, in place of one by `positions`: [B or 1, H, L, S] for all layers, or
                [n, B or 1, H, L, S], one for each.
            source: [B, S, D]. source_mask: AttentionMask of it.
            cache: {"self": {"key", "value"}, "cross": ...}, leaves [n, B, G, T, K] (see `new_cache`).
            keys: typed PRNG keys [B], or None for no dropout.

        Returns:
            intermediates: "layers" [n, B, L, D], each block's output; "cache" when one was given, with x's keys and
                values.
        """
        choose("positions", self.positions, dict.fromkeys(POSITIONS))
        choose("dropout_style", self.dropout_style, dict.fromkeys(("t5", "gpt2")))
        alternates = self.global_every is not None
        if alternates and (self.global_every < 1 or mask.window is None):
            raise UserError(
                f"global_every={self.global_every} is the rhythm, at least 1, of layers without the window, and "
                f"window={mask.window}: set both"
            )
        angles = local_angles = None
        own = {"layer": jnp.arange(self.layers), "cache": cache}
        if bias is not None and bias.ndim == 5:
            bias, own["bias"] = None, bias
        if self.positions in ("relative", "alibi"):
            bias = self.distance_bias(x, mask, cache)
        elif self.positions == "rope":
            places = mask.positions(x.shape[1]) if positions is None else positions
            turned = lambda theta: rope_angles(places, self.head_width, theta, self.rope_scaling)
            angles = turned(self.rope_theta)
            if alternates and self.local_theta is not None:
                local_angles = turned(self.local_theta)

        policy = choose("remat", self.remat, REMAT)
        body = Block if policy is None else nn.remat(Block, policy=policy, prevent_cse=not self.scan)
        blocks = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.layers,
            unroll=1 if self.scan else self.layers,
            metadata_params={nn.PARTITION_NAME: None},
        )
        fixed = self.init_std is None or self.init_std == "xavier" or not self.scaled_init
        out_std = self.init_std if fixed else self.init_std * (2 * self.layers) ** -0.5
        blocks = blocks(**self.shared(cross=self.cross, cross_mlp=self.cross_mlp, out_std=out_std), name=STACKED)
        x = x.astype(self.dtype)
        x = self.make_norm("pre_norm")(x) if self.input_norm else x
        x = self.dropped(x, keys, "input")
        if x.shape[-1] != self.d_model:
            x = Dense((self.d_model,), 1, self.bias, self.init_std, self.dtype, name="project")(x)
        x = constrain(x, BATCH, CONTEXT, None)
        if self.drop_path:
            own["drop_path"] = jnp.linspace(0.0, self.drop_path, self.layers)
        if alternates:
            own["global"] = jnp.arange(self.layers) % self.global_every == 0
        x, outs = blocks(x, own, Shared(mask, bias, angles, local_angles, source, source_mask, keys))
        if self.norm_place == "pre" and self.last_norm:
            x = self.make_norm("norm")(x)
        if self.dropout_style == "t5":
            x = self.dropped(x, keys, "output")
        intermediates = {"layers": outs["out"]}
        return x, intermediates if cache is None else {**intermediates, "cache": outs["cache"]}

    @nn.nowrap
    def new_cache(self, batch, length):
        """Zeros for `length` positions of `batch` rows: {"self": {"key", "value"}}, each [n, B, G, T, K]."""
        shape = (self.layers, batch, self.key_heads, length, self.head_width)
        return {"self": {name: jnp.zeros(shape, self.dtype) for name in ("key", "value")}}

    @nn.nowrap
    def flops(self, batch, length, source=None):
        """Forward FLOPs of the products, 2 m n k each, all pairs of positions counted."""
        inner, shared = self.heads * self.head_width, self.key_heads * self.head_width
        _, count = choose("activation", self.activation, ACTIVATIONS)
        tokens = batch * length
        total = 4 * tokens * self.d_model * (inner + shared) + 4 * tokens * length * inner
        total += 2 * tokens * self.d_model * self.d_ff * (count + 1)
        if self.cross:
            total += (
                4 * tokens * self.d_model * inner
                + 4 * batch * source * self.d_model * shared
                + 4 * tokens * source * inner
            )
            total += 2 * tokens * self.d_model * self.d_ff * (count + 1) * self.cross_mlp
        return self.layers * total
