"""Which patches of a picture are hidden: one function of a key for each way, bool [rows * columns], on the device.

`random` hides any patches, in squares of `unit` patches; `block` rectangles until a share is reached (BEiT); `grid` all
but one of each square of 2 x 2 (He et al. 2022, figure 6). Every picture has its own mask by its own key.
"""

import functools
import math

import jax
import jax.numpy as jnp

from paradigm.errors import UserError, choose

ATTEMPTS = 10  # of BEiT's official MaskingGenerator (unilm/beit, masking_generator.py), to place one block


def random_mask(key, grid, count, unit=1):
    """`count` squares of unit x unit patches, as SimMIM's (Xie et al. 2022, section 3.2) and MAE's with unit=1."""
    rows, columns = (n // unit for n in grid)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, (rows * columns,))))
    mask = (rank < count).reshape(rows, columns)
    return mask.repeat(unit, 0).repeat(unit, 1).reshape(-1)


def block_mask(key, grid, count, smallest=16, largest=None, aspect=0.3):
    """Blocks one by one until `count` patches are hidden, never more (Bao et al. 2022, algorithm 1, which iBOT's
    loader.py and DINOv2's masking.py have too). count may be traced: each picture's own.

    A block has an area uniform between `smallest` and what is still to be hidden (`largest` at most), and a ratio of
    height to width log-uniform in [aspect, 1 / aspect]. It is taken where it lies inside, hides at least one new patch
    and not too many. As in the official code the search ends after ten blocks in a row that were not: some masks have
    fewer than `count`.
    """
    rows, columns = grid
    low = math.log(aspect)
    y, x = jnp.arange(rows)[:, None], jnp.arange(columns)
    most = count if largest is None else largest

    def attempt(state):
        mask, failed, number = state
        u = jax.random.uniform(jax.random.fold_in(key, number), (4,))
        left = jnp.minimum(count - mask.sum(), most)
        area = smallest + u[0] * (left - smallest)
        ratio = jnp.exp(low - 2 * low * u[1])
        height, width = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
        top, start = jnp.floor(u[2] * (rows - height + 1)), jnp.floor(u[3] * (columns - width + 1))
        block = (y >= top) & (y < top + height) & (x >= start) & (x < start + width)
        new = jnp.sum(block & ~mask)
        good = (height < rows) & (width < columns) & (new > 0) & (new <= left)
        return mask | (block & good), jnp.where(good, 0, failed + 1), number + 1

    going = lambda state: (state[0].sum() < count) & (state[1] < ATTEMPTS)
    first = jnp.zeros((rows, columns), bool), jnp.int32(0), jnp.int32(0)
    return jax.lax.while_loop(going, attempt, first)[0].reshape(-1)


def grid_mask(key, grid, count):
    """All but one patch, the same, of each square of 2 x 2: of these four places the key draws one."""
    del count
    place = jax.random.randint(key, (), 0, 4)
    y, x = jnp.arange(grid[0])[:, None] % 2, jnp.arange(grid[1]) % 2
    return (2 * y + x != place).reshape(-1)


MASKS = {"random": random_mask, "block": block_mask, "grid": grid_mask}


def masks(how, keys, grid, count, **settings):
    """bool [B, N] by one of MASKS for keys [B]."""
    draw = choose("masking", how, MASKS)
    return jax.vmap(functools.partial(draw, grid=grid, count=count, **settings))(keys)


def hidden_first(mask, count):
    """int32 [B, count]: places of the hidden patches of mask [B, N] in their order, and after them of others."""
    return jnp.argsort(~mask, axis=1, stable=True)[:, :count]


def check_count(who, ratio, count, total):
    """Raises UserError unless a mask leaves something to see and something to predict."""
    if not 0 < count < total:
        raise UserError(
            f"{who}.mask_ratio={ratio} hides {count} of {total} patches: choose it so that at least one is seen and "
            "one is hidden"
        )
