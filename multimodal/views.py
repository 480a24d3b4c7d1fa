"""How CLIP and SigLIP look at pictures."""

from typing import Any

from vision.augment import Augment

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # openai/CLIP clip.py


def clip_views(size=None, **overrides: Any):
    """A random square of 0.9 to 1 of the picture, nothing else (Radford et al. 2021, section 2.4; open_clip's scale).

    The plain view is the middle of the picture, its short side resized. overrides: any field of Augment.
    """
    fields = {"scale": (0.9, 1.0), "flip": 0.0, "centre": 1.0, "filter": "bicubic", "mean": CLIP_MEAN, "std": CLIP_STD}
    return Augment(size, **fields | overrides)


def siglip_views(size=None, **overrides: Any):
    """The picture resized, pixels from -1 to 1 (big_vision's resize and value_range). See SigLIP.ignore_aspect."""
    return Augment(
        size, **{"crop": "centre", "flip": 0.0, "centre": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3} | overrides
    )
