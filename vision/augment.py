"""Augmentation on the device, inside the jitted step: each example's view is a function of its own key.

    view = simclr_views(224)(image, aspect, keys)    # uint8 [B, S, S, C] -> float32 [B, 224, 224, C]

The host resizes every picture to a square and tells its true aspect, so a crop that is drawn in the picture's own
geometry is a box in relative coordinates, and cropping, resizing and flipping are one product Wy @ image @ Wx^T with
two small matrices for each example. Blur is another such product. Colours follow torchvision (PIL), the pieces of
which are blends with a grey picture in a random order; nothing is rounded to 8 bits on the way.

Recipes are named by paper at the end. Of dm_pix only hue would fit: its blur becomes a convolution of B groups under
vmap (on a CPU 13 ms for 128 views of 32 x 32, against 0.6), its contrast is TensorFlow's, and it does not resize.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.errors import UserError, choose
from paradigm.partition import constrain_rows
from vision.rand_augment import RandAugment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, by channel
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as in PIL
ATTEMPTS = 10  # torchvision's, to draw a crop that fits
PIXELS = jax.lax.Precision.HIGH  # an accelerator's default precision would lose the last of a pixel's 8 bits


@dataclasses.dataclass(frozen=True)
class Augment:
    """A random view, and the plain one.

    size: pixels a side of every view; None: those that the objective's encoder reads (see `sized`).
    crop: `random`, a part of `scale` of the area and of a `ratio` width / height, or `centre`, the plain view's part.
    centre: the plain view resizes the short side to size / centre and cuts the middle out; None is 1, and 0.875 for
        views above 96 pixels.
    flip, jitter, grey, blur, solarise: their probabilities.
    strength: of the jitter's brightness, contrast, saturation and hue, whose factors are drawn from
        [max(0, 1 - s), 1 + s], hue's shift from [-s, s] of a turn. Pictures of one channel have no saturation, no hue.
    grey_first: greyscale before the jitter and not after it.
    sigma: the range of the blur's standard deviation, in pixels of the view.
    rand: a RandAugment of what was cropped and mirrored, before its colours; None for none.
    filter: bilinear (a triangle) or bicubic, both antialiased.
    mean, std: by channel; () is ImageNet's for three channels and 0.5 otherwise.

    Raises UserError when a setting is out of its range.
    """

    size: int | None = None
    crop: str = "random"
    scale: tuple = (0.08, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)
    centre: float | None = 0.875
    flip: float = 0.5
    jitter: float = 0.0
    strength: tuple = (0.0, 0.0, 0.0, 0.0)
    grey: float = 0.0
    grey_first: bool = False
    blur: float = 0.0
    sigma: tuple = (0.1, 2.0)
    solarise: float = 0.0
    rand: RandAugment | None = None
    filter: str = "bilinear"
    mean: tuple = ()
    std: tuple = ()

    def __post_init__(self):
        if self.centre is None and self.size is not None:
            object.__setattr__(self, "centre", 0.875 if self.size > 96 else 1.0)
        choose("Augment.filter", self.filter, FILTERS)
        choose("Augment.crop", self.crop, dict.fromkeys(("random", "centre")))
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"Augment.{name}={getattr(self, name)} is a probability: choose it from 0 to 1")
        for name in ("scale", "ratio", "sigma"):
            a, b = getattr(self, name)
            if not 0 < a <= b:
                raise UserError(f"Augment.{name}={(a, b)} must be two rising positive numbers")
        if self.scale[1] > 1 or self.centre is not None and not 0 < self.centre <= 1:
            raise UserError(f"Augment.scale={self.scale} and Augment.centre={self.centre} are parts of a picture: <= 1")
        if len(self.strength) != 4 or min(self.strength) < 0 or self.strength[3] > 0.5:
            raise UserError(f"Augment.strength={self.strength} must be 4 numbers >= 0, the last, of hue, at most 0.5")

    def sized(self, size):
        """The same, of `size` pixels where it has no size of its own."""
        return self if self.size is not None else dataclasses.replace(self, size=size)

    def _side(self):
        if self.size is None:
            raise UserError("Augment.size is not set: an objective gives it its encoder's image_size, elsewhere set it")
        return self.size

    def __call__(self, image, aspect, keys):
        """A random view of each picture.

        Args:
            image: uint8 [B, S, S, C], resized to a square.
            aspect: float32 [B], width / height before that.
            keys: typed PRNG keys [B].

        Returns:
            float32 [B, size, size, C], normalised.
        """
        size = self._side()
        draws = jax.vmap(lambda key: jax.random.uniform(key, (DRAWS,)))(keys).T  # one call, one row a decision
        taken = 0

        def take(n):  # [n, B]
            nonlocal taken
            taken += n
            return draws[taken - n : taken]

        happens = lambda probability: take(1)[0] < probability
        between = lambda low, high: low + (high - low) * take(1)[0]

        sizes, place = take(2 * ATTEMPTS).reshape(2, ATTEMPTS, -1), take(2)
        box = (
            random_box(sizes, place, aspect, self.scale, self.ratio) if self.crop == "random" else self._middle(aspect)
        )
        x = resample(image, box, size, self.filter, happens(self.flip))

        colour = x.shape[1] == 3
        if self.rand is not None:
            if not colour:
                raise UserError(
                    f"Augment.rand is for pictures of 3 channels, and these have {x.shape[1]}: leave it out"
                )
            x = self.rand(x, keys)
        shift = happens(self.jitter)
        factors = [between(max(0.0, 1.0 - s), 1.0 + s) for s in self.strength[:3]]
        turn = between(-self.strength[3], self.strength[3])
        factors = [jnp.where(shift, f, 1.0) for f in factors]
        order = jnp.argsort(jnp.argsort(take(4), axis=0), axis=0)  # [4, B]: when each of them happens
        to_grey = happens(self.grey)
        if colour and self.grey and self.grey_first:
            x = where(to_grey, luma(x), x)
        if self.jitter:
            x = jitter(x, factors, jnp.where(shift, turn, 0.0), order, hue=colour and self.strength[3] > 0)
        if colour and self.grey and not self.grey_first:
            x = where(to_grey, luma(x), x)

        blurs, sigma = happens(self.blur), between(*self.sigma)
        if self.blur:
            x = blur(x, jnp.where(blurs, sigma, 0.0))
        if self.solarise:
            x = where(happens(self.solarise), solarise(x), x)
        return self._normalised(x)

    def plain(self, image, aspect):
        """The evaluation's view, float32 [B, size, size, C]: the short side to size / centre, then the middle."""
        size = self._side()
        return self._normalised(resample(image, self._middle(aspect), size, self.filter))

    def undo(self, x):
        """Pixels in [0, 1] of normalised views [..., C]."""
        mean, std = self.moments(x.shape[-1])
        return x * std + mean

    def _middle(self, aspect):
        """The box of a centred square of `centre` times the short side."""
        return _centred(self.centre * jnp.minimum(1.0, 1.0 / aspect), self.centre * jnp.minimum(1.0, aspect))

    def _normalised(self, x):
        mean, std = self.moments(x.shape[1])
        return constrain_rows((jnp.moveaxis(x, 1, -1) - mean) / std)

    def moments(self, channels):
        """(mean, deviation) [C] by which pictures of so many channels are normalised. Raises UserError."""
        mean, std = self.mean, self.std
        if not mean:
            mean, std = (MEAN, STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        if len(mean) != channels or len(std) != channels:
            raise UserError(
                f"Augment.mean={mean} and Augment.std={std} are not for pictures of {channels} channels: "
                f"give {channels} numbers each, or () for the default"
            )
        return jnp.array(mean), jnp.array(std)


DRAWS = 2 * ATTEMPTS + 17  # uniform numbers that a view takes


def where(chosen, x, y):
    """x for the examples chosen [B], y for the others; [B, ...]."""
    return jnp.where(chosen.reshape(-1, *(1,) * (y.ndim - 1)), x, y)


# ---- Geometry --------------------------------------------------------------------------------------------------------


def random_box(sizes, place, aspect, scale, ratio):
    """(left, top, width, height), each [B], relative to the picture: torchvision's RandomResizedCrop, unrounded.

    A part of the area, uniform over `scale`, and a ratio width / height, log-uniform over `ratio`, are drawn ten times;
    the first crop that fits is taken, and none fitting, the largest centred one within the range of ratios.

    Args:
        sizes: uniform [2, attempts, B]. place: uniform [2, B].
    """
    area = scale[0] + (scale[1] - scale[0]) * sizes[0]  # [attempts, B]
    low, high = jnp.log(jnp.array(ratio))
    shape = jnp.exp(low + (high - low) * sizes[1]) / aspect  # width / height in relative coordinates
    width, height = jnp.sqrt(area * shape), jnp.sqrt(area / shape)
    fits = (width <= 1) & (height <= 1)
    first = jnp.argmax(fits, axis=0)
    chosen = lambda x: jnp.take_along_axis(x, first[None], axis=0)[0]
    width, height = chosen(width), chosen(height)
    drawn = place[0] * (1 - width), place[1] * (1 - height), width, height
    middle = _centred(jnp.minimum(1.0, ratio[1] / aspect), jnp.minimum(1.0, aspect / ratio[0]))
    return tuple(jnp.where(fits.any(0), x, y) for x, y in zip(drawn, middle))


def _centred(width, height):
    return (1 - width) / 2, (1 - height) / 2, width, height


def _cubic(x):
    """Keys's cubic convolution with a = -0.5, as in PIL; x >= 0."""
    return jnp.where(x < 1, (1.5 * x - 2.5) * x * x + 1, jnp.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0))


FILTERS = {"bilinear": lambda x: jnp.maximum(0.0, 1 - x), "bicubic": _cubic}


def resample(image, box, size, filter="bilinear", flip=None):
    """Each picture's box, resized to a square with antialiasing: what PIL does with the crop, for whole pixels.

    Args:
        image: uint8 [B, S, S, C]. box: left, top, width, height, each [B], relative.
        flip: bool [B], which to mirror; None is none.

    Returns:
        float32 [B, C, size, size] in [0, 1]: planes, which is how the rest computes.
    """
    left, top, width, height = box
    x = jnp.moveaxis(image, -1, 1).astype(jnp.float32)  # [B, C, S, S]
    down = _weights(top, height, image.shape[1], size, filter)
    across = _weights(left, width, image.shape[2], size, filter)
    if flip is not None:
        across = where(flip, across[:, ::-1], across)
    x = _both_sides(down, x, across) / 255.0
    return jnp.clip(x, 0.0, 1.0) if filter == "bicubic" else x


def _weights(start, length, pixels, size, filter):
    """[B, size, pixels]: rows that sum to 1. A pixel that the box cuts counts by its part inside the box."""
    start, length = start[:, None, None] * pixels, length[:, None, None] * pixels
    step = length / size  # pixels of the picture for one of the view
    centre = start + (jnp.arange(size)[:, None] + 0.5) * step
    at = jnp.arange(pixels)
    inside = jnp.clip(jnp.minimum(at + 1, start + length) - jnp.maximum(at, start), 0.0, 1.0)
    weight = FILTERS[filter](jnp.abs(at + 0.5 - centre) / jnp.maximum(step, 1.0)) * inside
    return weight / weight.sum(-1, keepdims=True)


def _both_sides(left_BxYxS, x_BxCxSxT, right_BxXxT):
    """left @ x @ right^T for each example: [B, C, Y, X]."""
    x_BxYxCxT = jnp.einsum("bys,bcst->bcyt", left_BxYxS, x_BxCxSxT, precision=PIXELS)
    return jnp.einsum("bcyt,bxt->bcyx", x_BxYxCxT, right_BxXxT, precision=PIXELS)


def blur(x, sigma):
    """Gaussian blur of planes [B, C, H, W] by sigma [B] pixels, 0 for none.

    The kernel ends at the border, and is rescaled there; SimCLR's also ends at a twentieth of the side, which at 224
    pixels is 5.5 deviations or more.
    """

    def kernel(size):
        at = jnp.arange(size, dtype=jnp.float32)
        weight = jnp.exp(-0.5 * jnp.square((at[:, None] - at) / jnp.maximum(sigma, 0.05)[:, None, None]))
        return weight / weight.sum(-1, keepdims=True)

    return _both_sides(kernel(x.shape[2]), x, kernel(x.shape[3]))


# ---- Colour, on planes [B, C, H, W] in [0, 1] ------------------------------------------------------------------------


def luma(x):
    """The grey picture of one of three channels, [B, 1, H, W]; one of one channel is its own."""
    return sum(w * x[:, i : i + 1] for i, w in enumerate(GREY)) if x.shape[1] == 3 else x


def jitter(x, factors, turn, order, hue=True):
    """Brightness, contrast, saturation and hue, clipped after each, in each example's own order (torchvision).

    Brightness blends with black, contrast with the picture's mean grey, saturation with its grey picture: the share of
    the picture is the factor, the rest is the other's.

    Args:
        factors: brightness, contrast and saturation, [B] each. turn: of the hue, [B], in turns.
        order: int [4, B], when each of the four happens.
        hue: False leaves hue out (it would change nothing).
    """
    for now in range(4):
        brightness, contrast, saturation, turning = ((at == now).reshape(-1, 1, 1, 1) for at in order)
        factor = sum(jnp.where(order[i] == now, f, 0.0) for i, f in enumerate(factors))
        factor = jnp.where(turning, 1.0, factor.reshape(-1, 1, 1, 1))
        grey = luma(x)
        other = jnp.where(saturation, grey, jnp.where(contrast, grey.mean((1, 2, 3), keepdims=True), 0.0))
        moved = jnp.clip(factor * x + (1.0 - factor) * other, 0.0, 1.0)
        x = jnp.where(turning, turn_hue(x, turn), moved) if hue else moved
    return x


def turn_hue(x, turn):
    """The hue of HSV turned by `turn` [B] turns, [B, 3, H, W]; value and saturation stay."""
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    by = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    sixth = jnp.where(value == green, (blue - red) * by + 2, (red - green) * by + 4)
    sixth = jnp.where(value == red, (green - blue) * by, sixth) + 6 * turn[:, None, None]

    def channel(n):
        k = sixth + n
        k = k - 6 * jnp.floor(k / 6)  # jnp.mod would call fmod for each pixel
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=1)


def solarise(x):
    """Pixels from the middle value on inverted (PIL's ImageOps.solarize at 128)."""
    return jnp.where(x < 128 / 255, x, 1.0 - x)


# ---- Recipes ---------------------------------------------------------------------------------------------------------


def no_views(size=None, **changes):
    """The plain view, always."""
    return Augment(size, **{"crop": "centre", "flip": 0.0, "centre": None, **changes})


def mae_views(size=None, **changes):
    """MAE (arXiv:2111.06377, appendix A.1; its main_pretrain.py): a fifth of the area or more, bicubic, and a flip."""
    return Augment(size, **{"scale": (0.2, 1.0), "filter": "bicubic", "centre": None, **changes})


def simclr_views(size=None, strength=1.0, blur=0.5, **changes):
    """SimCLR (arXiv:2002.05709, appendix A): crop, flip, colours at `strength` in 0.8 of views, grey in 0.2, blur.

    On CIFAR the paper has strength=0.5 and blur=0 (appendix B.9). Contrast and saturation are torchvision's blends,
    where the official code has tf.image's (contrast about each channel's mean, saturation in HSV).
    """
    jitter = tuple(strength * s for s in (0.8, 0.8, 0.8, 0.2))
    recipe = {"jitter": 0.8, "strength": jitter, "grey": 0.2, "blur": blur, "filter": "bicubic"}
    return Augment(size, **{**recipe, "centre": None, **changes})


def moco_v1_views(size=None, **changes):
    """MoCo (arXiv:1911.05722, section 3.3; its main_moco.py): crop, grey in 0.2 of views, then all of them jittered."""
    recipe = {"scale": (0.2, 1.0), "grey": 0.2, "grey_first": True, "jitter": 1.0, "strength": (0.4, 0.4, 0.4, 0.4)}
    return Augment(size, **{**recipe, "centre": None, **changes})


def moco_v2_views(size=None, blur=0.5, **changes):
    """MoCo v2 (arXiv:2003.04297, section 3; its main_moco.py --aug-plus): SimCLR's with weaker colours, and blur."""
    recipe = {"scale": (0.2, 1.0), "jitter": 0.8, "strength": (0.4, 0.4, 0.4, 0.1), "grey": 0.2, "blur": blur}
    return Augment(size, **{**recipe, "centre": None, **changes})


def moco_v3_views(size=None, scale=(0.08, 1.0), blur=(1.0, 0.1), solarise=(0.0, 0.2), **changes):
    """MoCo v3 (arXiv:2104.02057; its main_moco.py): a pair after BYOL, which differ in blur and solarisation.

    The official runs crop from 0.08 of the area on with a ViT, from 0.2 on with a ResNet.
    """
    recipe = {"scale": scale, "jitter": 0.8, "strength": (0.4, 0.4, 0.2, 0.1), "grey": 0.2, "centre": None}
    return tuple(Augment(size, **{**recipe, "blur": b, "solarise": s, **changes}) for b, s in zip(blur, solarise))


def byol_views(size=None, **changes):
    """BYOL (arXiv:2006.07733, appendix B), and Barlow Twins and VICReg by their main.py: the pair of MoCo v3, bicubic.

    The first view is always blurred and never solarised, the second blurred in 0.1 and solarised in 0.2 of cases.
    """
    return moco_v3_views(size, **{"filter": "bicubic", **changes})


def dino_views(size=None, local_size=96, local=8, scale=(0.4, 1.0), local_scale=(0.05, 0.4), blur=(1.0, 0.1, 0.5),
               solarise=(0.0, 0.2), **changes):  # fmt: skip
    """DINO (arXiv:2104.14294; its main_dino.py): two large crops as BYOL's, and `local` small ones, blurred in half.

    iBOT has the same; with ViTs its and DINO's best runs have ten small crops, and scales that meet at 0.25 to 0.32.
    DINOv2's meet at 0.32. local=0 leaves the small ones out.
    """
    large = byol_views(size, scale=scale, blur=blur[:2], solarise=solarise, **changes)
    if not local:
        return large
    how = {"scale": local_scale, "jitter": 0.8, "strength": (0.4, 0.4, 0.2, 0.1), "grey": 0.2, "filter": "bicubic"}
    return (*large, (Augment(local_size, **{**how, "blur": blur[2], "centre": None, **changes}), local))


def swav_views(size=None, local_size=96, local=6, scale=(0.14, 1.0), local_scale=(0.05, 0.14), blur=0.5, **changes):
    """SwAV (arXiv:2006.09882; its multicropdataset.py): two large crops and six small, SimCLR's colours, bilinear."""
    recipe = {"jitter": 0.8, "strength": (0.8, 0.8, 0.8, 0.2), "grey": 0.2, "blur": blur, "centre": None, **changes}
    large = (Augment(size, scale=scale, **recipe), 2)
    return (large, (Augment(local_size, scale=local_scale, **recipe), local)) if local else (large,)
