"""ViT: the library's with learned positions; names are those of the released files, which its version 5 translates."""

import jax.numpy as jnp
import numpy as np

from paradigm.hf import MEANING, Constant, Family, Leaf, Patches, Table, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from vision.patches import sincos
from vision.vit import ViT

ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "silu": "silu",
               "quick_gelu": "quick_gelu"}  # fmt: skip
# Positions: the library keeps a table of fixed ones too (see `positions`).
FREE = frozenset({"positions"})
# Class token or mean, its user chooses where both are normed; a norm after the mean is another model.
POOL = {"pool": lambda vit: vit.pool if vit.pool == "mean_norm" else None}
POSITIONS = "vit.embeddings.position_embeddings"
_BARE = ("embeddings.", "encoder.", "layernorm.", "pooler.")  # how names begin where the encoder is alone


def image_inputs(vit):
    return (jnp.zeros((1, vit.image_size, vit.image_size, vit.channels)),)


def rename(name):
    return "vit." + name if name.startswith(_BARE) else name


_IN_MEMORY = (
    ("encoder.layer.", "layers."),
    *((f"attention.attention.{name}", f"attention.{name[0]}_proj") for name in ("query", "key", "value")),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def in_memory(name):
    """A module of a released file as version 5 calls it (transformers 5.24, models/vit/modeling_vit.py)."""
    for old, new in _IN_MEMORY:
        name = name.replace(old, new)
    return name


def vit_fields(config, *channels, eps=1e-12):
    """What every kind of ViT has in config.json, as fields of ours. channels: the default, where there is one."""
    return {
        "d_model": config.get("hidden_size"),
        "heads": config.get("num_attention_heads"),
        "layers": config.get("num_hidden_layers"),
        "image_size": config.get("image_size"),
        "patch": config.get("patch_size"),
        "channels": config.get("num_channels", *channels),
        "activation": config.choose("hidden_act", "gelu", ACTIVATIONS),
        "eps": config.get("layer_norm_eps", eps),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
    }


def vit_entries(vit):
    """`vit_fields` the other way round."""
    return {
        "hidden_size": vit.d_model,
        "num_attention_heads": vit.heads,
        "num_hidden_layers": vit.layers,
        "image_size": vit.image_size,
        "patch_size": vit.patch,
        "num_channels": vit.channels,
        "hidden_act": inverse(ACTIVATIONS).get(vit.activation, "gelu"),
        "layer_norm_eps": vit.eps,
        "hidden_dropout_prob": vit.dropout,
        "attention_probs_dropout_prob": MEANING["attention_dropout"](vit),
    }


def vit_model(config, positions):
    return ViT(
        **vit_fields(config),
        d_ff=config.get("intermediate_size"),
        qkv_bias=config.get("qkv_bias", True),
        positions=positions,
    )


def vit_config(modules):
    vit = modules["encoder"]
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **vit_entries(vit),
        "intermediate_size": vit.d_ff,
        "qkv_bias": MEANING["qkv_bias"](vit),
    }


def block_rows(bias=True):
    """Rows of a layer. bias: on query, key and value."""
    qkv = [(f"attention.attention.{name}", f"attention/{name}") for name in ("query", "key", "value")]
    return [
        *norm("layernorm_before", "attention_norm"),
        *(row for theirs, ours in qkv for row in dense(theirs, ours, bias=bias)),
        *dense("attention.output.dense", "attention/out", 2),
        *norm("layernorm_after", "mlp_norm"),
        *dense("intermediate.dense", "mlp/up"),
        *dense("output.dense", "mlp/down"),
    ]


def blocks(vit, count, theirs, ours, also=None):
    """Leaves of a Stack's layers, of the ViT's kind."""
    return stacked(count, theirs + ".{}", ours, block_rows(MEANING["qkv_bias"](vit)), also and also + ".{}")


def fixed_positions(vit, width):
    """[1, 1 + N, width], the class token's zero first: in the files a tensor, with us a formula."""
    table = sincos(width, *vit.grid)
    return np.concatenate([np.zeros_like(table[:1]), table])[None]


def positions(name, kind, path, vit, width):
    """The Leaf of a table of positions of this kind: learned or sincos."""
    if kind == "learned":
        return Leaf(name, (path,), Table(1))
    what = "the table of fixed sine and cosine positions that the model has: give one with positions='learned'"
    return Leaf(name, (), Constant(fixed_positions(vit, width), what))


def vit_leaves(modules):
    vit = modules["encoder"]
    return [
        Leaf("vit.embeddings.cls_token", ("encoder/class_token",)),
        positions(POSITIONS, vit.positions, "encoder/positions/embedding", vit, vit.d_model),
        Leaf("vit.embeddings.patch_embeddings.projection.weight", ("encoder/embed/kernel",), Patches(vit.patch)),
        Leaf("vit.embeddings.patch_embeddings.projection.bias", ("encoder/embed/bias",)),
        *blocks(vit, vit.layers, "vit.encoder.layer", "encoder/blocks"),
        *plain(norm("vit.layernorm", "encoder/blocks/norm")),
    ]


VIT = Family(
    "ViT",
    "vit",
    kinds={"encoder": ViT},
    modules=lambda config, tensors: {"encoder": vit_model(config, "learned")},
    config=vit_config,
    when=lambda modules: not modules["encoder"].mask_token,
    leaves=vit_leaves,
    inputs=lambda modules: {"encoder": image_inputs(modules["encoder"])},
    free=FREE,
    meaning=POOL,
    ignored=r"(vit\.)?pooler\..*|classifier\..*|vit\.embeddings\.mask_token|decoder\..*",
    rename=rename,
    written=lambda name: name.removeprefix("vit."),  # a bare encoder's names have no prefix
    in_memory=in_memory,
    irrelevant=("encoder_stride", "pooler_act", "pooler_output_size", "tie_word_embeddings"),
    heads=True,
)
