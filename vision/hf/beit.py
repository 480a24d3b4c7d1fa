"""BEiT as it was pre-trained: a ViT with relative positions, LayerScale and a mask token, and the head for its tokens.

The library keeps no bias of keys, which would add the same to all logits of a query: ours is zero when it is read, and
stays behind when it is written. At another size than its own the library interpolates the relative positions in another
way than ours. Fine-tuned files, which norm after pooling, are refused by name.
"""

import jax.numpy as jnp

from paradigm.hf import Family, Leaf, Patches, Table, dense, norm, plain, stacked
from paradigm.hf.leaves import Absent
from vision.hf.vit import FREE, block_rows, image_inputs, vit_entries, vit_fields
from vision.objectives.masked_images import PatchHead
from vision.vit import ViT

_TABLE = "relative_position_bias.relative_position_bias_table"


def _modules(config, tensors):
    del tensors
    switch = lambda name: config.get(name, False)
    shared, own = switch("use_shared_relative_position_bias"), switch("use_relative_position_bias")
    if shared and own:
        config.refuse("use_relative_position_bias", "they have one table for all layers or one for each, not both")
    if not switch("use_mask_token"):
        config.refuse("use_mask_token", "they have a mask token")
    scale = config.get("layer_scale_init_value", 0.1)
    vit = ViT(
        **vit_fields(config, 3),
        d_ff=config.get("intermediate_size"),
        positions="learned" if switch("use_absolute_position_embeddings") else "none",
        grid_bias="shared" if shared else "layers" if own else "none",
        layer_scale=float(scale) if scale > 0 else None,
        mask_token=True,
    )
    return {"encoder": vit, "decoder": PatchHead(config.get("vocab_size", 8192))}


def _config(modules):
    vit = modules["encoder"]
    return {
        "architectures": ["BeitForMaskedImageModeling"],
        "model_type": "beit",
        **vit_entries(vit),
        "intermediate_size": vit.d_ff,
        "use_absolute_position_embeddings": vit.positions == "learned",
        "use_shared_relative_position_bias": vit.grid_bias == "shared",
        "use_relative_position_bias": vit.grid_bias == "layers",
        "layer_scale_init_value": vit.layer_scale or 0.0,
        "use_mask_token": True,
        "vocab_size": modules["decoder"].outputs,
    }


def _leaves(modules):
    vit = modules["encoder"]
    layer, tables = "beit.encoder.layer.{}", ("encoder/relative_bias/embedding",)
    rows = [(name, paths, Absent(0.0) if paths == "attention/key/bias" else how) for name, paths, how in block_rows()]
    if vit.layer_scale is not None:
        rows += [("lambda_1", "attention_layer_scale", Table()), ("lambda_2", "mlp_layer_scale", Table())]
    leaves = [
        Leaf("beit.embeddings.cls_token", ("encoder/class_token",)),
        Leaf("beit.embeddings.mask_token", ("encoder/mask_token",)),
        Leaf("beit.embeddings.patch_embeddings.projection.weight", ("encoder/embed/kernel",), Patches(vit.patch)),
        Leaf("beit.embeddings.patch_embeddings.projection.bias", ("encoder/embed/bias",)),
        *stacked(vit.layers, layer, "encoder/blocks", rows),
        *plain([*norm("layernorm", "encoder/blocks/norm"), *dense("lm_head", "decoder/predict")]),
    ]
    if vit.positions == "learned":
        leaves.append(Leaf("beit.embeddings.position_embeddings", ("encoder/positions/embedding",), Table(1)))
    if vit.grid_bias == "shared":
        leaves.append(Leaf(f"beit.encoder.{_TABLE}", tables))
    if vit.grid_bias == "layers":
        own = f"{layer}.attention.attention.{_TABLE}"
        leaves += [Leaf(own.format(n), tables, layer=n) for n in range(vit.layers)]
    return leaves


BEIT = Family(
    "BEiT",
    "beit",
    kinds={"encoder": ViT, "decoder": PatchHead},
    when=lambda modules: modules["encoder"].mask_token,
    modules=_modules,
    config=_config,
    leaves=_leaves,
    inputs=lambda modules: {
        "encoder": image_inputs(modules["encoder"]),
        "decoder": (jnp.zeros((1, modules["encoder"].d_model)),),
    },
    free=(FREE - {"positions"}) | {"decoder.std"},
    meaning={"layer_scale": lambda m: m.layer_scale is not None},  # the number is that of a new model
    ignored=r".*relative_position_index",
    irrelevant=("_out_features", "_out_indices", "add_fpn", "auxiliary_channels", "auxiliary_concat_input",
                "auxiliary_loss_weight", "auxiliary_num_convs", "drop_path_rate", "out_features", "out_indices",
                "pool_scales", "reshape_hidden_states", "semantic_loss_ignore_index", "stage_names",
                "use_auxiliary_head", "use_mean_pooling"),
    heads=True,
    architectures=("BeitForMaskedImageModeling",),
)  # fmt: skip
