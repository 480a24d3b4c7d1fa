"""data2vec's images: BEiT's ViT under another name, as it was pre-trained and as it was fine-tuned.

Pre-trained files norm all tokens, as any ViT here (pool="class" or "mean"). Fine-tuned ones have a table of relative
positions for each layer, and norm the mean of the patches: pool="mean_norm". Classifiers are left aside.
"""

from paradigm.hf import Family, norm, plain
from vision.hf.beit import INDEX, IRRELEVANT, MEANING, beit_entries, beit_leaves, beit_vit
from vision.hf.vit import image_inputs
from vision.vit import ViT


def _modules(config, tensors):
    del tensors
    return {"encoder": beit_vit(config, pool="mean_norm" if config.get("use_mean_pooling", True) else "class")}


def _config(modules):
    return {
        "architectures": ["Data2VecVisionModel"],
        "model_type": "data2vec-vision",
        **beit_entries(modules["encoder"]),
        "use_mean_pooling": modules["encoder"].pool == "mean_norm",
    }


def _leaves(modules):
    vit = modules["encoder"]
    pooled = vit.pool == "mean_norm"
    last = norm("pooler.layernorm", "encoder/norm") if pooled else norm("layernorm", "encoder/blocks/norm")
    return [*beit_leaves(vit), *plain(last)]


def _is_one(vit):
    return vit.class_token and (vit.grid_bias != "none" or vit.pool == "mean_norm")


DATA2VEC = Family(
    "data2vec",
    "data2vec-vision",
    kinds={"encoder": ViT},
    when=lambda modules: _is_one(modules["encoder"]),
    modules=_modules,
    config=_config,
    leaves=_leaves,
    inputs=lambda modules: {"encoder": image_inputs(modules["encoder"])},
    meaning=MEANING,
    ignored=rf"{INDEX}|classifier\..*",
    rename=lambda name: name.removeprefix("data2vec_vision."),
    irrelevant=IRRELEVANT,
    heads=True,
)
