"""Small towers and batches of pairs for the tests."""

import dataclasses

import numpy as np

from multimodal.captioners import cappa_text, coca_text, single_stream
from multimodal.objectives import CLIP, NLVR, SILC, CapPa, CoCa, Magma, SigLIP, SILCSigmoid, SimVLM, UnifiedVLP, ViLT
from multimodal.towers import clip_text, clip_vit, siglip_text
from t5like.models import gpt
from t5like.tokenizers import ByteTokenizer
from tests.vision import tiny
from vision.augment import Augment
from vision.vit import vit

LENGTH, VOCAB = 8, 259
TOWER = {"d_model": 16, "heads": 2, "d_ff": 32, "layers": 2}


def clip(**changes):
    fields = {
        "encoder": clip_vit("tiny", tiny.SIZE, 4, **TOWER),
        "text": clip_text("tiny", None, LENGTH, **TOWER),
        "tokenizer": ByteTokenizer(extra_ids=0),
        "augment": tiny.views(),
        "host_image_size": tiny.HOST_SIZE,
        "width": 16,
    }
    return CLIP(**fields | changes)


def siglip(**changes):
    encoder = vit("tiny", tiny.SIZE, 4, **TOWER, positions="learned", class_token=False, pool="mean", activation="gelu")
    fields = {
        "encoder": encoder,
        "text": siglip_text("tiny", None, LENGTH, **TOWER),
        "tokenizer": ByteTokenizer(extra_ids=0),
        "augment": tiny.views(),
        "host_image_size": tiny.HOST_SIZE,
        "width": 16,
        "image_pool": "map",
        "image_projection": "none",
        "text_projection": "affine",
    }
    return SigLIP(**fields | changes)


CROPS = {"augment": ((tiny.views(), 2), (Augment(8, scale=(0.2, 0.5)), 2))}
DISTILLED = CROPS | {"prototypes": 8, "hidden": 16, "bottleneck": 16, "teacher_temperature": 0.2}


def silc(**changes):
    own = clip()
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    return SILC(**fields | DISTILLED | changes)


def silc_sigmoid(**changes):
    own = siglip()
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    return SILCSigmoid(**fields | DISTILLED | changes)


def _shared(**changes):
    fields = {"tokenizer": ByteTokenizer(extra_ids=0), "augment": tiny.views(), "host_image_size": tiny.HOST_SIZE}
    return fields | changes


def coca(**changes):
    encoder = vit("tiny", tiny.SIZE, 4, **TOWER, class_token=False, pool="mean")
    text = coca_text("tiny", None, LENGTH - 1, **TOWER | {"layers": 1, "multimodal_layers": 1})
    return CoCa(**_shared(encoder=encoder, text=text, width=16, queries=3) | changes)


def open_coca(**changes):
    """With open_clip's settings: one pooler, a class token, attention to the picture as layers of their own."""
    text = coca_text("tiny", None, LENGTH - 1, **TOWER | {"layers": 1, "multimodal_layers": 1, "open_clip": True})
    fields = {"encoder": clip_vit("tiny", tiny.SIZE, 4, **TOWER), "text": text, "image_pool": "one", "pool_heads": 1}
    return coca(**fields | changes)


def cappa(**changes):
    encoder = vit("tiny", tiny.SIZE, 4, **TOWER, class_token=False, pool="mean")
    return CapPa(**_shared(encoder=encoder, captioner=cappa_text("tiny", None, LENGTH - 1, **TOWER)) | changes)


def simvlm(**changes):
    encoder = single_stream("tiny", tiny.SIZE, 4, None, LENGTH - 1, **TOWER)
    return SimVLM(**_shared(encoder=encoder) | changes)


def magma(**changes):
    encoder = vit("tiny", tiny.SIZE, 4, **TOWER, class_token=False, pool="mean")
    model = gpt("tiny", None, d_model=24, heads=2, d_ff=40, layers=2)
    return Magma(**_shared(encoder=encoder, model=model, length=LENGTH) | changes)


def unified_vlp(**changes):
    encoder = single_stream("tiny", tiny.SIZE, 4, None, LENGTH - 1, **TOWER, mask_token=True)
    return UnifiedVLP(**_shared(encoder=encoder) | changes)


def vilt(**changes):
    encoder = single_stream("tiny", tiny.SIZE, 4, None, LENGTH, **TOWER, mask_token=True)
    return ViLT(**_shared(encoder=encoder) | changes)


def nlvr(**changes):
    encoder = single_stream("tiny", tiny.SIZE, 4, None, LENGTH, **TOWER)
    return NLVR(**_shared(encoder=encoder) | changes)


def two_pictures(size=8, masked=0, pictures=2):
    """`batch_of` for NLVR: pictures with the next one's beside them, or alone, true or not."""
    make = captions_of(size, masked)

    def told(step):
        batch, draw = make(step), np.random.default_rng(step)
        more = {"second": np.roll(batch["image"], 1, 0), "second_aspect": np.roll(batch["aspect"], 1)}
        return {**batch, **(more if pictures == 2 else {}), "label": draw.integers(0, 2, size).astype(np.int32)}

    return told


def captions_of(size=8, masked=0):
    """`batch_of` for objectives that write captions: each row begins with the start id."""
    make = batch_of(size, masked)

    def captions(step):
        batch = make(step)
        batch["tokens"][:, 0] = 0
        return batch

    return captions


def batch_of(size=8, masked=0):
    """step -> the numpy batch of that step, its last `masked` rows being padding."""
    pictures = tiny.batch_of(size)

    def make(step):
        draw = np.random.default_rng(100 + step)
        tokens = draw.integers(3, VOCAB, (size, LENGTH)).astype(np.int32)
        ends = draw.integers(1, LENGTH, size)
        tokens[np.arange(LENGTH) == ends[:, None]] = 1
        tokens[np.arange(LENGTH) > ends[:, None]] = 0
        batch = {**pictures(step), "tokens": tokens, "cut": np.float32(ends == LENGTH - 1)}
        batch["mask"][size - masked :] = 0
        return batch

    return make
