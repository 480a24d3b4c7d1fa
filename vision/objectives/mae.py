"""Masked autoencoding: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners".

    keep a random quarter of the patches, encode these alone, decode them and mask tokens, predict the others' pixels
    loss = mean over masked patches of mean((predicted - (x - mean x) / sqrt(var x + 1e-6))^2)               (section 3)

The order of tokens means nothing to a transformer whose positions are added to its input. So nothing is unshuffled: the
decoder reads the kept patches, then the masked ones, each with the position that is its own, and only the latter are
predicted. Values and gradients are those of the official code, which restores the order first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.attention import AttentionMask
from paradigm.capabilities import Reconstructing
from paradigm.errors import UserError, choose
from paradigm.layers import Dense, Embed
from paradigm.objective import Loss, Term
from paradigm.partition import BATCH, constrain
from vision.masking import MASKS, masks
from vision.objectives.masked_images import OneView
from vision.patches import patchify, sincos, unpatchify


class Decoder(nn.Module):
    """Latents of kept patches [B, 1 + n, D], ids_shuffle [B, N] -> pixels of the masked [B, N - n, P].

    d_ff: of its blocks; None is 4 * width. positions: sincos, fixed, or learned: positions/embedding [1 + N, width].
    """

    encoder: Any
    width: int = 512
    layers: int = 8
    heads: int = 16
    d_ff: int | None = None
    positions: str = "sincos"

    @property
    def hidden(self):
        """F."""
        return 4 * self.width if self.d_ff is None else self.d_ff

    @nn.nowrap
    def stack(self, **changes):
        """The blocks: the encoder's kind, at this width."""
        how = {"d_model": self.width, "d_ff": self.hidden, "heads": self.heads, "layers": self.layers}
        return self.encoder.stack(**how, **changes)

    @nn.compact
    def __call__(self, latent, ids_shuffle):
        e = self.encoder
        kept, masked = latent.shape[1] - 1, ids_shuffle.shape[1] - latent.shape[1] + 1
        dense = lambda n, name: Dense((n,), 1, True, e.init_std, e.dtype, name=name)
        x = dense(self.width, "embed")(latent)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
        mask_tokens = jnp.broadcast_to(mask_token.astype(x.dtype), (len(x), masked, self.width))
        if self.positions == "learned":
            table = Embed(1 + ids_shuffle.shape[1], self.width, 0.02, x.dtype, name="positions")(
                jnp.arange(1 + ids_shuffle.shape[1])
            )
            first, table = table[:1], table[1:]
        else:
            first, table = 0.0, jnp.asarray(sincos(self.width, *e.grid), x.dtype)
        positions = table[ids_shuffle]  # [B, N, width], kept ones first
        x = jnp.concatenate([x[:, :1] + first, x[:, 1:] + positions[:, :kept], mask_tokens + positions[:, kept:]], 1)
        x, _ = self.stack(name="blocks")(constrain(x, BATCH, None, None), AttentionMask())
        return dense(e.patch**2 * e.channels, "predict")(x[:, 1 + kept :])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAE(Reconstructing, OneView):
    """Pixels of masked patches from the visible ones.

    encoder: a ViT with a class token. mask_ratio: part of the patches that is hidden. masking: random, block (a
    ratio of 0.5 in the paper) or grid (of 0.75): section 4.1, "Mask sampling strategy". block_smallest: patches that a
    block has at least. norm_pixels: targets are normalised patch by patch. decoder_width, decoder_layers,
    decoder_heads, decoder_d_ff, decoder_positions: of the decoder (see Decoder), for pre-training alone.

    Raises UserError when the ratio leaves no patch to see or none to predict.
    """

    mask_ratio: float = 0.75
    masking: str = "random"
    block_smallest: int = 16
    norm_pixels: bool = True
    decoder_width: int = 512
    decoder_layers: int = 8
    decoder_heads: int = 16
    decoder_d_ff: int | None = None
    decoder_positions: str = "sincos"

    def __post_init__(self):
        super().__post_init__()
        choose("MAE.masking", self.masking, MASKS)
        choose("MAE.decoder_positions", self.decoder_positions, dict.fromkeys(("sincos", "learned")))
        if self.norm_pixels and self.encoder.patch**2 * self.encoder.channels < 2:
            raise UserError("MAE.norm_pixels=True, but a patch is one number, which has no deviation: set it to False")
        if not 0 < self.kept < self.patches:
            raise UserError(
                f"MAE.mask_ratio={self.mask_ratio} keeps {self.kept} of {self.patches} patches: choose it so that at "
                "least one is kept and one is masked"
            )

    @property
    def kept(self):
        """How many patches the encoder sees."""
        return int(self.patches * (1 - self.mask_ratio))

    @property
    def decoder(self):
        sizes = (self.decoder_width, self.decoder_layers, self.decoder_heads, self.decoder_d_ff)
        return Decoder(self.encoder, *sizes, self.decoder_positions)

    def modules(self):
        latent = jnp.zeros((1, 1 + self.kept, self.encoder.d_model))
        return {**super().modules(), "decoder": (self.decoder, (latent, jnp.arange(self.patches)[None]))}

    def shuffle(self, keys):
        """Keys [B] -> int32 [B, N]: the patches in random order; the first `kept` are the visible ones."""
        noise = jax.vmap(lambda key: jax.random.uniform(key, (self.patches,)))(keys)
        if self.masking != "random":
            how = {"smallest": self.block_smallest} if self.masking == "block" else {}
            # Of what the mask leaves, `kept` by chance; where it leaves fewer, as many of its own.
            noise += masks(self.masking, keys, self.encoder.grid, self.patches - self.kept, **how)
        return jnp.argsort(noise, axis=1)

    def predict(self, variables, images, ids_shuffle, keys=None):
        """[B, H, W, C], ids_shuffle [B, N] (see `shuffle`) -> the masked patches' predicted pixels [B, N - n, P]."""
        _, intermediates, _ = self.apply("encoder", variables, images, keep=ids_shuffle[:, : self.kept], keys=keys)
        latent = jnp.concatenate([intermediates["class"][:, None], intermediates["patches"]], 1)
        return self.apply("decoder", variables, latent, ids_shuffle)[0]

    def target(self, images, ids_shuffle):
        """(target [B, N - n, P], mean, deviation [B, N - n, 1]): target * deviation + mean are the masked pixels."""
        pixels = patchify(images, self.encoder.patch)  # [B, H, W, C] -> [B, N, P]
        pixels = jnp.take_along_axis(pixels, ids_shuffle[:, self.kept :, None], 1)
        if not self.norm_pixels:
            return pixels, 0.0, 1.0
        mean = pixels.mean(-1, keepdims=True)
        deviation = jnp.sqrt(pixels.var(-1, keepdims=True, ddof=1) + 1e-6)  # torch.var divides by P - 1
        return (pixels - mean) / deviation, mean, deviation

    def loss(self, params, extra, batch, ctx):
        images = self.draw(batch, ctx)
        ids_shuffle = self.shuffle(ctx.keys("mask", batch["index"]))
        keys = self.dropout_keys(batch, ctx)
        predicted = self.predict(self.variables(params, extra), images, ids_shuffle, keys).astype(jnp.float32)
        target, _, _ = self.target(images, ids_shuffle)
        error = jnp.square(predicted - target).mean((1, 2))
        return Loss({"pixels": Term(jnp.sum(error * batch["mask"]), batch["mask"].sum())})

    def reconstruct(self, variables, images, keys):
        """What the model makes of normalised images [B, H, W, C], keys [B]: {"masked", "reconstructed"}, alike.

        masked: hidden patches grey. reconstructed: the hidden patches as predicted, with the normalisation undone by
        their true mean and deviation (as the official visualisation does), beside the visible ones as they are.
        """
        ids_shuffle = self.shuffle(keys)
        predicted = self.predict(variables, images, ids_shuffle)
        _, mean, deviation = self.target(images, ids_shuffle)
        pixels = patchify(images, self.encoder.patch)
        put = jax.vmap(lambda row, at, new: row.at[at].set(new))
        hidden = ids_shuffle[:, self.kept :]
        shown = {
            "masked": put(pixels, hidden, jnp.zeros_like(predicted)),
            "reconstructed": put(pixels, hidden, predicted * deviation + mean),
        }
        return {name: unpatchify(x, self.encoder.patch, images.shape[1:]) for name, x in shown.items()}

    def forward_flops(self, batch_spec):
        rows, pixels = batch_spec["mask"].size, self.encoder.patch**2 * self.encoder.channels
        decoder = 2 * rows * (1 + self.kept) * self.encoder.d_model * self.decoder_width
        decoder += self.decoder.stack(parent=None).flops(rows, 1 + self.patches)
        decoder += 2 * rows * (self.patches - self.kept) * self.decoder_width * pixels
        return {"encoder": self.encoder.flops(rows, self.kept), "decoder": decoder}
