"""SigLIP: a ViT pooled by attention, and a text tower that sees all and is pooled at the last place."""

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
from multimodal.towers import Head, TextTower
from paradigm.errors import UserError
from paradigm.hf import Family, Kernel, Leaf, Table, Vector, dense, norm, plain
from vision.vit import ViT

_BOTH = {"hidden_act": "gelu_pytorch_tanh", "eps": 1e-6, "hidden_size": 768, "intermediate_size": 3072, "heads": 12}
_TEXT = _BOTH | {"vocab_size": 32000, "length": 64}
_IMAGE = _BOTH | {"patch": 16}


def _modules(config, tensors):
    del tensors
    image, text = config.part("vision_config", SIDE_IRRELEVANT), config.part("text_config", SIDE_IRRELEVANT)
    if not image.get("vision_use_head", True):
        raise UserError("a SigLIP with vision_use_head=False has no shared space: read one with its attention pooling")
    encoder = ViT(**image_fields(image, _IMAGE), class_token=False, pool="mean")
    fields = text_fields(text, _TEXT)
    width = text.get("projection_size", fields["d_model"])
    return {
        "encoder": encoder,
        "image_head": Head(width, "none", encoder),
        "text": TextTower(**fields, causal=False, pool="last"),
        "text_head": Head(width, "affine"),
    }


def _config(modules):
    both = sides(modules, "siglip")
    both["text_config"]["projection_size"] = modules["text_head"].width
    both["vision_config"]["vision_use_head"] = True
    return {"architectures": ["SiglipModel"], "model_type": "siglip", **both}


def _leaves(modules):
    pool, head = "image_head/pool", "vision_model.head"
    packed = [tuple(f"{pool}/attention/{n}/{kind}" for n in ("query", "key", "value")) for kind in ("kernel", "bias")]
    return [
        *towers(modules),
        Leaf("logit_scale", ("log_scale",), Vector),
        Leaf("logit_bias", ("bias",), Vector),
        Leaf("vision_model.embeddings.patch_embedding.bias", ("encoder/embed/bias",), Vector),
        Leaf("vision_model.embeddings.position_embedding.weight", ("encoder/positions/embedding",)),
        Leaf(f"{head}.probe", (f"{pool}/probe",), Table()),
        Leaf(f"{head}.attention.in_proj_weight", packed[0], Kernel(1)),
        Leaf(f"{head}.attention.in_proj_bias", packed[1], Vector),
        *plain(dense(f"{head}.attention.out_proj", f"{pool}/attention/out", 2)),
        *plain(norm(f"{head}.layernorm", f"{pool}/norm")),
        *plain(dense(f"{head}.mlp.fc1", f"{pool}/mlp/up")),
        *plain(dense(f"{head}.mlp.fc2", f"{pool}/mlp/down")),
        *plain(dense("text_model.head", "text_head/project")),
    ]


SIGLIP = Family(
    "SigLIP",
    "siglip",
    kinds={"encoder": ViT, "image_head": Head, "text": TextTower, "text_head": Head},
    modules=_modules,
    config=_config,
    leaves=_leaves,
    inputs=inputs,
    when=lambda modules: modules["image_head"].tower is not None,
    free=FREE | {"encoder.pool"},  # the head pools
    meaning=MEANING,
    scalars=("log_scale", "bias"),
    ignored=IGNORED,
    irrelevant=("tie_word_embeddings",),
)
