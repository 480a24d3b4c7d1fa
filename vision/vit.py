"""Vision transformers, Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words": patches in the project's one Stack.

Parameter paths (n layers stacked in front; P = patch * patch * C, N patches at the nominal image size):

    embed/kernel [P, D], embed/bias [D]     patches, flattened row by row, channels last
    positions/embedding [N, D]              learned positions only; with a class token [1 + N, D], its own first
    class_token [1, 1, D]                   with class_token=True
    registers [1, R, D]                     with registers=R
    relative_bias/embedding [E, H]          with grid_bias="shared"; [n, E, H] with "layers" (see patches.py for E)
    mask_token [1, 1, D]                    with mask_token=True
    blocks/layers/..., blocks/norm/...      see t5like.models, whose Stack has the same leaves
    norm/{scale, bias}                      with pool="mean_norm", in place of blocks/norm

Every call returns (pooled [B, D], intermediates): a dict of "patches" [B, n, D] and, with a class token, "class"
[B, D], both after the last norm (before it with pool="mean_norm"), and "layers" [layers, B, length, D], each block's
output before it.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from paradigm.architecture import Architecture
from paradigm.attention import AttentionMask
from paradigm.errors import UserError, build, choose
from paradigm.layers import Dense, Embed
from paradigm.partition import BATCH, constrain
from paradigm.transformer import Stack
from vision.patches import grid_of, patchify, relative_bias, relative_entries, resize_table, sincos


class ViT(Architecture, kw_only=True):
    """Images [B, H, W, C] -> (pooled [B, D], intermediates).

    layers: how many. image_size, patch: in pixels; the pixels beyond the last whole patch are not read. channels: C.
    positions: sincos, fixed (see `patches.sincos`; the class token's is zero), learned, or none. An image of another
        size has sincos positions at fractions of the nominal coordinates, and learned ones interpolated (bicubic; with
        registers antialiased, as in DINOv2).
    grid_bias: none; BEiT's on attention logits, `shared` by all layers (its pre-training) or one table for each of
        the `layers` (its fine-tuning, and data2vec); zero at first.
    class_token: whether there is one. pool: class, its output, or mean, that of the patches without class token and
        registers; both after the last norm (big_vision's "gap"); or mean_norm, the mean and then the norm (the
        official fine-tuning of MAE, BEiT and data2vec).
    registers: tokens without a position that are read by nobody afterwards (Darcet et al. 2023, section 2.2).
    mask_token: whether there is one, to stand for patches that are not to be seen (`mask` below; BEiT, SimMIM).
    token_std: of these tokens at first; 0.02 in MAE, 1e-6 in MoCo v3 and DINOv2.
    scaled_init: see Stack; BEiT divides on residual branches, DINO, iBOT and I-JEPA do not.
    remat, scan: see Stack.
    """

    layers: int
    image_size: int = 224
    patch: int = 16
    channels: int = 3
    activation: str = "gelu_exact"
    norm: str = "layer"
    bias: bool = True
    positions: str = "sincos"
    grid_bias: str = "none"
    init_std: float | str | None = "xavier"
    dropout_style: str = "gpt2"
    class_token: bool = True
    pool: str = "class"
    registers: int = 0
    mask_token: bool = False
    token_std: float = 0.02
    scaled_init: bool = True
    remat: str = "none"
    scan: bool = True

    has_batch_norm = False

    @property
    def features(self):
        """D of the pooled output."""
        return self.d_model

    @property
    def grid(self):
        """(rows, columns) of patches at the nominal size."""
        return grid_of(self.image_size, self.image_size, self.patch)

    @nn.nowrap
    def stack(self, **changes):
        """The blocks; with changes, others of the same kind: a decoder's."""
        own = {name: getattr(self, name) for name in ("layers", "scaled_init", "remat", "scan")}
        how = {"positions": "none", **own}
        return Stack(**self.shared(**how) | changes)

    @nn.compact
    def __call__(self, images, *, train=False, keys=None, keep=None, mask=None, attention=None):
        """images float32 [B, H, W, C] -> (pooled [B, D], intermediates).

        Args:
            train: says nothing to a ViT; keys do.
            keys: typed PRNG keys [B] for dropout, or None for none.
            keep: int32 [B, n], the only patches that are read, in this order; None is all N.
            mask: bool [B, N], the patches in whose place, but for their position, stands the mask token; None is none.
            attention: AttentionMask of class token, registers and patches, in this order (AIM: causal with a prefix);
                None is that all see all.

        Raises:
            UserError: an image of other channels or smaller than a patch, a mask for a ViT without mask token, or
                `keep` with a relative bias.
        """
        del train
        if images.shape[-1] != self.channels:
            raise UserError(f"images of {images.shape[-1]} channels, and the ViT reads {self.channels}")
        grid = grid_of(*images.shape[1:3], self.patch)
        taken = lambda x: x if keep is None else jnp.take_along_axis(x, keep[..., None], axis=1)
        # Patches are chosen before they are embedded: a quarter of the product, and no scatter in the backward pass.
        x = taken(patchify(images, self.patch))
        x = Dense((self.d_model,), 1, True, self.init_std, self.dtype, name="embed")(x)
        if self.mask_token:
            token = self.param("mask_token", nn.initializers.normal(self.token_std), (1, 1, self.d_model))
            x = x if mask is None else jnp.where(taken(mask[..., None]), token.astype(self.dtype), x)
        elif mask is not None:
            raise UserError("a mask of patches, and the ViT has no mask token: set mask_token=True")
        x = constrain(x, BATCH, None, None)
        first, table = self._positions(grid)
        x = x + (table[None] if keep is None else constrain(table[keep], BATCH, None, None)).astype(self.dtype)
        x = jnp.concatenate([*self._tokens(len(x), first), x], 1)
        attention = AttentionMask() if attention is None else attention
        bias = self._grid_bias(grid, keep)
        blocks = self.stack(name="blocks", last_norm=self.pool != "mean_norm")
        x, intermediates = blocks(constrain(x, BATCH, None, None), attention, bias=bias, keys=keys)
        intermediates["patches"] = x[:, self.prefix :]
        if self.class_token:
            intermediates["class"] = x[:, 0]
        if self.pool == "class":
            return intermediates["class"], intermediates
        mean = intermediates["patches"].mean(1)
        return self.make_norm("norm")(mean) if self.pool == "mean_norm" else mean, intermediates

    @property
    def prefix(self):
        """Tokens before the patches: the class token and the registers."""
        return int(self.class_token) + self.registers

    @nn.nowrap
    def _tokens(self, batch, position):
        """[the class token [B, 1, D] with its position, the registers [B, R, D]], those that there are."""
        new = lambda name, n: self.param(name, nn.initializers.normal(self.token_std), (1, n, self.d_model))
        tokens = [new("class_token", 1) + position] if self.class_token else []
        tokens += [new("registers", self.registers)] if self.registers else []
        return [jnp.broadcast_to(x.astype(self.dtype), (batch, *x.shape[1:])) for x in tokens]

    @nn.nowrap
    def _positions(self, grid):
        """(the class token's position, or 0; the patches' [N, D]) for a grid of patches."""
        if self.positions == "sincos":
            return 0.0, jnp.asarray(sincos(self.d_model, *grid, self.grid))
        if self.positions == "none":
            return 0.0, jnp.zeros((grid[0] * grid[1], 1))
        count = int(self.class_token) + int(np.prod(self.grid))
        table = Embed(count, self.d_model, 0.02, name="positions")(None)
        first, table = (table[0], table[1:]) if self.class_token else (0.0, table)
        return first, resize_table(table, self.grid, grid, antialias=self.registers > 0)

    @nn.nowrap
    def _grid_bias(self, grid, keep):
        """None, [1, H, L, L], or [layers, 1, H, L, L]."""
        if self.grid_bias == "none":
            return None
        if keep is not None:
            raise UserError(
                f"grid_bias={self.grid_bias!r} is by the whole grid, and only some patches are read here: "
                "set grid_bias='none'"
            )
        count = (self.layers,) * (self.grid_bias == "layers") + (relative_entries(*self.grid), self.heads)
        table = _Table(count, name="relative_bias")()
        return relative_bias(table.astype(self.dtype), self.grid, grid, self.prefix)[..., None, :, :, :]

    @nn.nowrap
    def flops(self, batch, patches=None):
        """Forward FLOPs of the products for `patches` of each image; None is all at the nominal size."""
        patches = int(np.prod(self.grid)) if patches is None else patches
        embed = 2 * batch * patches * self.patch**2 * self.channels * self.d_model
        return embed + self.stack(parent=None).flops(batch, self.prefix + patches)


class _Table(nn.Module):
    """A table `embedding` of this shape, zero at first."""

    shape: tuple

    @nn.compact
    def __call__(self):
        return self.param("embedding", nn.initializers.zeros, self.shape, jnp.float32)


# ---- Sizes by name ---------------------------------------------------------------------------------------------------

# d_model, layers, d_ff, heads: Zhai et al. 2022, "Scaling Vision Transformers", table 2, as in big_vision's vit.py;
# `tiny` is this project's, for tests and two cores.
VIT_SIZES = {
    "tiny": (128, 4, 512, 4),
    "ti": (192, 12, 768, 3),
    "s": (384, 12, 1536, 6),
    "b": (768, 12, 3072, 12),
    "l": (1024, 24, 4096, 16),
    "h": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}


def vit(size, image_size=224, patch=16, **overrides: Any):
    """A ViT by name.

    Args:
        size: tiny, ti, s, b, l, h, g (MoCo v3's small one is s with heads=12).
        image_size, patch: in pixels.
        overrides: any field of ViT.

    Raises:
        UserError: an unknown size, field or choice (the nearest is named), a patch that is larger than the image,
            sincos positions at a width that 4 does not divide, heads that do not divide the width.
    """
    size = size if size in VIT_SIZES else str(size).lower()
    d_model, layers, d_ff, heads = choose("ViT size", size, VIT_SIZES)
    fields = {"d_model": d_model, "layers": layers, "d_ff": d_ff, "heads": heads}
    fields |= {"image_size": image_size, "patch": patch}
    model = build(ViT, fields, overrides)
    choose("positions", model.positions, dict.fromkeys(("sincos", "learned", "none")))
    choose("grid_bias", model.grid_bias, dict.fromkeys(("none", "shared", "layers")))
    choose("pool", model.pool, dict.fromkeys(("class", "mean", "mean_norm")))
    if model.pool == "class" and not model.class_token:
        raise UserError("pool='class' without a class token: set class_token=True, or pool='mean'")
    if model.positions == "sincos":
        sincos(model.d_model, 1, 1)
    assert model.head_width > 0 and model.grid  # raises now rather than in the first trace
    return model
