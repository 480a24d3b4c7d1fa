"""Histograms of oriented gradients (Dalal and Triggs 2005), as MaskFeat predicts them."""

import jax.numpy as jnp
import numpy as np


def hog(images, cell=8, bins=9, window=0):
    """float32 [B, H, W, C] -> [B, H / cell, W / cell, C, bins], each histogram a unit vector.

    As HOGLayerC of the official code (SlowFast, models/operators.py): the gradient by Sobel's filters, borders
    reflected; its size goes to the bin of its direction among `bins` of half a turn, opposite directions alike; summed
    over cells of cell x cell.

    Args:
        window: sizes are first weighed by a Gaussian of deviation window / 2 in each window of window x window pixels,
            a divisor of H and W; 0 for none, as MaskMViT has it (models/masked.py; mmselfsup's copy has 16).
    """
    x = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    across = x[:, :, :-2] - x[:, :, 2:]
    across = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    down = x[:, :-2] - x[:, 2:]
    down = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    size = jnp.sqrt(jnp.square(across) + jnp.square(down))
    if window:
        size = size * jnp.asarray(_gaussian(window, images.shape[1:3]))[..., None]
    bin = jnp.floor(jnp.arctan2(across, down) / jnp.pi * bins).astype(jnp.int32) % bins
    votes = jnp.where(bin[..., None] == jnp.arange(bins), size[..., None], 0.0)  # [B, H, W, C, bins]
    b, height, width, c, _ = votes.shape
    cells = votes.reshape(b, height // cell, cell, width // cell, cell, c, bins).sum((2, 4))
    return cells / jnp.maximum(jnp.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)


def _gaussian(window, shape):
    """float32 `shape`: a Gaussian of sum 1, repeated."""
    at = (np.arange(window) - (window - 1) / 2) / (window // 2)
    line = np.exp(-0.5 * at**2)
    square = np.outer(line, line)
    return np.tile(np.float32(square / square.sum()), (shape[0] // window, shape[1] // window))
