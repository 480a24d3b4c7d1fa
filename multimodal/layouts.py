"""What the transformers library calls CLIP and SigLIP and their weights: config.json and one table of leaves.

A model here is an objective: its towers, heads and scalars. `multimodal.weights` reads the tables in both directions.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from multimodal.objectives import CLIP, SigLIP
from multimodal.towers import ClipViT, TextTower
from multimodal.views import clip_views, siglip_views
from paradigm.errors import UserError, choose
from t5like.vocabulary import Vocabulary
from vision.vit import ViT

# Fields of towers that say how they are initialised, trained, pooled or compiled, and not what they compute.
_FREE = {"init_std", "embed_std", "position_std", "token_std", "dropout", "dropout_style", "dtype", "remat", "scan"}
_FREE |= {"frozen_patches", "parent", "name"}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu_exact", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu",
                "relu": "relu"}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """One tensor of a file, and its place in our tree.

    name: the tensor's. paths: our leaf, or those that the tensor holds. layer: index on the stacked axis, or None.
    how: which of `_SHAPES`, `_PACK` and `_UNPACK`. number: of `kernel`, our leading axes that are inputs; of `patches`,
    pixels a side.
    """

    name: str
    paths: tuple
    how: str
    number: int = 0
    layer: int | None = None

    aliases = ()
    constant = None

    def shape(self, ours):
        """The tensor's shape, from the shape of each of our leaves (without the layer axis)."""
        return _SHAPES[self.how](self.number, ours)

    def pack(self, parts):
        """Our arrays -> the tensor."""
        return _PACK[self.how](self.number, parts).reshape(self.shape([x.shape for x in parts]))

    def unpack(self, tensor, shapes):
        """The tensor -> arrays of our shapes."""
        parts = _UNPACK[self.how](self.number, tensor, shapes)
        return [np.broadcast_to(x, s) if np.ndim(x) == 0 else x.reshape(s) for x, s in zip(parts, shapes, strict=True)]


def _flat(number, x):
    return x.reshape(math.prod(x.shape[:number]), -1)


def _split(tensor, sizes):
    return np.split(tensor, np.cumsum(sizes)[:-1])


def _sizes(shapes, first=0):
    return [math.prod(s[first:]) for s in shapes]


_SHAPES = {
    "table": lambda number, ours: tuple(ours[0]),
    "vector": lambda number, ours: (sum(_sizes(ours)),),
    # torch's Linear keeps [out, in]; several of ours lie side by side in `out`
    "kernel": lambda number, ours: (sum(_sizes(ours, number)), math.prod(ours[0][:number])),
    "patches": lambda number, ours: (ours[0][1], ours[0][0] // number**2, number, number),  # [D, C, patch, patch]
    # CLIP's patches have no bias: in the file ours is part of the patches' positions, behind the class token's
    "positions": lambda number, ours: tuple(ours[0]),
}
_PACK = {
    "table": lambda number, parts: parts[0],
    "vector": lambda number, parts: np.concatenate([x.reshape(-1) for x in parts]),
    "kernel": lambda number, parts: np.concatenate([_flat(number, x).T for x in parts]),
    "patches": lambda number, parts: parts[0].reshape(number, number, -1, parts[0].shape[1]).transpose(3, 2, 0, 1),
    "positions": lambda number, parts: np.concatenate([parts[0][:1], parts[0][1:] + parts[1]]),
}
_UNPACK = {
    "table": lambda number, tensor, shapes: [tensor],
    "vector": lambda number, tensor, shapes: _split(tensor, _sizes(shapes)),
    "kernel": lambda number, tensor, shapes: [x.T for x in _split(tensor, _sizes(shapes, number))],
    "patches": lambda number, tensor, shapes: [tensor.transpose(2, 3, 1, 0)],
    "positions": lambda number, tensor, shapes: [tensor, np.float32(0.0)],
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of the transformers library.

    model_type: as in config.json. kind: our objective. model: (config, tokenizer or None) -> our objective. config: the
    inverse. leaves: our objective -> list of Leaf. ignored: regex of tensors that old files hold and no model reads.
    """

    title: str
    model_type: str
    kind: type
    model: Callable
    config: Callable
    leaves: Callable
    ignored: str = r".*\.position_ids"


@dataclasses.dataclass(frozen=True)
class Absent:
    """The place of a tokenizer that did not come with the weights: what is known of its ids."""

    vocab_size: int
    eos_id: int = 1
    pad_id: int = 1

    @property
    def vocabulary(self):
        return Vocabulary(self.vocab_size, pad=self.pad_id, eos=self.eos_id, fingerprint="")

    def encode(self, text):
        raise UserError("these weights came without a tokenizer: give one to the objective that reads texts")


def family_of(objective):
    """The Family of one of our objectives. Raises UserError when there is none."""
    for family in FAMILIES.values():
        if type(objective) is family.kind:
            return family
    raise UserError(
        f"the transformers library has no {type(objective).__name__}; what can be written: CLIP (a ClipViT and a "
        "causal text tower) and SigLIP (a ViT and a bidirectional one)"
    )


def differences(objective, other):
    """[(field, the objective's, the other's)] of what decides what they compute."""
    value = lambda m, field: m.head_width if field == "head_dim" else getattr(m, field)
    found = [("encoder", type(objective.encoder).__name__, type(other.encoder).__name__)]
    for tower in ("encoder", "text"):
        a, b = getattr(objective, tower), getattr(other, tower)
        fields = [f for f in type(b).__dataclass_fields__ if f not in _FREE]
        if objective.image_pool == "map":
            fields = [f for f in fields if (tower, f) != ("encoder", "pool")]  # the head pools
        if getattr(objective.text, "pool", None) == getattr(other.text, "pool", None) == "highest":
            fields = [f for f in fields if (tower, f) != ("text", "end_id")]  # which is not read
        found += [(f"{tower}.{f}", value(a, f), value(b, f)) for f in fields if hasattr(a, f)]
    names = ("width", "image_projection", "text_projection", "image_pool")
    found += [(name, getattr(objective, name), getattr(other, name)) for name in names]
    return [(field, ours, theirs) for field, ours, theirs in found if ours != theirs]


def config_of(objective):
    """config.json of an objective, as a dict.

    Raises:
        UserError: the transformers library cannot say what this model computes; names the field.
    """
    family = family_of(objective)
    config = family.config(objective)
    other = family.model(config, objective.tokenizer)
    for field, ours, theirs in differences(objective, other):
        has = f"the transformers library's {family.title} has {field}={theirs!r}"
        raise UserError(f"{has}; a model with {field}={ours!r} cannot be written")
    return config


# ---- Both ------------------------------------------------------------------------------------------------------------

# What the library takes where config.json is silent: CLIPTextConfig and the like.
_DEFAULTS = {
    "clip": {
        "text_config": {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
                        "num_attention_heads": 8, "max_position_embeddings": 77, "eos_token_id": 49407},
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                          "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32},
        "both": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0},
    },
    "siglip": {
        "text_config": {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                        "num_attention_heads": 12, "max_position_embeddings": 64},
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                          "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 16,
                          "vision_use_head": True},
        "both": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0},
    },
}  # fmt: skip


def _side(config, name):
    """One tower's part of config.json, with the library's defaults."""
    defaults = _DEFAULTS[config["model_type"]]
    return defaults["both"] | defaults[name] | (config.get(name) or {})


def _stack(side):
    return {
        "d_model": side["hidden_size"],
        "d_ff": side["intermediate_size"],
        "layers": side["num_hidden_layers"],
        "heads": side["num_attention_heads"],
        "activation": choose("hidden_act", side["hidden_act"], _ACTIVATIONS),
        "eps": side["layer_norm_eps"],
    }


def _image(side):
    sizes = {"image_size": side["image_size"], "patch": side["patch_size"], "channels": side["num_channels"]}
    return _stack(side) | sizes | {"positions": "learned"}


def _text(side):
    return _stack(side) | {"vocab_size": side["vocab_size"], "length": side["max_position_embeddings"]}


def _sides(objective):
    """{"text_config", "vision_config"} of an objective's towers."""
    act = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}

    def stack(tower):
        return {
            "hidden_size": tower.d_model,
            "intermediate_size": tower.d_ff,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": act.get(tower.activation, tower.activation),
            "layer_norm_eps": tower.eps,
        }

    image, text, vocabulary = objective.encoder, objective.text, objective.vocabulary
    sides = {
        "text_config": {"vocab_size": text.vocab_size, "max_position_embeddings": text.length},
        "vision_config": {"num_channels": image.channels, "image_size": image.image_size, "patch_size": image.patch},
    }
    sides["text_config"] |= stack(text) | {
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.end,
        "pad_token_id": vocabulary.filler,
    }
    sides["vision_config"] |= stack(image)
    return sides


def _linear(theirs, ours, inputs=1):
    """Rows (tensor, our paths, how, number) of a linear map with a bias, or of several in one tensor."""
    paths = (ours,) if isinstance(ours, str) else ours
    weight, bias = (theirs + ".weight", theirs + ".bias") if isinstance(theirs, str) else theirs
    return [
        (weight, tuple(f"{p}/kernel" for p in paths), "kernel", inputs),
        (bias, tuple(f"{p}/bias" for p in paths), "vector", 0),
    ]


def _norm(theirs, ours):
    return [(f"{theirs}.weight", (f"{ours}/scale",), "vector", 0), (f"{theirs}.bias", (f"{ours}/bias",), "vector", 0)]


def _blocks(count, theirs, ours):
    rows = [
        *_norm("layer_norm1", "attention_norm"),
        *(r for name in ("query", "key", "value") for r in _linear(f"self_attn.{name[0]}_proj", f"attention/{name}")),
        *_linear("self_attn.out_proj", "attention/out", 2),
        *_norm("layer_norm2", "mlp_norm"),
        *_linear("mlp.fc1", "mlp/up"),
        *_linear("mlp.fc2", "mlp/down"),
    ]
    return [
        Leaf(f"{theirs}.encoder.layers.{n}.{name}", tuple(f"{ours}/layers/{p}" for p in paths), how, number, n)
        for n in range(count)
        for name, paths, how, number in rows
    ]


def _plain(rows):
    return [Leaf(*row) for row in rows]


def _towers(objective):
    """Leaves that both families have."""
    image, text = objective.encoder, objective.text
    stack = f"text/{'decoder' if text.causal else 'encoder'}"
    embeddings = "embeddings.patch_embedding.weight"
    return [
        Leaf("logit_scale", ("log_scale",), "table" if isinstance(objective, CLIP) else "vector"),
        Leaf("text_model.embeddings.token_embedding.weight", ("text/embed/embedding",), "table"),
        Leaf("text_model.embeddings.position_embedding.weight", ("text/positions/embedding",), "table"),
        *_blocks(text.layers, "text_model", stack),
        *_plain(_norm("text_model.final_layer_norm", f"{stack}/norm")),
        Leaf(f"vision_model.{embeddings}", ("encoder/embed/kernel",), "patches", image.patch),
        *_blocks(image.layers, "vision_model", "encoder/blocks"),
        *_plain(_norm("vision_model.post_layernorm", "encoder/blocks/norm")),
    ]


# ---- CLIP ------------------------------------------------------------------------------------------------------------


def _clip(config, tokenizer):
    image, text = _side(config, "vision_config"), _side(config, "text_config")
    end = text["eos_token_id"]
    if not isinstance(end, int):
        raise UserError(f"a CLIP with eos_token_id={end!r} is not one of our models: they end a text with one id")
    # Old files say 2 whatever their captions end with, and the library then pools at the highest id of each.
    pool, end = ("highest", text["vocab_size"] - 1) if end == 2 else ("end", end)
    fields = {
        "encoder": ClipViT(**_image(image)),
        "text": TextTower(**_text(text), pool=pool, end_id=end),
        "width": config.get("projection_dim", 512),
        "augment": clip_views(image["image_size"]),
        "host_image_size": image["image_size"],
        "tokenizer": tokenizer or Absent(text["vocab_size"], end),
    }
    return CLIP(**fields)


def _clip_config(objective):
    sides = _sides(objective)
    for side in sides.values():
        side["projection_dim"] = objective.width
    if objective.text.pool == "end" and objective.text.end_id == 2:
        raise UserError(
            "the transformers library takes an end id of 2 for the highest: text.end_id=2 cannot be written"
        )
    sides["text_config"]["eos_token_id"] = 2 if objective.text.pool == "highest" else objective.text.end_id
    sides["text_config"]["model_type"], sides["vision_config"]["model_type"] = "clip_text_model", "clip_vision_model"
    return {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": objective.width, **sides}


def _clip_leaves(objective):
    place = ("encoder/positions/embedding", "encoder/embed/bias")
    return [
        *_towers(objective),
        Leaf("vision_model.embeddings.class_embedding", ("encoder/class_token",), "vector"),
        Leaf("vision_model.embeddings.position_embedding.weight", place, "positions"),
        *_plain(_norm("vision_model.pre_layrnorm", "encoder/blocks/pre_norm")),
        Leaf("visual_projection.weight", ("image_head/project/kernel",), "kernel", 1),
        Leaf("text_projection.weight", ("text_head/project/kernel",), "kernel", 1),
    ]


# ---- SigLIP ----------------------------------------------------------------------------------------------------------


def _siglip(config, tokenizer):
    image, text = _side(config, "vision_config"), _side(config, "text_config")
    if not image["vision_use_head"]:
        raise UserError("a SigLIP with vision_use_head=False has no shared space: read one with its attention pooling")
    fields = {
        "encoder": ViT(**_image(image), class_token=False, pool="mean"),
        "text": TextTower(**_text(text), causal=False, pool="last"),
        "width": text.get("projection_size") or text["hidden_size"],
        "image_pool": "map",
        "image_projection": "none",
        "text_projection": "affine",
        "augment": siglip_views(image["image_size"]),
        "host_image_size": image["image_size"],
        "tokenizer": tokenizer or Absent(text["vocab_size"]),
    }
    return SigLIP(**fields)


def _siglip_config(objective):
    sides = _sides(objective)
    sides["text_config"]["projection_size"] = objective.width
    sides["vision_config"]["vision_use_head"] = True
    sides["text_config"]["model_type"], sides["vision_config"]["model_type"] = (
        "siglip_text_model",
        "siglip_vision_model",
    )
    return {"architectures": ["SiglipModel"], "model_type": "siglip", **sides}


def _siglip_leaves(objective):
    pool, head = "image_head/pool", "vision_model.head"
    packed = tuple(f"{pool}/attention/{name}" for name in ("query", "key", "value"))
    return [
        *_towers(objective),
        Leaf("logit_bias", ("bias",), "vector"),
        Leaf("vision_model.embeddings.patch_embedding.bias", ("encoder/embed/bias",), "vector"),
        Leaf("vision_model.embeddings.position_embedding.weight", ("encoder/positions/embedding",), "table"),
        Leaf(f"{head}.probe", (f"{pool}/probe",), "table"),
        *_plain(_linear((f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias"), packed)),
        *_plain(_linear(f"{head}.attention.out_proj", f"{pool}/attention/out", 2)),
        *_plain(_norm(f"{head}.layernorm", f"{pool}/norm")),
        *_plain(_linear(f"{head}.mlp.fc1", f"{pool}/mlp/up")),
        *_plain(_linear(f"{head}.mlp.fc2", f"{pool}/mlp/down")),
        *_plain(_linear("text_model.head", "text_head/project")),
    ]


FAMILIES = {
    "clip": Family("CLIP", "clip", CLIP, _clip, _clip_config, _clip_leaves),
    "siglip": Family("SigLIP", "siglip", SigLIP, _siglip, _siglip_config, _siglip_leaves),
}
