"""Views of the objectives that hide patches, by paper; beside those of augment.py."""

from vision.augment import Augment


def simmim_views(size=None, **changes):
    """SimMIM (arXiv:2111.09886, section 4.1.1; its data_simmim.py): two thirds of the area or more, and a flip."""
    return Augment(size, **{"scale": (0.67, 1.0), "centre": None, **changes})


def beit_views(size=None, token_size=112, **changes):
    """BEiT (arXiv:2106.08254, appendix; its datasets.py): one crop at two sizes, of the model and of its tokenizer.

    Colours are jittered by 0.4 in every picture, hue left alone; the crop is bicubic for the model. The tokenizer's
    pixels are in [-1, 1] here; in [0.1, 0.9] for DALL-E's own weights.
    """
    recipe = {"jitter": 1.0, "strength": (0.4, 0.4, 0.4, 0.0), "filter": "bicubic", "centre": None, **changes}
    return (((Augment(size, **recipe), Augment(token_size, **recipe)), 1),)


def i_jepa_views(size=None, **changes):
    """I-JEPA (arXiv:2301.08243; its in1k_vith14_ep300.yaml): three tenths of the area or more, nothing else."""
    return Augment(size, **{"scale": (0.3, 1.0), "flip": 0.0, "centre": None, **changes})
