"""BEiT as it was pre-trained: a ViT with relative positions, LayerScale and a mask token, and the head for its tokens.

The library keeps no bias of keys, which would add the same to all logits of a query: ours is zero when it is read, and
stays behind when it is written. At another size than its own the library interpolates the relative positions in another
way than ours. Fine-tuned files are refused by name.
"""

import jax.numpy as jnp

from paradigm.hf import Family, Leaf, Patches, Table, dense, norm, plain, stacked
from paradigm.hf.leaves import Absent
from vision.hf.vit import POOL, block_rows, image_inputs, vit_entries, vit_fields
from vision.objectives.masked_images import PatchHead
from vision.vit import ViT

_TABLE = "relative_position_bias.relative_position_bias_table"
MEANING = POOL | {"layer_scale": lambda m: m.layer_scale is not None}  # the number is that of a new model
INDEX = r".*relative_position_index"  # of the table, which is a formula
# Of heads for segmentation, of training, and of what is handed out.
IRRELEVANT = ("_out_features", "_out_indices", "add_fpn", "auxiliary_channels", "auxiliary_concat_input",
              "auxiliary_loss_weight", "auxiliary_num_convs", "drop_path_rate", "out_features", "out_indices",
              "pool_scales", "reshape_hidden_states", "semantic_loss_ignore_index", "stage_names",
              "use_auxiliary_head")  # fmt: skip


def beit_vit(config, **how):
    """The ViT of a config.json of BEiT's kind. how: its other fields."""
    switch = lambda name: config.get(name, False)
    shared, own = switch("use_shared_relative_position_bias"), switch("use_relative_position_bias")
    if shared and own:
        config.refuse("use_relative_position_bias", "they have one table for all layers or one for each, not both")
    scale = config.get("layer_scale_init_value", 0.1)
    return ViT(
        **vit_fields(config, 3),
        d_ff=config.get("intermediate_size"),
        positions="learned" if switch("use_absolute_position_embeddings") else "none",
        grid_bias="shared" if shared else "layers" if own else "none",
        layer_scale=float(scale) if scale > 0 else None,
        mask_token=switch("use_mask_token"),
        **how,
    )


def beit_entries(vit):
    """`beit_vit` the other way round."""
    return {
        **vit_entries(vit),
        "intermediate_size": vit.d_ff,
        "use_absolute_position_embeddings": vit.positions == "learned",
        "use_shared_relative_position_bias": vit.grid_bias == "shared",
        "use_relative_position_bias": vit.grid_bias == "layers",
        "layer_scale_init_value": vit.layer_scale or 0.0,
        "use_mask_token": vit.mask_token,
    }


def beit_leaves(vit, prefix=""):
    """Leaves of such a ViT but for its last norm. prefix: of their names."""
    layer, tables = prefix + "encoder.layer.{}", ("encoder/relative_bias/embedding",)
    rows = [(name, paths, Absent(0.0) if paths == "attention/key/bias" else how) for name, paths, how in block_rows()]
    if vit.layer_scale is not None:
        rows += [("lambda_1", "attention_layer_scale", Table()), ("lambda_2", "mlp_layer_scale", Table())]
    embeddings = f"{prefix}embeddings."
    leaves = [
        Leaf(f"{embeddings}cls_token", ("encoder/class_token",)),
        Leaf(f"{embeddings}patch_embeddings.projection.weight", ("encoder/embed/kernel",), Patches(vit.patch)),
        Leaf(f"{embeddings}patch_embeddings.projection.bias", ("encoder/embed/bias",)),
        *stacked(vit.layers, layer, "encoder/blocks", rows),
    ]
    if vit.mask_token:
        leaves.append(Leaf(f"{embeddings}mask_token", ("encoder/mask_token",)))
    if vit.positions == "learned":
        leaves.append(Leaf(f"{embeddings}position_embeddings", ("encoder/positions/embedding",), Table(1)))
    if vit.grid_bias == "shared":
        leaves.append(Leaf(f"{prefix}encoder.{_TABLE}", tables))
    if vit.grid_bias == "layers":
        own = f"{layer}.attention.attention.{_TABLE}"
        leaves += [Leaf(own.format(n), tables, layer=n) for n in range(vit.layers)]
    return leaves


def _modules(config, tensors):
    del tensors
    vit = beit_vit(config)
    if not vit.mask_token:
        config.refuse("use_mask_token", "they have a mask token")
    return {"encoder": vit, "decoder": PatchHead(config.get("vocab_size", 8192))}


def _config(modules):
    return {
        "architectures": ["BeitForMaskedImageModeling"],
        "model_type": "beit",
        **beit_entries(modules["encoder"]),
        "vocab_size": modules["decoder"].outputs,
    }


def _leaves(modules):
    ends = [*norm("layernorm", "encoder/blocks/norm"), *dense("lm_head", "decoder/predict")]
    return [*beit_leaves(modules["encoder"], "beit."), *plain(ends)]


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
    free=frozenset({"decoder.std"}),
    meaning=MEANING,
    ignored=INDEX,
    irrelevant=(*IRRELEVANT, "use_mean_pooling"),
    heads=True,
    architectures=("BeitForMaskedImageModeling",),
)
