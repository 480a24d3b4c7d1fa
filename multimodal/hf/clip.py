"""CLIP: a ClipViT, a causal text tower, and a linear head for each."""

import dataclasses

import numpy as np

from multimodal.hf.common import (
    FREE,
    IGNORED,
    MEANING,
    SIDE_IRRELEVANT,
    image_fields,
    inputs,
    sides,
    text_fields,
    towers,
)
from multimodal.towers import ClipViT, Head, TextTower
from paradigm.errors import UserError
from paradigm.hf import Family, Leaf, Vector, dense, norm, plain

_BOTH = {"hidden_act": "quick_gelu", "eps": 1e-5}
_TEXT = _BOTH | {"hidden_size": 512, "intermediate_size": 2048, "heads": 8, "vocab_size": 49408, "length": 77}
_IMAGE = _BOTH | {"hidden_size": 768, "intermediate_size": 3072, "heads": 12, "patch": 32}


@dataclasses.dataclass(frozen=True)
class PatchPositions:
    """Positions and the patches' bias: CLIP has none, so in the file ours is part of the patches' positions, behind the
    class token's."""

    def shape(self, ours):
        return tuple(ours[0])

    def pack(self, parts):
        return np.concatenate([parts[0][:1], parts[0][1:] + parts[1]])

    def unpack(self, tensor, shapes):
        return [tensor, np.zeros(shapes[1], np.float32)]


def _side(config, name):
    """vision_config or text_config. Old files may say it again as NAME_dict, and then the library reads that alone."""
    if config.get(f"{name}_dict", None, dict) is not None:
        config.get(name, None, dict)
        name = f"{name}_dict"
    return config.part(name, SIDE_IRRELEVANT)


def _modules(config, tensors):
    del tensors
    image, text = _side(config, "vision_config"), _side(config, "text_config")
    fields, width = text_fields(text, _TEXT), config.get("projection_dim", 512)
    end = text.get("eos_token_id", 49407)
    # Old files say 2 whatever their captions end with, and the library then pools at the highest id of each.
    pool, end = ("highest", fields["vocab_size"] - 1) if end == 2 else ("end", end)
    return {
        "encoder": ClipViT(**image_fields(image, _IMAGE)),
        "image_head": Head(width),
        "text": TextTower(**fields, pool=pool, end_id=end),
        "text_head": Head(width),
    }


def _config(modules):
    text, width = modules["text"], modules["text_head"].width
    if text.pool == "end" and text.end_id == 2:
        raise UserError(
            "the transformers library takes an end id of 2 for the highest: text.end_id=2 cannot be written"
        )
    both = sides(modules, "clip")
    for side in both.values():
        side["projection_dim"] = width
    both["text_config"]["eos_token_id"] = 2 if text.pool == "highest" else text.end_id
    return {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": width, **both}


def _leaves(modules):
    place = ("encoder/positions/embedding", "encoder/embed/bias")
    return [
        *towers(modules),
        Leaf("logit_scale", ("log_scale",)),
        Leaf("vision_model.embeddings.class_embedding", ("encoder/class_token",), Vector),
        Leaf("vision_model.embeddings.position_embedding.weight", place, PatchPositions()),
        *plain(norm("vision_model.pre_layrnorm", "encoder/blocks/pre_norm")),
        *plain(dense("visual_projection", "image_head/project", bias=False)),
        *plain(dense("text_projection", "text_head/project", bias=False)),
    ]


CLIP = Family(
    "CLIP",
    "clip",
    kinds={"encoder": ClipViT, "image_head": Head, "text": TextTower, "text_head": Head},
    modules=_modules,
    config=_config,
    leaves=_leaves,
    inputs=inputs,
    free=FREE,
    meaning=MEANING,
    scalars=("log_scale",),
    ignored=IGNORED,
    irrelevant=("logit_scale_init_value", "tie_word_embeddings"),
)
