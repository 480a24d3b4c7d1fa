"""Pictures as ids: two quantizers of patches, the decoder that makes pictures of them again, and all three as one.

A tokenizer is trained by an objective (VQ, DVAE) whose modules are `encoder`, `quantizer` and `decoder`. Others read it
as one module `tokenizer`, frozen, from that run:

    Init(RUN, rename=(('^(encoder|quantizer|decoder)/', r'tokenizer/\\1/'),))
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.attention import AttentionMask
from paradigm.layers import Dense
from paradigm.partition import BATCH, constrain
from vision.patches import sincos


def unit(x):
    """x / |x| along the last axis, float32; 0 stays 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


class Codebook(nn.Module):
    """The means of the vectors nearest to each of K codes: running statistics, no parameters (see VQ).

    batch_stats: count [K], vectors of a picture that are nearest to the code; sum [K, d] of these. Both are moving
    averages, and a code is sum / count, of length 1 with `normalized`.
    """

    codes: int
    width: int
    normalized: bool = False

    def setup(self):
        first = lambda: jax.random.normal(self.make_rng("params"), (self.codes, self.width))
        self.count = self.variable("batch_stats", "count", jnp.ones, (self.codes,))
        self.sum = self.variable("batch_stats", "sum", first)

    def table(self):
        """float32 [K, d]."""
        mean = self.sum.value / self.count.value[:, None]
        return unit(mean) if self.normalized else mean

    def __call__(self, z, weights, train):
        """z float32 [B, N, d], weights [B] -> (ids int32 [B, N], codes [B, N, d])."""
        table = self.table()
        near = z @ table.T - 0.5 * jnp.square(table).sum(-1)  # the nearest has the largest
        ids = jnp.argmax(constrain(near, BATCH, None, None), -1)
        if train:
            each = jnp.broadcast_to(weights[:, None] / len(z), ids.shape)
            keep = {"reduce_fn": lambda _, new: new, "init_fn": lambda: None}
            self.sow("moments", "count", jnp.zeros(self.codes).at[ids].add(each), **keep)
            self.sow("moments", "sum", jnp.zeros(table.shape).at[ids].add(each[..., None] * z), **keep)
        return ids, table[ids]


class VectorQuantizer(nn.Module):
    """Patches [B, N, D] -> (codes [B, N, d], {"ids", "latent", "nearest"}): van den Oord et al. 2017, section 3.1.

    The gradient of the codes goes to the latents as it is (straight through). normalized: latents and codes have
    length 1 (VQ-KD: Peng et al. 2022, "BEiT v2", section 2.2.1).
    """

    codes: int
    width: int
    normalized: bool = False

    def setup(self):
        self.fc0 = Dense((self.width,), 1, True)
        self.codebook = Codebook(self.codes, self.width, self.normalized)

    def __call__(self, patches, weights=None, *, train=False):
        z = constrain(self.fc0(patches.astype(jnp.float32)), BATCH, None, None)
        z = unit(z) if self.normalized else z
        weights = jnp.ones(len(z)) if weights is None else weights
        ids, nearest = self.codebook(jax.lax.stop_gradient(z), weights, train)
        return z + jax.lax.stop_gradient(nearest - z), {"ids": ids, "latent": z, "nearest": nearest}

    def lookup(self, ids):
        """int [B, N] -> codes [B, N, d]."""
        return self.codebook.table()[ids]


class GumbelQuantizer(nn.Module):
    """Patches [B, N, D] -> (codes [B, N, d], {"ids", "logs"}): Ramesh et al. 2021, "DALL-E", section 2.1.

    With keys a code is the mean of all by softmax((logits + Gumbel noise) / temperature); without, the likeliest one.
    logs: log probabilities [B, N, K].
    """

    codes: int
    width: int

    def setup(self):
        self.fc0 = Dense((self.codes,), 1, True)
        first = nn.initializers.normal(1.0)
        self.codebook = self.param("codebook", first, (self.codes, self.width), jnp.float32)

    def __call__(self, patches, keys=None, temperature=1.0):
        logits = constrain(self.fc0(patches.astype(jnp.float32)), BATCH, None, None)
        ids, more = jnp.argmax(logits, -1), {"logs": jax.nn.log_softmax(logits)}
        if keys is None:
            return self.codebook[ids], {"ids": ids, **more}
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jax.nn.softmax((logits + noise) / temperature) @ self.codebook, {"ids": ids, **more}

    def lookup(self, ids):
        """int [B, N] -> codes [B, N, d]."""
        return self.codebook[ids]


class LatentDecoder(nn.Module):
    """Codes [B, N, d] -> ([B, N, outputs], {}): blocks of the encoder's kind at this width, all patches at once."""

    encoder: Any
    outputs: int
    width: int = 512
    layers: int = 4
    heads: int = 8

    @nn.nowrap
    def stack(self, **changes):
        how = {"d_model": self.width, "d_ff": 4 * self.width, "heads": self.heads, "layers": self.layers}
        return self.encoder.stack(**how, **changes)

    @nn.compact
    def __call__(self, codes):
        e = self.encoder
        dense = lambda n, name: Dense((n,), 1, True, e.init_std, e.dtype, name=name)
        x = dense(self.width, "embed")(codes) + jnp.asarray(sincos(self.width, *e.grid), e.dtype)
        x, _ = self.stack(name="blocks")(constrain(x, BATCH, None, None), AttentionMask())
        return dense(self.outputs, "predict")(x).astype(jnp.float32), {}

    @nn.nowrap
    def flops(self, batch, features):
        """Forward FLOPs of the products for codes of `features` numbers."""
        n = self.encoder.grid[0] * self.encoder.grid[1]
        return 2 * batch * n * self.width * (features + self.outputs) + self.stack(parent=None).flops(batch, n)


class Tokenizer(nn.Module):
    """A trained tokenizer as one module: images [B, H, W, C], normalised -> (ids int32 [B, N], {})."""

    encoder: Any
    quantizer: Any
    decoder: Any

    def __call__(self, images):
        _, seen = self.encoder(images)
        codes, more = self.quantizer(seen["patches"])
        if self.is_initializing():
            self.decoder(codes)
        return more["ids"], {}

    def decode(self, ids):
        """int [B, N] -> (what the decoder makes of them [B, N, outputs], {})."""
        return self.decoder(self.quantizer.lookup(ids))
