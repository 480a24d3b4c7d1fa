"""Masks of patches in blocks, drawn on the device by each example's own key."""

import math

import jax
import jax.numpy as jnp

ATTEMPTS = 10  # that may fail one after another before a mask is taken as it is
ROUNDS = 60  # attempts in all, failed ones too: a bound that the official loops do not have
ASPECT = 0.3  # blocks are between 0.3 and 1 / 0.3 times as wide as high


def block_masks(keys, grid, ratio, smallest):
    """bool [B, N], True where a patch is hidden: rectangles until `ratio` of the grid is covered, and never more.

    BEiT's algorithm 1 (Bao et al. 2022) as iBOT's loader.py and DINOv2's masking.py have it: a rectangle's area is
    uniform between `smallest` and what is missing, its aspect log-uniform; one that is as high or as wide as the grid,
    adds nothing or covers too much is drawn again, ten times at most.

    Args:
        keys: typed PRNG keys [B]. grid: (rows, columns). ratio: float32 [B], 0 for none. smallest: patches.
    """
    rows, columns = grid
    y, x = jnp.arange(rows)[:, None], jnp.arange(columns)

    def one(key, most):
        def attempt(state, draw):
            mask, failed = state
            missing = most - mask.sum()
            area = jnp.maximum(smallest + draw[0] * (missing - smallest), 0.0)
            aspect = jnp.exp(math.log(ASPECT) * (1 - 2 * draw[1]))
            height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
            top, left = jnp.floor(draw[2] * (rows - height + 1)), jnp.floor(draw[3] * (columns - width + 1))
            block = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
            new = (block & ~mask).sum()
            fits = (height < rows) & (width < columns) & (new > 0) & (new <= missing)
            fits &= (missing > 0) & (failed < ATTEMPTS)
            return (mask | (block & fits), jnp.where(fits, 0, failed + 1)), None

        draws = jax.random.uniform(key, (ROUNDS, 4))
        start = jnp.zeros((rows, columns), bool), jnp.int32(0)
        return jax.lax.scan(attempt, start, draws)[0][0].reshape(-1)

    return jax.vmap(one)(keys, ratio * rows * columns)
