"""Randomness by name: every key is a function of (seed, name, step or index), and none is stored in a state.

A run that restarts, reads with other workers or moves to another mesh draws the same numbers: nothing counts calls.
"""

import zlib

import jax


def key(seed, name, step=None):
    """The key of stream `name`: a pure function of (seed, name) and, when given, of the step.

    Args:
        seed: int.
        name: str, hashed by CRC-32 so that it is stable between processes and Python versions.
        step: int or traced int32 scalar; None for streams that are folded by example instead.

    Returns:
        A typed PRNG key, shape [].
    """
    base = fold(jax.random.key(seed), name)
    return base if step is None else jax.random.fold_in(base, step)


def fold(base, name):
    """The key of stream `name` under a typed PRNG key []."""
    return jax.random.fold_in(base, zlib.crc32(name.encode()))


def per_example(base, index):
    """One key for each example, from its global index alone.

    Args:
        base: typed PRNG key, shape [].
        index: uint32 [B, 2], the high and low words of the example's index in the stream.

    Returns:
        Typed PRNG keys, shape [B].
    """
    return jax.vmap(lambda hi_lo: jax.random.fold_in(jax.random.fold_in(base, hi_lo[0]), hi_lo[1]))(index)
