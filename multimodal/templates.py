"""Sentences around the name of a class, by which a text tower is asked for it; {} stands for the name."""

from paradigm.errors import UserError, choose
from t5like.tokenizers.base import check_texts

# The 80 for ImageNet, and the 7 that forward selection took from them, in its order (openai/CLIP,
# notebooks/Prompt_Engineering_for_ImageNet.ipynb).
_CLIP_80 = """
a bad photo of a {}.; a photo of many {}.; a sculpture of a {}.; a photo of the hard to see {}.; a low
resolution photo of the {}.; a rendering of a {}.; graffiti of a {}.; a bad photo of the {}.; a cropped photo of
the {}.; a tattoo of a {}.; the embroidered {}.; a photo of a hard to see {}.; a bright photo of a {}.; a photo
of a clean {}.; a photo of a dirty {}.; a dark photo of the {}.; a drawing of a {}.; a photo of my {}.; the
plastic {}.; a photo of the cool {}.; a close-up photo of a {}.; a black and white photo of the {}.; a painting
of the {}.; a painting of a {}.; a pixelated photo of the {}.; a sculpture of the {}.; a bright photo of the
{}.; a cropped photo of a {}.; a plastic {}.; a photo of the dirty {}.; a jpeg corrupted photo of a {}.; a
blurry photo of the {}.; a photo of the {}.; a good photo of the {}.; a rendering of the {}.; a {} in a video
game.; a photo of one {}.; a doodle of a {}.; a close-up photo of the {}.; a photo of a {}.; the origami {}.;
the {} in a video game.; a sketch of a {}.; a doodle of the {}.; a origami {}.; a low resolution photo of a {}.;
the toy {}.; a rendition of the {}.; a photo of the clean {}.; a photo of a large {}.; a rendition of a {}.; a
photo of a nice {}.; a photo of a weird {}.; a blurry photo of a {}.; a cartoon {}.; art of a {}.; a sketch of
the {}.; a embroidered {}.; a pixelated photo of a {}.; itap of the {}.; a jpeg corrupted photo of the {}.; a
good photo of a {}.; a plushie {}.; a photo of the nice {}.; a photo of the small {}.; a photo of the weird {}.;
the cartoon {}.; art of the {}.; a drawing of the {}.; a photo of the large {}.; a black and white photo of a
{}.; the plushie {}.; a dark photo of a {}.; itap of a {}.; graffiti of the {}.; a toy {}.; itap of my {}.; a
photo of a cool {}.; a photo of a small {}.; a tattoo of the {}.
"""
_CLIP_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
TEMPLATES = {
    "plain": ("{}",),
    "a": ("a {}",),
    "photo": ("a photo of a {}.",),
    "clip_7": _CLIP_7,
    "clip_80": tuple(" ".join(_CLIP_80.split()).split("; ")),
    "shapes": ("a {}", "a picture of a {}", "a large {}", "a medium {}", "a picture of a large {}"),
}


def templates(wanted):
    """The sentences of some names in TEMPLATES and sentences with a {} in them, each once.

    Raises UserError for a name that is none of those (the nearest is told), or a sentence with several {}.
    """
    found = []
    for one in check_texts("templates", [wanted] if isinstance(wanted, str) else wanted):
        if one.count("{}") > 1:
            raise UserError(f"the template {one!r} has several {{}}: the name of a class stands in one place")
        found += [one] if "{}" in one else choose("template", one, TEMPLATES)
    if not found:
        raise UserError(f"no templates are named: choose from {', '.join(TEMPLATES)}, or write sentences with {{}}")
    return tuple(dict.fromkeys(found))
