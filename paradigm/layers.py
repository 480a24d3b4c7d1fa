"""What a transformer is made of below attention: products, embeddings, norms, activations and dropout by example.

Parameters are float32; `dtype` is what the arithmetic is done in. The letter table of shapes is in transformer.py.
"""

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from paradigm.cpu_gradients import gated_gelu, gelu, gelu_exact, product
from paradigm.partition import constrain

# ---- Dropout ---------------------------------------------------------------------------------------------------------


def drop(x, keys, site, rate, shared=()):
    """Dropout by example: row b's mask is a function of keys[b] and of the site's name alone.

    Args:
        x: [B, ...].
        keys: typed PRNG keys [B], or None for no dropout.
        site: str, what tells this mask from the others drawn from the same keys.
        rate: probability of zero, a number or an array [].
        shared: axes of x (not the first) that share one mask, as T5 does over length.
    """
    if keys is None or (not isinstance(rate, jax.Array) and rate == 0.0):
        return x
    shape = tuple(1 if axis in shared else size for axis, size in enumerate(x.shape))[1:]
    code = zlib.crc32(site.encode())
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, code), 1.0 - rate, shape))(keys)
    return x * (keep.astype(x.dtype) / (1.0 - rate)).astype(x.dtype)


# ---- Dense, Embed, norms ---------------------------------------------------------------------------------------------


class Dense(nn.Module):
    """A linear map over the last `inputs` axes of x: [..., *in] -> [..., *features]. The kernel keeps all its axes.

    std: standard deviation of the kernel's normal initialiser; None is fan_in ** -0.5; "xavier" is uniform in
        +-(6 / (fan_in + fan_out)) ** 0.5 (Glorot and Bengio 2010, equation 16).
    """

    features: tuple
    inputs: int = 1
    bias: bool = False
    std: float | str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        into = x.shape[-self.inputs :]
        if self.std == "xavier":
            axes = range(self.inputs + len(self.features))
            first = nn.initializers.glorot_uniform(tuple(axes[: self.inputs]), tuple(axes[self.inputs :]))
        else:
            first = nn.initializers.normal(math.prod(into) ** -0.5 if self.std is None else self.std)
        kernel = self.param("kernel", first, (*into, *self.features), jnp.float32)
        y = checkpoint_name(product(x.astype(self.dtype), kernel.astype(self.dtype), self.inputs), "product")
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, self.features, jnp.float32).astype(self.dtype)
        return y


class Embed(nn.Module):
    """A table [count, D]: int [...] -> [..., D]; None is every row in turn.

    rows: the mesh axis that cuts the rows of the table while it is read (see `lookup`).
    """

    count: int
    features: int
    std: float = 1.0
    dtype: Any = jnp.float32
    rows: str | None = None

    @nn.compact
    def __call__(self, ids):
        table = self.param("embedding", nn.initializers.normal(self.std), (self.count, self.features), jnp.float32)
        return table.astype(self.dtype) if ids is None else lookup(table, ids, self.dtype, self.rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table, ids, dtype, rows=None):
    """Rows of a table [count, D] in `dtype`: int [...] -> [..., D].

    Where columns are cut over fsdp, XLA's partitioner has each device look up the ids of all devices in its own, and
    sends back what it finds: nothing for the interconnect, but memory that grows with the whole batch. A table that is
    small beside that is gathered instead, its rows cut over `rows` alone, and its gradient summed.

    The gradient is the usual one, its sums in float32: a frequent token's has thousands of terms, of which 16-bit sums
    lose the later ones, and which a GPU can add to 16-bit numbers only one by one.
    """
    return _whole(table.astype(dtype), ids, rows)[ids]


def _whole(table, ids, rows):
    mesh = jax.sharding.get_abstract_mesh()
    columns = table.shape[1] // (1 if mesh.empty else mesh.shape.get("fsdp", 1))
    found = ids.size * max(columns, 128)  # a TPU has whole lanes
    # Four: of a v5e, which writes and reads some eight numbers in the time that it sends one.
    return constrain(table, rows, None, partial=True) if 4 * table.size <= found else table


def _lookup_gradients(dtype, rows, kept, g):
    ids, like = kept
    sums = jnp.zeros(like.shape, jnp.float32).at[ids].add(g.astype(jnp.float32))
    return _whole(sums, ids, rows).astype(like.dtype), None


lookup.defvjp(lambda table, ids, dtype, rows: (lookup(table, ids, dtype, rows), (ids, table)), _lookup_gradients)


class RMSNorm(nn.Module):
    """x / root mean square * scale, no mean, no bias, float32 inside (Zhang and Sennrich 2019; T5's layer norm)."""

    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)

        @jax.checkpoint  # stores x and not the steps on the way
        def norm(x, scale):
            x = x.astype(jnp.float32)
            return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps) * scale

        return norm(x, scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / deviation * scale + bias, in float32 inside (Ba et al. 2016)."""

    eps: float = 1e-5
    dtype: Any = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32) if self.bias else 0.0

        @jax.checkpoint  # stores x and not the steps on the way
        def norm(x, scale, bias):
            x = x.astype(jnp.float32)
            x = x - jnp.mean(x, axis=-1, keepdims=True)
            return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps) * scale + bias

        return norm(x, scale, bias).astype(self.dtype)


class UnbiasedNorm(LayerNorm):
    """LayerNorm without a bias (ModernBERT)."""

    bias: bool = False


NORMS = {"rms": RMSNorm, "layer": LayerNorm, "layer_unbiased": UnbiasedNorm}


# ---- Activations -----------------------------------------------------------------------------------------------------

# name: (function of the products, how many it takes)
ACTIVATIONS = {
    "relu": (jax.nn.relu, 1),
    "gelu": (gelu, 1),
    "gelu_exact": (gelu_exact, 1),
    "silu": (jax.nn.silu, 1),
    "quick_gelu": (jax.checkpoint(lambda x: x * jax.nn.sigmoid(1.702 * x)), 1),  # of OpenAI's CLIP weights
    "gated_gelu": (gated_gelu, 2),
    "gated_gelu_exact": (jax.checkpoint(lambda a, b: gelu_exact(a) * b), 2),
    "gated_silu": (jax.checkpoint(lambda a, b: jax.nn.silu(a) * b), 2),
}
