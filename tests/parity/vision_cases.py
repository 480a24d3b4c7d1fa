"""The image models that are compared with the transformers library: configurations, weights and inputs. numpy only.

As cases.py for text: weights are drawn from a generator seeded by the leaf's name, and a golden file holds their names
and shapes beside the outputs; and, for ViT-MAE, the library's tables of fixed positions.
"""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent

# Widths that differ from one another, so that a transpose can't go unseen.
VIT = {
    "architectures": ["ViTModel"],
    "model_type": "vit",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "qkv_bias": True,
}
VIT_MAE = {
    **VIT,
    "architectures": ["ViTMAEForPreTraining"],
    "model_type": "vit_mae",
    "num_channels": 2,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 3,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "mask_ratio": 0.75,
    "norm_pix_loss": True,
}
# An image that patches do not divide, no bias on query, key and value, another activation.
VIT_ODD = {**VIT, "image_size": 18, "qkv_bias": False, "hidden_act": "silu", "attention_probs_dropout_prob": 0.2}
# A decoder of another MLP's width, and tables of positions that are the file's own and no formula's.
VIT_MAE_ODD = {**VIT_MAE, "num_channels": 3, "decoder_intermediate_size": 20, "qkv_bias": False}
DINOV2 = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "image_size": 18,
    "patch_size": 4,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
DINOV2_REGISTERS = {
    **DINOV2,
    "architectures": ["Dinov2WithRegistersModel"],
    "model_type": "dinov2_with_registers",
    "image_size": 16,
    "num_register_tokens": 3,
}
# Pre-trained BEiT: one table of relative positions for all layers; and a table for each, positions beside, an odd size.
BEIT = {
    **{name: value for name, value in VIT.items() if name != "qkv_bias"},
    "architectures": ["BeitForMaskedImageModeling"],
    "model_type": "beit",
    "layer_scale_init_value": 0.1,
    "use_mask_token": True,
    "use_shared_relative_position_bias": True,
    "use_relative_position_bias": False,
    "use_absolute_position_embeddings": False,
    "vocab_size": 11,
}
BEIT_LAYERS = {
    **BEIT,
    "image_size": 18,
    "use_shared_relative_position_bias": False,
    "use_relative_position_bias": True,
    "use_absolute_position_embeddings": True,
    "hidden_act": "gelu_new",
}
IJEPA = {**VIT, "architectures": ["IJepaModel"], "model_type": "ijepa", "layer_norm_eps": 1e-6}
# As it was pre-trained, with a mask token; and fine-tuned: a table for each layer, the norm after the mean, odd size.
DATA2VEC = {
    **{name: value for name, value in BEIT.items() if name != "vocab_size"},
    "architectures": ["Data2VecVisionModel"],
    "model_type": "data2vec-vision",
    "use_mean_pooling": False,
}
DATA2VEC_POOLED = {
    **DATA2VEC,
    "image_size": 18,
    "use_mask_token": False,
    "use_shared_relative_position_bias": False,
    "use_relative_position_bias": True,
    "use_mean_pooling": True,
}
RESNET_18 = {
    "architectures": ["ResNetModel"],
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 32],
    "depths": [1, 2, 1],
    "layer_type": "basic",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
RESNET_50 = {**RESNET_18, "hidden_sizes": [32, 64], "depths": [2, 1], "layer_type": "bottleneck"}
CONFIGS = {
    "vit": VIT,
    "vit_odd": VIT_ODD,
    "vit_mae": VIT_MAE,
    "vit_mae_odd": VIT_MAE_ODD,
    "dinov2": DINOV2,
    "dinov2_registers": DINOV2_REGISTERS,
    "beit": BEIT,
    "beit_layers": BEIT_LAYERS,
    "ijepa": IJEPA,
    "data2vec": DATA2VEC,
    "data2vec_pooled": DATA2VEC_POOLED,
    "resnet_18": RESNET_18,
    "resnet_50": RESNET_50,
}
VITS = tuple(case for case in CONFIGS if not case.startswith("resnet"))
# Of ViT-MAE's gradient, what is compared: both ends of the chain and what lies between encoder and decoder.
SLOPES = (
    "vit.embeddings.cls_token",
    "vit.embeddings.patch_embeddings.projection.weight",
    "decoder.mask_token",
    "decoder.decoder_embed.weight",
)


def weight(name, shape):
    """float32 [shape], the same on every machine: a function of the leaf's name."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return np.abs(draw) + np.float32(0.5)
    if len(shape) == 1:
        return draw * np.float32(0.1) + np.float32(name.endswith("weight"))
    if "embeddings" in name or "token" in name or "pos_embed" in name:
        return draw * np.float32(0.5)
    return draw / np.float32(np.sqrt(np.prod(shape[1:])))


def inputs(case):
    """Arguments of the transformers model, as numpy: pixel_values [B, C, H, W]; for ViT-MAE noise [B, N], for BEiT and
    data2vec before it was fine-tuned bool_masked_pos [B, N]."""
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    side, channels = CONFIGS[case].get("image_size", 32), CONFIGS[case]["num_channels"]
    given = {"pixel_values": rng.standard_normal((2, channels, side, side)).astype(np.float32)}
    if case.startswith("beit") or case == "data2vec":
        given["bool_masked_pos"] = rng.random((2, 16)) < 0.4
    return given | ({"noise": rng.random((2, 16)).astype(np.float32)} if case.startswith("vit_mae") else {})


def larger():
    """Pixels [B, C, H, W] of a size that the ViT has no positions for."""
    return np.random.default_rng(7).standard_normal((2, 3, 24, 32)).astype(np.float32)


def load(case):
    """The golden of a case: {config, weights, inputs: name -> array, and the library's outputs by name}."""
    with np.load(HERE / f"{case}.npz", allow_pickle=False) as stored:
        golden = dict(stored)
    shapes = json.loads(str(golden.pop("shapes")))
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    fixed = {name.removeprefix("fixed:"): golden.pop(name) for name in list(golden) if name.startswith("fixed:")}
    return {"config": CONFIGS[case], "weights": weights | fixed, "inputs": inputs(case), **golden}
