"""I-JEPA's encoder: a ViT without a class token, its positions learned in the library and often the fixed ones."""

from paradigm.hf import Family, Leaf, Patches, Table, norm, plain
from vision.hf.vit import POOL, blocks, image_inputs, vit_config, vit_model
from vision.vit import ViT


def _leaves(modules):
    vit = modules["encoder"]
    return [
        Leaf("embeddings.position_embeddings", ("encoder/positions/embedding",), Table(1)),
        Leaf("embeddings.patch_embeddings.projection.weight", ("encoder/embed/kernel",), Patches(vit.patch)),
        Leaf("embeddings.patch_embeddings.projection.bias", ("encoder/embed/bias",)),
        *blocks(vit, vit.layers, "encoder.layer", "encoder/blocks"),
        *plain(norm("layernorm", "encoder/blocks/norm")),
    ]


IJEPA_FAMILY = Family(
    "I-JEPA",
    "ijepa",
    kinds={"encoder": ViT},
    modules=lambda config, tensors: {"encoder": vit_model(config, "learned").clone(class_token=False, pool="mean")},
    config=lambda modules: vit_config(modules) | {"architectures": ["IJepaModel"], "model_type": "ijepa"},
    when=lambda modules: not modules["encoder"].class_token and modules["encoder"].positions == "learned",
    leaves=_leaves,
    inputs=lambda modules: {"encoder": image_inputs(modules["encoder"])},
    meaning=POOL,
    ignored=r"(ijepa\.)?pooler\..*|classifier\..*|embeddings\.mask_token",
    rename=lambda name: name.removeprefix("ijepa."),
    irrelevant=("pooler_act", "pooler_output_size", "use_mask_token"),
    heads=True,
)
