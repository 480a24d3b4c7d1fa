"""What the transformers library calls our models and their weights: T5 v1.0 and v1.1, GPT-2, Llama.

An EncoderDecoder is a T5, a Decoder with learned positions a GPT-2, a Decoder with rotary positions a Llama. A family
is config.json in both directions and one table of leaves, which `t5like.weights` reads in both directions.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from paradigm.errors import UserError, choose
from t5like.models import Decoder, EncoderDecoder

# Fields that say how a model is initialised, trained or compiled, and not what it computes.
_FREE = {"init_std", "embed_std", "dropout_style", "dtype", "remat", "scan", "max_length", "parent", "name"}
_OUTPUT = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a file, and its place in our tree.

    name: the tensor's. paths: our leaf, or those that the tensor holds side by side. layer: index on the stacked axis,
    or None. inputs: leading axes of our kernel that are inputs; 0 for a vector, None for a table that both sides keep
    alike. torch: whether the file keeps the kernel as torch's Linear does, [out, in]. aliases: other names of it.
    """

    name: str
    paths: tuple
    layer: int | None = None
    inputs: int | None = None
    torch: bool = True
    aliases: tuple = ()

    constant = None

    def shape(self, ours):
        """The tensor's shape, from the shape of each of our leaves (without the layer axis)."""
        if self.inputs is None:
            return ours[0]
        rows, columns = math.prod(ours[0][: self.inputs]), sum(math.prod(s[self.inputs :]) for s in ours)
        if self.inputs == 0:
            return (columns,)
        return (columns, rows) if self.torch else (rows, columns)

    def pack(self, parts):
        """Our arrays -> the tensor."""
        if self.inputs is None:
            return parts[0]
        rows = math.prod(parts[0].shape[: self.inputs])
        flat = [x.reshape(rows, -1) for x in parts]  # [in, out]
        flat = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        return flat[0] if self.inputs == 0 else flat.T if self.torch else flat

    def unpack(self, tensor, shapes):
        """The tensor -> arrays of our shapes."""
        if self.inputs is None:
            return [tensor]
        flat = tensor[None] if self.inputs == 0 else tensor.T if self.torch else tensor
        ends = np.cumsum([math.prod(s[self.inputs :]) for s in shapes])[:-1]
        return [x.reshape(s) for x, s in zip(np.split(flat, ends, axis=1), shapes, strict=True)]


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of the transformers library.

    model_type: as in config.json. kind, positions: which of our models it is. model: (config, names of the tensors) ->
    our model. config: our model -> config.json. leaves: our model -> list of Leaf. ignored: regex of tensors that old
    files hold and no model reads. prefix: of all names, and absent from some files.
    """

    title: str
    model_type: str
    kind: type
    positions: str
    model: Callable
    config: Callable
    leaves: Callable
    ignored: str = r"$^"
    prefix: str = ""


def family_of(model):
    """The Family of one of our models. Raises UserError when there is none."""
    for family in FAMILIES:
        if type(model) is family.kind and model.positions == family.positions:
            return family
    what = f"{type(model).__name__} with positions={getattr(model, 'positions', None)!r}"
    known = "EncoderDecoder with 'relative' (T5), Decoder with 'learned' (GPT-2) or 'rope' (Llama)"
    raise UserError(f"the transformers library has no {what}; what can be written: {known}")


def differences(model, other):
    """[(field, model's, other's)] of the fields that decide what a model computes."""
    meaning = {"head_dim": lambda m: m.head_width, "decoder_layers": _decoder_layers}  # of fields that may be None
    value = lambda m, field: meaning.get(field, lambda m: getattr(m, field))(m)
    both = [(f, value(model, f), value(other, f)) for f in type(model).__dataclass_fields__ if f not in _FREE]
    return [(field, ours, theirs) for field, ours, theirs in both if ours != theirs]


def config_of(model):
    """config.json of a model, as a dict.

    Raises:
        UserError: the transformers library cannot say what this model computes; names the field.
    """
    family = family_of(model)
    config = family.config(model)
    for field, ours, theirs in differences(model, family.model(config, ())):
        has = f"the transformers library's {family.title} has {field}={theirs!r}"
        raise UserError(f"{has}; a model with {field}={ours!r} cannot be written")
    return config


def _decoder_layers(model):
    return model.layers if model.decoder_layers is None else model.decoder_layers


def _stacked(layers, rows, theirs, ours, torch=True):
    """Leaves of so many layers from rows (tensor below `theirs`, our path or paths below `ours`, inputs)."""
    return [
        Leaf(f"{theirs.format(n)}.{name}", tuple(f"{ours}/layers/{p}" for p in path.split()), n, inputs, torch)
        for n in range(layers)
        for name, path, inputs in rows
    ]


def _output(model):
    return [] if model.tied else [Leaf(_OUTPUT, ("logits/kernel",), inputs=1)]


def _only(title, config, **supported):
    """Raises UserError unless each of these entries of the config, where present, is what our models compute."""
    for key, value in supported.items():
        if config.get(key, value) != value:
            raise UserError(f"a {title} with {key}={config[key]!r} is not one of our models: they have {value!r}")


def _inverse(table):
    return {ours: theirs for theirs, ours in reversed(table.items())}


# ---- T5 ------------------------------------------------------------------------------------------------------------

_T5_ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu", "gated-gelu": "gated_gelu", "gated-silu": "gated_silu"}


def _t5_model(config, names):
    _only("T5", config, relative_attention_num_buckets=32, relative_attention_max_distance=128)
    # Version 5 of the library writes tie_word_embeddings=True whatever the file holds: the setting's old meaning is in
    # scale_decoder_outputs, and an output matrix counts when it is there.
    tied = config.get("tie_word_embeddings", True)
    scaled = config.get("scale_decoder_outputs", tied)
    return EncoderDecoder(
        vocab_size=config["vocab_size"],
        d_model=config["d_model"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        d_ff=config["d_ff"],
        layers=config["num_layers"],
        decoder_layers=config.get("num_decoder_layers"),
        activation=choose("feed_forward_proj", config.get("feed_forward_proj", "relu"), _T5_ACTIVATIONS),
        eps=config.get("layer_norm_epsilon", 1e-6),
        positions="relative",
        scale_attention=False,
        dropout=config.get("dropout_rate", 0.1),
        tied=tied and (scaled or _OUTPUT not in names),
        tied_scale=scaled,
    )


def _t5_config(model):
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        "d_kv": model.head_width,
        "d_ff": model.d_ff,
        "num_heads": model.heads,
        "num_layers": model.layers,
        "num_decoder_layers": _decoder_layers(model),
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": _inverse(_T5_ACTIVATIONS)[model.activation],
        "layer_norm_epsilon": model.eps,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": model.tied,
        "scale_decoder_outputs": model.tied,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _t5_leaves(model):
    def attention(layer, theirs, ours):
        kernels = [("q", "query", 1), ("k", "key", 1), ("v", "value", 1), ("o", "out", 2)]
        rows = [(f"layer.{layer}.{theirs}.{t}.weight", f"{ours}/{o}/kernel", inputs) for t, o, inputs in kernels]
        return [*rows, (f"layer.{layer}.layer_norm.weight", f"{ours}_norm/scale", 0)]

    def mlp(layer):
        into = [("wi_0", "gate"), ("wi_1", "up")] if model.activation.startswith("gated") else [("wi", "up")]
        kernels = [*into, ("wo", "down")]
        rows = [(f"layer.{layer}.DenseReluDense.{t}.weight", f"mlp/{o}/kernel", 1) for t, o in kernels]
        return [*rows, (f"layer.{layer}.layer_norm.weight", "mlp_norm/scale", 0)]

    own, cross = attention(0, "SelfAttention", "attention"), attention(1, "EncDecAttention", "cross")
    aliases = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *([_OUTPUT] if model.tied else []))
    leaves = [Leaf("shared.weight", ("embed/embedding",), aliases=aliases)]
    encoder, decoder = [*own, *mlp(1)], [*own, *cross, *mlp(2)]
    for side, layers, rows in (("encoder", model.layers, encoder), ("decoder", _decoder_layers(model), decoder)):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        leaves.append(Leaf(bias, (f"{side}/relative_bias/embedding",)))
        leaves += _stacked(layers, rows, side + ".block.{}", side)
        leaves.append(Leaf(f"{side}.final_layer_norm.weight", (f"{side}/norm/scale",), inputs=0))
    return leaves + _output(model)


# ---- GPT-2 ---------------------------------------------------------------------------------------------------------

_GPT2_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}


def _gpt2_model(config, names):
    del names
    dropout = config.get("resid_pdrop", 0.1)
    _only("GPT-2", config, attn_pdrop=dropout, embd_pdrop=dropout, add_cross_attention=False)
    _only("GPT-2", config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    return Decoder(
        vocab_size=config["vocab_size"],
        d_model=config["n_embd"],
        heads=config["n_head"],
        d_ff=config.get("n_inner") or 4 * config["n_embd"],
        layers=config["n_layer"],
        activation=choose("activation_function", config.get("activation_function", "gelu_new"), _GPT2_ACTIVATIONS),
        norm="layer",
        eps=config.get("layer_norm_epsilon", 1e-5),
        bias=True,
        positions="learned",
        max_length=config["n_positions"],
        dropout=dropout,
        dropout_style="gpt2",
        tied=config.get("tie_word_embeddings", True),
    )


def _gpt2_config(model):
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.max_length,
        "n_embd": model.d_model,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.d_ff,
        "activation_function": _inverse(_GPT2_ACTIVATIONS).get(model.activation, "gelu_new"),
        "layer_norm_epsilon": model.eps,
        "attn_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _gpt2_leaves(model):
    def dense(theirs, ours, inputs):
        kernels, biases = (" ".join(f"{name}/{kind}" for name in ours.split()) for kind in ("kernel", "bias"))
        return [(f"{theirs}.weight", kernels, inputs), (f"{theirs}.bias", biases, 0)]

    def norm(theirs, ours):
        return [(f"{theirs}.weight", f"{ours}/scale", 0), (f"{theirs}.bias", f"{ours}/bias", 0)]

    rows = [
        *norm("ln_1", "attention_norm"),
        *dense("attn.c_attn", "attention/query attention/key attention/value", 1),
        *dense("attn.c_proj", "attention/out", 2),
        *norm("ln_2", "mlp_norm"),
        *dense("mlp.c_fc", "mlp/up", 1),
        *dense("mlp.c_proj", "mlp/down", 1),
    ]
    return [
        Leaf("transformer.wte.weight", ("embed/embedding",), aliases=(_OUTPUT,) if model.tied else ()),
        Leaf("transformer.wpe.weight", ("positions/embedding",)),
        *_stacked(model.layers, rows, "transformer.h.{}", "decoder", torch=False),
        *(Leaf(f"transformer.{name}", (path,), inputs=0) for name, path, _ in norm("ln_f", "decoder/norm")),
        *_output(model),
    ]


# ---- Llama ---------------------------------------------------------------------------------------------------------

_LLAMA_ACTIVATIONS = {"silu": "gated_silu", "gelu_pytorch_tanh": "gated_gelu"}


def _llama_model(config, names):
    del names
    heads = config["num_attention_heads"]
    _only("Llama", config, num_key_value_heads=heads, attention_bias=False, mlp_bias=False)
    _plain_rope(config)
    return Decoder(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        heads=heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        d_ff=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        activation=choose("hidden_act", config.get("hidden_act", "silu"), _LLAMA_ACTIVATIONS),
        eps=config.get("rms_norm_eps", 1e-6),
        positions="rope",
        dropout=config.get("attention_dropout", 0.0),
        tied=config.get("tie_word_embeddings", False),
    )


def _plain_rope(config):
    """Raises UserError unless positions rotate as ours do. rope_scaling is what older files call rope_parameters."""
    plain = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    _only("Llama", config, **plain)
    for where in ("rope_parameters", "rope_scaling"):
        rope = config.get(where) or {}
        if not isinstance(rope, dict):
            raise UserError(f"a Llama with {where}={rope!r} is not one of our models: it is no table of settings")
        kind = rope.get("rope_type", rope.get("type", "default"))  # type: what older files call it
        _only("Llama", {f"{where} of rope_type": kind}, **{f"{where} of rope_type": "default"})
        _only("Llama", rope, **plain)
        if unknown := sorted(rope.keys() - plain.keys() - {"rope_type", "type"}):
            raise UserError(f"a Llama with {unknown[0]}={rope[unknown[0]]!r} in {where} is not one of our models")


def _llama_config(model):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "head_dim": model.head_width,
        "hidden_act": _inverse(_LLAMA_ACTIVATIONS).get(model.activation, "silu"),
        "rms_norm_eps": model.eps,
        "rope_theta": 10000.0,
        "attention_dropout": model.dropout,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _llama_leaves(model):
    kernels = [("q", "query", 1), ("k", "key", 1), ("v", "value", 1), ("o", "out", 2)]
    rows = [
        ("input_layernorm.weight", "attention_norm/scale", 0),
        *((f"self_attn.{t}_proj.weight", f"attention/{o}/kernel", inputs) for t, o, inputs in kernels),
        ("post_attention_layernorm.weight", "mlp_norm/scale", 0),
        *((f"mlp.{name}_proj.weight", f"mlp/{name}/kernel", 1) for name in ("gate", "up", "down")),
    ]
    return [
        Leaf("model.embed_tokens.weight", ("embed/embedding",), aliases=(_OUTPUT,) if model.tied else ()),
        *_stacked(model.layers, rows, "model.layers.{}", "decoder"),
        Leaf("model.norm.weight", ("decoder/norm/scale",), inputs=0),
        *_output(model),
    ]


# Old T5 files have a bias that cross-attention never used, old GPT-2 files the causal mask.
_T5_IGNORED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
_GPT2_IGNORED = r"transformer\.h\.\d+\.attn\.(masked_)?bias"
FAMILIES = (
    Family("T5", "t5", EncoderDecoder, "relative", _t5_model, _t5_config, _t5_leaves, _T5_IGNORED),
    Family("GPT-2", "gpt2", Decoder, "learned", _gpt2_model, _gpt2_config, _gpt2_leaves, _GPT2_IGNORED, "transformer."),
    Family("Llama", "llama", Decoder, "rope", _llama_model, _llama_config, _llama_leaves),
)
