"""The regularisers of supervised training that DeiT put together (Touvron et al. 2021, section 6): pictures mixed or
erased.

A picture's partner is another of the batch: `pair` gives it to each row before a batch is cut into microbatches, so
that the result does not depend on how it is cut. What is drawn is each example's own.
"""

import jax
import jax.numpy as jnp

from paradigm.partition import constrain_rows

ENTRIES = ("image", "aspect", "label", "index", "mask")


def pair(batch):
    """{"partner_image" ...}: for each row of the whole batch the entries of the row as far from its other end.

    As timm's Mixup, which flips the batch. On a mesh the rows change places as they came, before any view is taken.
    """
    return {f"partner_{name}": constrain_rows(batch[name][::-1]) for name in ENTRIES}


def mix(keys, x, other, mixup, cutmix):
    """(mixed pictures [B, H, W, C], share [B] of x in each): mixup or CutMix, by even chance where both are on.

    mixup (Zhang et al. 2018): share * x + (1 - share) * other, share from Beta(mixup, mixup). cutmix (Yun et al. 2019,
    section 3.1): a box of 1 - share of the area, anywhere, is the other's; what lies outside the picture is cut off,
    and share is what is left. 0 is off.
    """
    height, width = x.shape[1:3]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)

    def one(key, x, other):
        draws, beta = jax.random.split(key)
        cut, y, z = jax.random.uniform(draws, (3,))
        cuts = cut < 0.5 if mixup and cutmix else jnp.bool_(bool(cutmix))
        share = jax.random.beta(beta, *(jnp.where(cuts, cutmix or 1.0, mixup or 1.0),) * 2)
        half = 0.5 * jnp.sqrt(1 - share)
        top, bottom = (jnp.clip(jnp.round((y + s * half) * height), 0, height) for s in (-1, 1))
        left, right = (jnp.clip(jnp.round((z + s * half) * width), 0, width) for s in (-1, 1))
        box = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        share = jnp.where(cuts, 1 - jnp.mean(box), share)
        blended = share * x + (1 - share) * other
        return jnp.where(cuts, jnp.where(box[..., None], other, x), blended), share

    return jax.vmap(one)(keys, x, other)


def erase(keys, x, probability, area=(0.02, 1 / 3), ratio=0.3):
    """A box of normal noise in some pictures [B, H, W, C] (Zhong et al. 2020, algorithm 1; timm's mode "pixel").

    Its part of the area is uniform in `area`, its height / width log-uniform in [ratio, 1 / ratio]; what does not fit
    is as large as the picture allows.
    """
    height, width = x.shape[1:3]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)

    def one(key, x):
        draws, noise = jax.random.split(key)
        u = jax.random.uniform(draws, (5,))
        pixels = (area[0] + u[0] * (area[1] - area[0])) * height * width
        shape = jnp.exp(jnp.log(ratio) * (1 - 2 * u[1]))
        tall = jnp.minimum(height, jnp.round(jnp.sqrt(pixels * shape)))
        wide = jnp.minimum(width, jnp.round(jnp.sqrt(pixels / shape)))
        top, left = jnp.floor(u[2] * (height - tall + 1)), jnp.floor(u[3] * (width - wide + 1))
        box = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        return jnp.where((box & (u[4] < probability))[..., None], jax.random.normal(noise, x.shape), x)

    return jax.vmap(one)(keys, x)
