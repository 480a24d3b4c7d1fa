"""What the transformers library calls our image models and their weights: ViT and ViT-MAE.

A model here is a dict of modules by name, as in an objective's tree: {"encoder": ViT} is the library's ViT, and
{"encoder": ViT, "decoder": Decoder} its ViT-MAE. A family is config.json in both directions and one table of leaves,
which `vision.weights` reads in both directions. Names are those of the released files, which the library's version 5
translates on the way in and out.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from paradigm.errors import UserError, choose
from vision.objectives.mae import Decoder
from vision.patches import sincos
from vision.vit import ViT

# Fields of a ViT that say how it is initialised, trained, pooled or compiled, and not what its tokens are.
_FREE = {"init_std", "token_std", "dropout_style", "dtype", "remat", "scan", "frozen_patches", "pool", "parent", "name"}
_FREE |= {"positions"}  # the library keeps a table of fixed positions too: see `_positions`


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """One tensor of a file, and its place in our tree.

    name: the tensor's. paths: our leaf, or none where the tensor must be `constant`. layer: index on the stacked axis,
    or None. inputs: leading axes of our kernel that are inputs (torch's Linear keeps [out, in]); 0
    for a vector, None for what both sides keep alike, but for leading axes of 1. patch: of a patch embedding, ours
    [patch * patch * C, D], the library's [D, C, patch, patch]. aliases: other names of it.
    """

    name: str
    paths: tuple
    layer: int | None = None
    inputs: int | None = None
    patch: int | None = None
    constant: Any = None
    aliases: tuple = ()

    def shape(self, ours):
        """The tensor's shape, from that of our leaf (without the layer axis)."""
        if self.constant is not None:
            return self.constant.shape
        [ours] = ours
        if self.patch is not None:
            return (ours[1], ours[0] // self.patch**2, self.patch, self.patch)
        if self.inputs is None:
            return (1,) * (3 - len(ours)) + tuple(ours)
        rows, columns = math.prod(ours[: self.inputs]), math.prod(ours[self.inputs :])
        return (columns, rows) if self.inputs else (columns,)

    def pack(self, parts):
        """Our array -> the tensor."""
        [x] = parts
        if self.patch is not None:  # [patch * patch * C, D] -> [D, C, patch, patch]
            return x.reshape(self.patch, self.patch, -1, x.shape[1]).transpose(3, 2, 0, 1)
        if self.inputs:
            x = x.reshape(math.prod(x.shape[: self.inputs]), -1).T
        return x.reshape(self.shape([x.shape])) if not self.inputs else x

    def unpack(self, tensor, shapes):
        """The tensor -> an array of our shape, or none."""
        if self.patch is not None:
            tensor = tensor.transpose(2, 3, 1, 0)
        return [(tensor.T if self.inputs else tensor).reshape(shape) for shape in shapes]


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of the transformers library.

    model_type: as in config.json. modules: config.json -> our modules by name. config: the inverse. leaves: our modules
    -> list of Leaf. ignored: regex of tensors that files hold and none of our modules reads. prefix: of the encoder's
    names, absent from some files.
    """

    title: str
    model_type: str
    modules: Callable
    config: Callable
    leaves: Callable
    ignored: str
    prefix: str = "vit."


def family_of(modules):
    """The Family of our modules. Raises UserError when there is none."""
    kinds = {name: type(module) for name, module in modules.items()}
    if kinds == {"encoder": ViT}:
        return FAMILIES["vit"]
    if kinds == {"encoder": ViT, "decoder": Decoder}:
        return FAMILIES["vit_mae"]
    what = ", ".join(f"{name}: {kind.__name__}" for name, kind in kinds.items())
    raise UserError(
        f"no layout of the transformers library for {what}; what can be written: a ViT, or a ViT with MAE's Decoder"
    )


def differences(modules, others):
    """[(field, the modules', the others')] of the fields that decide what is computed."""
    value = lambda m, field: m.head_width if field == "head_dim" else getattr(m, field)
    fields = [("encoder", f) for f in ViT.__dataclass_fields__ if f not in _FREE]
    fields += [("decoder", f) for f in ("width", "layers", "heads") if "decoder" in modules]
    both = [(f"{name}.{f}", value(modules[name], f), value(others[name], f)) for name, f in fields]
    return [(field, ours, theirs) for field, ours, theirs in both if ours != theirs]


def config_of(modules):
    """config.json of our modules, as a dict.

    Raises:
        UserError: the transformers library cannot say what they compute; names the field.
    """
    family = family_of(modules)
    config = family.config(modules)
    for field, ours, theirs in differences(modules, family.modules(config)):
        has = f"the transformers library's {family.title} has {field}={theirs!r}"
        raise UserError(f"{has}; a model with {field}={ours!r} cannot be written")
    return config


# ---- ViT -------------------------------------------------------------------------------------------------------------

_ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}


def _only(title, config, **supported):
    """Raises UserError unless each of these entries of the config, where present, is what our models compute."""
    for key, value in supported.items():
        if config.get(key, value) != value:
            raise UserError(f"a {title} with {key}={config[key]!r} is not one of our models: they have {value!r}")


def _vit(title, config, positions):
    dropout = config.get("hidden_dropout_prob", 0.0)
    _only(title, config, qkv_bias=True, attention_probs_dropout_prob=dropout)
    for name in ("image_size", "patch_size"):
        if not isinstance(config[name], int):
            raise UserError(f"a {title} with {name}={config[name]!r} is not one of our models: theirs is one number")
    return ViT(
        d_model=config["hidden_size"],
        heads=config["num_attention_heads"],
        d_ff=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        image_size=config["image_size"],
        patch=config["patch_size"],
        channels=config["num_channels"],
        activation=choose("hidden_act", config.get("hidden_act", "gelu"), _ACTIVATIONS),
        eps=config.get("layer_norm_eps", 1e-12),
        dropout=dropout,
        positions=positions,
    )


def _vit_config(modules):
    vit = modules["encoder"]
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": vit.d_model,
        "num_attention_heads": vit.heads,
        "intermediate_size": vit.d_ff,
        "num_hidden_layers": vit.layers,
        "image_size": vit.image_size,
        "patch_size": vit.patch,
        "num_channels": vit.channels,
        "hidden_act": {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}.get(vit.activation, "gelu"),
        "layer_norm_eps": vit.eps,
        "hidden_dropout_prob": vit.dropout,
        "attention_probs_dropout_prob": vit.dropout,
        "qkv_bias": True,
    }


def _dense(theirs, ours, inputs=1):
    return [(f"{theirs}.weight", f"{ours}/kernel", inputs), (f"{theirs}.bias", f"{ours}/bias", 0)]


def _norm(theirs, ours):
    return [(f"{theirs}.weight", f"{ours}/scale", 0), (f"{theirs}.bias", f"{ours}/bias", 0)]


def _blocks(count, theirs, ours, also=None):
    """Leaves of a Stack's layers. also: another name for `theirs` in some files."""
    rows = [
        *_norm("layernorm_before", "attention_norm"),
        *(r for name in ("query", "key", "value") for r in _dense(f"attention.attention.{name}", f"attention/{name}")),
        *_dense("attention.output.dense", "attention/out", 2),
        *_norm("layernorm_after", "mlp_norm"),
        *_dense("intermediate.dense", "mlp/up"),
        *_dense("output.dense", "mlp/down"),
    ]
    return [
        Leaf(f"{theirs}.{n}.{name}", (f"{ours}/layers/{path}",), n, inputs,
             aliases=(f"{also}.{n}.{name}",) if also else ())
        for n in range(count)
        for name, path, inputs in rows
    ]  # fmt: skip


def _plain(rows):
    return [Leaf(name, (path,), inputs=inputs) for name, path, inputs in rows]


def _positions(name, vit, width):
    """Fixed positions [1, 1 + N, width], the class token's zero first: in the files a tensor, with us a formula."""
    table = sincos(width, *vit.grid)
    return Leaf(name, (), constant=np.concatenate([np.zeros_like(table[:1]), table])[None])


def _vit_leaves(modules):
    vit, place = modules["encoder"], "vit.embeddings.position_embeddings"
    projection = "vit.embeddings.patch_embeddings.projection"
    learned = Leaf(place, ("encoder/positions/embedding",))
    return [
        Leaf("vit.embeddings.cls_token", ("encoder/class_token",)),
        learned if vit.positions == "learned" else _positions(place, vit, vit.d_model),
        Leaf(f"{projection}.weight", ("encoder/embed/kernel",), patch=vit.patch),
        Leaf(f"{projection}.bias", ("encoder/embed/bias",), inputs=0),
        *_blocks(vit.layers, "vit.encoder.layer", "encoder/blocks"),
        *_plain(_norm("vit.layernorm", "encoder/blocks/norm")),
    ]


# ---- ViT-MAE ---------------------------------------------------------------------------------------------------------


def _mae(config):
    vit, width = _vit("ViT-MAE", config, "sincos"), config["decoder_hidden_size"]
    _only("ViT-MAE", config, decoder_intermediate_size=4 * width)
    layers, heads = config["decoder_num_hidden_layers"], config["decoder_num_attention_heads"]
    return {"encoder": vit, "decoder": Decoder(vit, width, layers, heads)}


def _mae_config(modules):
    decoder = modules["decoder"]
    return _vit_config(modules) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.layers,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
        "mask_ratio": 0.75,
        "norm_pix_loss": True,
    }


def _mae_leaves(modules):
    decoder = modules["decoder"]
    return [
        *_vit_leaves(modules),
        Leaf("decoder.mask_token", ("decoder/mask_token",)),
        _positions("decoder.decoder_pos_embed", modules["encoder"], decoder.width),
        *_plain(_dense("decoder.decoder_embed", "decoder/embed")),
        # Version 5.23 of the library writes "decoder_encoder.layer", its renaming of encoders gone too far.
        *_blocks(decoder.layers, "decoder.decoder_layers", "decoder/blocks", "decoder.decoder_encoder.layer"),
        *_plain(_norm("decoder.decoder_norm", "decoder/blocks/norm")),
        *_plain(_dense("decoder.decoder_pred", "decoder/predict")),
    ]


_VIT = Family(
    "ViT",
    "vit",
    lambda config: {"encoder": _vit("ViT", config, "learned")},
    _vit_config,
    _vit_leaves,
    r"(vit\.)?pooler\..*|classifier\..*|vit\.embeddings\.mask_token|decoder\..*",
)
_MAE = Family("ViT-MAE", "vit_mae", _mae, _mae_config, _mae_leaves, r"$^")
FAMILIES = {family.model_type: family for family in (_VIT, _MAE)}
