"""Llama, Mistral, Qwen2 and Qwen3: a Decoder with rotary positions, RMSNorm and a gated MLP.

They differ in where biases are, in norms of queries and keys, and in windows of attention.
"""

import functools

from paradigm.hf import MEANING, Leaf, Vector, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from paradigm.rope import LinearScaling, Llama3Scaling, YarnScaling
from t5like.hf.common import OUTPUT, prefixed, text_family
from t5like.models import Decoder

ACTIVATIONS = {"silu": "gated_silu", "gelu_pytorch_tanh": "gated_gelu", "gelu_new": "gated_gelu",
               "gelu": "gated_gelu_exact"}  # fmt: skip


def _model(config, **fields):
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    theta, scaling = _rope(config)
    kv_heads = config.get("num_key_value_heads", None) or heads
    fields = {"head_dim": config.get("head_dim", None) or width // heads, "kv_heads": kv_heads} | fields
    return Decoder(
        vocab_size=config.get("vocab_size"),
        d_model=width,
        heads=heads,
        d_ff=config.get("intermediate_size"),
        layers=config.get("num_hidden_layers"),
        activation=config.choose("hidden_act", "silu", ACTIVATIONS),
        eps=config.get("rms_norm_eps", 1e-6),
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        attention_dropout=config.get("attention_dropout", 0.0),
        tied=config.get("tie_word_embeddings", False),
        **fields,
    )


def _llama(config, tensors):
    attention = config.get("attention_bias", False)
    config.only(rope_interleaved=False)  # in SmolLM's files, and read by no version of the library
    return _model(config, bias=config.get("mlp_bias", False), qkv_bias=attention, out_bias=attention)


def _mistral(config, tensors):
    """What is left out is the library's default; null is no window, and a key head for each head."""
    absent = lambda name: name not in config.entries
    window = config.get("sliding_window", 4096 if absent("sliding_window") else None, int)
    more = {"kv_heads": 8} if absent("num_key_value_heads") else {}
    return _model(config, window=window, **more)


def _qwen2(config, tensors):
    config.only(use_mrope=False)  # in Qwen2.5's files, and read by no version of the library
    return _model(config, qkv_bias=True, window=_window(config))


def _qwen3(config, tensors):
    attention = config.get("attention_bias", False)
    head_dim = config.get("head_dim", 128)
    how = {"qkv_bias": attention, "out_bias": attention, "head_dim": head_dim, "window": _window(config)}
    return _model(config, qk_norm=True, **how)


def _window(config):
    """Qwen's window of attention, or None; ours is one for all layers."""
    layers, used = config.get("num_hidden_layers"), config.get("use_sliding_window", False)
    size = config.get("sliding_window", None if "sliding_window" in config.entries else 4096, int)
    size, first = size if used else None, config.get("max_window_layers", 28)
    given = config.get("layer_types", None, list)
    windowed = lambda n: given[n] == "sliding_attention" if given else size is not None and n >= first
    if given and (len(given) != layers or {*given} - {"sliding_attention", "full_attention"}):
        config.refuse("layer_types", "each of their layers has full or sliding attention")
    kinds = {windowed(n) for n in range(layers)}
    if len(kinds) > 1:
        config.refuse("layer_types" if given else "max_window_layers", "they have one window for all layers")
    if kinds == {True} and size is None:
        config.refuse("layer_types", "sliding attention has no size here")
    return size if kinds == {True} else None


def _rope(config):
    """(theta, scaling). rope_scaling is what older files call rope_parameters, and type rope_type."""
    config.only(partial_rotary_factor=1.0)
    part = config.part("rope_parameters")
    if config.entries.get("rope_scaling"):
        if part.entries:
            config.refuse("rope_scaling", "rope_parameters beside it says the same")
        part = config.part("rope_scaling")
    else:
        config.get("rope_scaling", None, dict)
    part.only(partial_rotary_factor=1.0)
    outer = config.get("rope_theta", 10000.0)
    theta = part.get("rope_theta", outer)
    name = "rope_type" if part.entries.get("rope_type") else "type"
    part.only(type=part.entries.get(name) or "default")
    make = part.choose(name, "default", {"default": None, "linear": _linear, "llama3": _llama3, "yarn": _yarn})
    return theta, make and make(part, lambda: part.get("original_max_position_embeddings", None) or
                                config.get("max_position_embeddings"))  # fmt: skip


def _linear(part, length):
    del length
    return LinearScaling(part.get("factor", kind=float))


def _llama3(part, length):
    number = functools.partial(part.get, kind=float)
    return Llama3Scaling(number("factor"), number("low_freq_factor"), number("high_freq_factor"), length())


def _yarn(part, length):
    number = functools.partial(part.get, kind=float)
    return YarnScaling(
        number("factor"),
        length(),
        beta_fast=part.get("beta_fast", 32.0),
        beta_slow=part.get("beta_slow", 1.0),
        attention_factor=part.get("attention_factor", None, float),
        truncate=part.get("truncate", True),
    )


def _scaling(scaling):
    """rope_scaling of config.json."""
    if scaling is None:
        return None
    kind = {LinearScaling: "linear", Llama3Scaling: "llama3", YarnScaling: "yarn"}[type(scaling)]
    fields = {name: getattr(scaling, name) for name in type(scaling).__dataclass_fields__}
    if "original_length" in fields:
        fields["original_max_position_embeddings"] = fields.pop("original_length")
    return {"rope_type": kind} | {name: value for name, value in fields.items() if value is not None}


def _config(model, model_type, architecture, own):
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_heads,
        "head_dim": model.head_width,
        "hidden_act": inverse(ACTIVATIONS).get(model.activation, "silu"),
        "rms_norm_eps": model.eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": _scaling(model.rope_scaling),
        "attention_dropout": MEANING["attention_dropout"](model),
        "tie_word_embeddings": model.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **own(model),
    }


def _attention_bias(model):
    return MEANING["qkv_bias"](model)


def _qwen_window(model):
    if model.window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": model.window, "max_window_layers": 0}


def _leaves(model):
    bias = {"o": MEANING["out_bias"](model)}
    kernels = [("q", "query", 1), ("k", "key", 1), ("v", "value", 1), ("o", "out", 2)]
    attention = [
        row
        for t, o, n in kernels
        for row in dense(f"self_attn.{t}_proj", f"attention/{o}", n, bias=bias.get(t, _attention_bias(model)))
    ]
    if model.qk_norm:
        attention += [(f"self_attn.{x[0]}_norm.weight", f"attention/{x}_norm/scale", Vector) for x in ("query", "key")]
    rows = [
        *norm("input_layernorm", "attention_norm", bias=False),
        *attention,
        *norm("post_attention_layernorm", "mlp_norm", bias=False),
        *(r for name in ("gate", "up", "down") for r in dense(f"mlp.{name}_proj", f"mlp/{name}", bias=model.bias)),
    ]
    return [
        Leaf("model.embed_tokens.weight", ("embed/embedding",), aliases=(OUTPUT,) if model.tied else ()),
        *stacked(model.layers, "model.layers.{}", "decoder", rows),
        *plain(norm("model.norm", "decoder/norm", bias=False)),
        *([] if model.tied else plain(dense("lm_head", "logits", bias=False))),
    ]


def _family(title, model_type, model, own):
    architecture = f"{title}ForCausalLM"
    return text_family(
        title,
        model_type,
        Decoder,
        "rope",
        model,
        lambda model: _config(model, model_type, architecture, own),
        _leaves,
        free=frozenset({"max_length", "dropout"}),  # the library drops attention's weights alone
        rename=prefixed("model."),
        ignored=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",  # old files hold the frequencies
        irrelevant=("is_decoder", "is_llama_config", "max_position_embeddings", "pretraining_tp"),
    )


LLAMA = _family("Llama", "llama", _llama, lambda m: {"attention_bias": _attention_bias(m), "mlp_bias": m.bias})
MISTRAL = _family("Mistral", "mistral", _mistral, lambda m: {"sliding_window": m.window})
QWEN2 = _family("Qwen2", "qwen2", _qwen2, _qwen_window)
QWEN3 = _family("Qwen3", "qwen3", _qwen3, lambda m: {"attention_bias": _attention_bias(m), **_qwen_window(m)})
LLAMAS = (LLAMA, MISTRAL, QWEN2, QWEN3)
