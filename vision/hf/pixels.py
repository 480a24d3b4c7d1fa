"""How the transformers library is to show a model the pictures that it was trained on: preprocessor_config.json.

It is the plain view (see Augment); `paradigm.hf.moments` reads of it by what pictures are normalised.
"""

import json

import numpy as np

from paradigm.errors import UserError
from paradigm.storage import expand

FILE = "preprocessor_config.json"
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def moments(view, channels):
    """{"mean", "std"} of an Augment as JSON has them."""
    found = (np.asarray(x, np.float32) for x in view.moments(channels))  # what stands for () too
    given = ([float(str(x)) for x in row] for row in found)  # 0.485 and not 0.48500001
    return {name: list(getattr(view, name)) or row for name, row in zip(("mean", "std"), given)}


def writer(path, view, channels, whole=False):
    """A function without arguments that writes it into a directory.

    view: an Augment. channels: of a picture. whole: whether pictures are read whole, resized to a square.

    Raises:
        UserError: it is there already.
    """
    file, size = expand(path) / FILE, {"height": view.size, "width": view.size}
    if file.exists():
        raise UserError(f"{file} exists and is not written over: choose another directory")
    found = moments(view, channels)
    said = {
        "image_processor_type": "SiglipImageProcessor" if whole else "CLIPImageProcessor",
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "do_convert_rgb": channels == 3,
        "do_center_crop": not whole,
        "rescale_factor": 1 / 255,
        "resample": 3 if whole else _RESAMPLE[view.filter],
        "size": size if whole else {"shortest_edge": round(view.size / view.centre)},
        **({} if whole else {"crop_size": size}),
        "image_mean": found["mean"],
        "image_std": found["std"],
    }
    return lambda: file.write_text(json.dumps(said, indent=2) + "\n")
