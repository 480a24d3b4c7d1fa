"""DINOv2, and DINOv2 with registers: a ViT with LayerScale, a mask token and learned positions.

The class token and the patches are normed together at the end; the MLP is plain (the giant's SwiGLU is refused by
name).
"""

import functools

from paradigm.hf import MEANING, Family, Leaf, Patches, Table, dense, norm, plain, stacked
from vision.hf.vit import POOL, image_inputs, vit_entries, vit_fields
from vision.vit import ViT


def _modules(config, tensors, registers):
    del tensors
    config.choose("use_swiglu_ffn", False, {False: None})
    fields = vit_fields(config, 3, eps=1e-6)
    vit = ViT(
        **fields,
        d_ff=int(fields["d_model"] * config.get("mlp_ratio", 4)),
        qkv_bias=config.get("qkv_bias", True),
        layer_scale=float(config.get("layerscale_value", 1.0)),
        positions="learned",
        mask_token=True,
        registers=config.get("num_register_tokens", 4) if registers else 0,
    )
    return {"encoder": vit}


def _config(modules, registers):
    vit = modules["encoder"]
    entries = {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        **vit_entries(vit),
        "mlp_ratio": vit.d_ff // vit.d_model,
        "qkv_bias": MEANING["qkv_bias"](vit),
        "layerscale_value": 1.0 if vit.layer_scale is None else vit.layer_scale,
        "use_swiglu_ffn": False,
    }
    return entries | ({"num_register_tokens": vit.registers} if registers else {})


def _leaves(modules):
    vit = modules["encoder"]
    bias = MEANING["qkv_bias"](vit)
    qkv = [(f"attention.attention.{name}", f"attention/{name}") for name in ("query", "key", "value")]
    rows = [
        *norm("norm1", "attention_norm"),
        *(row for theirs, ours in qkv for row in dense(theirs, ours, bias=bias)),
        *dense("attention.output.dense", "attention/out", 2),
        ("layer_scale1.lambda1", "attention_layer_scale", Table()),
        *norm("norm2", "mlp_norm"),
        *dense("mlp.fc1", "mlp/up"),
        *dense("mlp.fc2", "mlp/down"),
        ("layer_scale2.lambda1", "mlp_layer_scale", Table()),
    ]
    tokens = [
        Leaf("embeddings.cls_token", ("encoder/class_token",)),
        Leaf("embeddings.mask_token", ("encoder/mask_token",), Table(-1), missing=0.0),  # use_mask_token=False has none
        Leaf("embeddings.position_embeddings", ("encoder/positions/embedding",), Table(1)),
    ]
    if vit.registers:
        tokens.append(Leaf("embeddings.register_tokens", ("encoder/registers",)))
    return [
        *tokens,
        Leaf("embeddings.patch_embeddings.projection.weight", ("encoder/embed/kernel",), Patches(vit.patch)),
        Leaf("embeddings.patch_embeddings.projection.bias", ("encoder/embed/bias",)),
        *stacked(vit.layers, "encoder.layer.{}", "encoder/blocks", rows),
        *plain(norm("layernorm", "encoder/blocks/norm")),
    ]


def _is_one(vit, registers):
    known = vit.mask_token and vit.layer_scale is not None and vit.positions == "learned"
    return known and bool(vit.registers) == registers


def _family(title, model_type, registers):
    return Family(
        title,
        model_type,
        kinds={"encoder": ViT},
        when=lambda modules: _is_one(modules["encoder"], registers),
        modules=functools.partial(_modules, registers=registers),
        config=functools.partial(_config, registers=registers),
        leaves=_leaves,
        inputs=lambda modules: {"encoder": image_inputs(modules["encoder"])},
        meaning=POOL | {"layer_scale": lambda m: m.layer_scale is not None},  # the number is that of a new model
        ignored=r"classifier\..*",
        rename=lambda name: name.removeprefix("dinov2_with_registers.").removeprefix("dinov2."),
        irrelevant=("apply_layernorm", "drop_path_rate", "out_features", "out_indices", "reshape_hidden_states",
                    "stage_names", "use_mask_token"),
        heads=True,
    )  # fmt: skip


DINOV2 = _family("DINOv2", "dinov2", False)
DINOV2_REGISTERS = _family("DINOv2 with registers", "dinov2_with_registers", True)
