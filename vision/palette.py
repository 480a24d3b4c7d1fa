"""A fixed set of colours: pictures as ids of their pixels, and back."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Palette:
    """The nearest of some colours, for each pixel.

    levels: evenly spaced numbers in [0, 1] for each channel, all combinations of which are the colours: 8 are 512 for
    three channels. colours: these instead, a tuple of tuples of `channels` numbers in [0, 1] (see `kmeans`).
    """

    channels: int = 3
    levels: int = 8
    colours: tuple = ()

    def __post_init__(self):
        if not self.colours and self.levels < 2:
            raise UserError(f"Palette.levels={self.levels}: choose 2 or more")
        if wrong := [colour for colour in self.colours if len(colour) != self.channels]:
            raise UserError(f"Palette.colours has {wrong[0]}, which is not of {self.channels} channels")

    @property
    def table(self):
        """float32 [colours, C]."""
        steps = np.linspace(0, 1, self.levels)
        return np.float32(self.colours or list(itertools.product(steps, repeat=self.channels)))

    @property
    def codes(self):
        """How many colours."""
        return len(self.colours) or self.levels**self.channels

    def ids(self, pixels):
        """float32 [B, H, W, C] in [0, 1] -> int32 [B, H W], row by row."""
        table = jnp.asarray(self.table)
        x = pixels.reshape(len(pixels), -1, self.channels)
        # |x - t|^2 but for |x|^2, in full precision: neighbours of a palette of 512 are near.
        near = jnp.einsum("bnc,kc->bnk", x, table, precision="highest") - 0.5 * jnp.square(table).sum(-1)
        return jnp.argmax(near, -1)

    def pixels(self, ids, size):
        """int [B, H W] -> float32 [B, size, size, C] in [0, 1]."""
        return jnp.asarray(self.table)[ids].reshape(len(ids), size, size, self.channels)


def kmeans(pixels, clusters=512, steps=20, seed=0):
    """The Palette of `clusters` colours by Lloyd's algorithm (Chen et al. 2020, "iGPT", section 3.1: 512 of ImageNet).

    pixels: [n, C] in [0, 1]. A cluster that has lost all its pixels is put on one of them.
    """
    pixels, draw = np.float64(pixels), np.random.default_rng(seed)
    if len(np.unique(pixels, axis=0)) < clusters:
        raise UserError(f"kmeans: {clusters} clusters of fewer different colours: choose fewer")
    means = draw.permutation(np.unique(pixels, axis=0))[:clusters]
    for _ in range(steps):
        near = np.argmax(pixels @ means.T - 0.5 * np.square(means).sum(1), 1)
        count = np.bincount(near, minlength=clusters)
        total = np.stack([np.bincount(near, pixels[:, c], clusters) for c in range(pixels.shape[1])], 1)
        lost = draw.choice(len(pixels), clusters)
        means = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], pixels[lost])
    return Palette(pixels.shape[1], colours=tuple(tuple(float(x) for x in mean) for mean in means))
