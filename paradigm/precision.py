"""What parameters and moments are stored in between steps: float32, or bfloat16 with stochastic rounding.

A bfloat16 has 8 bits of mantissa: to the nearest, an update of less than 1/512 of its parameter is lost, and all of
training's last part is made of such; so is 1 - b2 = 0.001 of a second moment. Rounded up with the probability of what
was cut off, they are right on the average (Gupta et al. 2015, arXiv:1502.02551, section 3; of bfloat16 parameters
Zamirai et al. 2020, arXiv:2010.06192, section 3). Arithmetic, sums, losses and averages of weights are not concerned:
a step reads what is stored, computes in float32, and rounds what it stores.
"""

import zlib

import jax
import jax.numpy as jnp

from paradigm import trees
from paradigm.errors import choose

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def as_stored(tree, dtype):
    """A tree of parameters or moments in `dtype`, float32 or bfloat16, rounded to the nearest: what training begins
    with. Vectors and scalars stay float32: they are few, and norm scales sensitive."""
    kind = choose("dtype", dtype, DTYPES)

    def one(name, x):
        matrix = x.ndim - trees.is_stacked(name) >= 2
        return x.astype(kind) if matrix and x.dtype == jnp.float32 else x

    return trees.named_map(one, tree)


def full(tree):
    """What is stored as bfloat16 in float32; all else as it is."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def store(tree, like, key):
    """The values of a tree in the dtypes of another. key: for stochastic rounding, which is a function of it and of
    the leaf's name, on any mesh."""

    def one(name, x, old):
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return stochastic_round(x, own) if old.dtype == jnp.bfloat16 else x.astype(old.dtype)

    return trees.named_map(one, tree, like)


def stochastic_round(x, key):
    """float32 -> bfloat16, one of the two neighbours; the mean over keys is x."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = (bits + noise) & jnp.uint32(0xFFFF0000)  # adding carries into the half that is kept as often as it should
    return jax.lax.bitcast_convert_type(cut, jnp.float32).astype(jnp.bfloat16)
