"""ViT (DINO too), ViT-MAE, BEiT, data2vec, DINOv2 and I-JEPA, as the transformers library writes them.

    modules, params = hf.read("vit-mae-base")
    pooled, intermediates = modules["encoder"].apply({"params": params["encoder"]}, images)
    hf.write("exported", modules, params)

The library's poolers and classifiers, which no encoder of ours has, are left aside.
"""

import functools

from paradigm import hf
from paradigm.capabilities import ImageFeatures, parts
from vision.hf import pixels
from vision.hf.beit import BEIT
from vision.hf.data2vec import DATA2VEC
from vision.hf.dinov2 import DINOV2, DINOV2_REGISTERS
from vision.hf.ijepa import IJEPA_FAMILY
from vision.hf.mae import MAE_FAMILY
from vision.hf.vit import VIT
from vision.objectives.beit import BEiT
from vision.objectives.mae import MAE

FAMILIES = (VIT, MAE_FAMILY, BEIT, DINOV2, DINOV2_REGISTERS, IJEPA_FAMILY, DATA2VEC)
read = functools.partial(hf.read, families=FAMILIES)
write = functools.partial(hf.write, families=FAMILIES)


def write_objective(path, objective, params):
    """Writes the encoder of an objective, the decoder of MAE and BEiT, and how pictures are read; as
    `paradigm.hf.write`."""
    seen = next(part.objective for part in parts(objective) if isinstance(part.objective, ImageFeatures))
    write_pixels = pixels.writer(path, seen.views[0], seen.encoder.channels)
    # SimMIM's, MaskFeat's and data2vec's decoder is the same module as BEiT's, and predicts no tokens: it stays behind.
    families = FAMILIES if isinstance(seen, BEiT) else tuple(family for family in FAMILIES if family is not BEIT)
    entries = {"families": families}
    if isinstance(seen, MAE):
        entries |= {"mask_ratio": seen.mask_ratio, "norm_pix_loss": seen.norm_pixels}
    left = write(path, {name: module for name, (module, _) in objective.modules().items()}, params, **entries)
    write_pixels()
    return left


def texts_end(objective):
    """None: no tokenizer goes along."""
    del objective
    return None
