"""Llama: a Decoder with rotary positions."""

from paradigm.hf import Leaf, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from t5like.hf.common import OUTPUT, prefixed, text_family
from t5like.models import Decoder

ACTIVATIONS = {"silu": "gated_silu", "gelu_pytorch_tanh": "gated_gelu"}


def _model(config, tensors):
    del tensors
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    config.only(num_key_value_heads=heads, attention_bias=False, mlp_bias=False)
    _plain_rope(config)
    return Decoder(
        vocab_size=config.get("vocab_size"),
        d_model=width,
        heads=heads,
        head_dim=config.get("head_dim", None) or width // heads,
        d_ff=config.get("intermediate_size"),
        layers=config.get("num_hidden_layers"),
        activation=config.choose("hidden_act", "silu", ACTIVATIONS),
        eps=config.get("rms_norm_eps", 1e-6),
        positions="rope",
        dropout=config.get("attention_dropout", 0.0),
        tied=config.get("tie_word_embeddings", False),
    )


def _plain_rope(config):
    """Refuses positions that do not rotate as ours do. rope_scaling is what older files call rope_parameters, and type
    rope_type."""
    for part in (config, config.part("rope_parameters"), config.part("rope_scaling")):
        part.only(rope_theta=10000.0, partial_rotary_factor=1.0)
        part.only(rope_type="default", type="default")


def _config(model):
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
        "hidden_act": inverse(ACTIVATIONS).get(model.activation, "silu"),
        "rms_norm_eps": model.eps,
        "rope_theta": 10000.0,
        "attention_dropout": model.dropout,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _leaves(model):
    kernels = [("q", "query", 1), ("k", "key", 1), ("v", "value", 1), ("o", "out", 2)]
    rows = [
        *norm("input_layernorm", "attention_norm", bias=False),
        *(r for t, o, n in kernels for r in dense(f"self_attn.{t}_proj", f"attention/{o}", n, bias=False)),
        *norm("post_attention_layernorm", "mlp_norm", bias=False),
        *(r for name in ("gate", "up", "down") for r in dense(f"mlp.{name}_proj", f"mlp/{name}", bias=False)),
    ]
    return [
        Leaf("model.embed_tokens.weight", ("embed/embedding",), aliases=(OUTPUT,) if model.tied else ()),
        *stacked(model.layers, "model.layers.{}", "decoder", rows),
        *plain(norm("model.norm", "decoder/norm", bias=False)),
        *([] if model.tied else plain(dense("lm_head", "logits", bias=False))),
    ]


LLAMA = text_family(
    "Llama",
    "llama",
    Decoder,
    "rope",
    _model,
    _config,
    _leaves,
    rename=prefixed("model."),
    ignored=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",  # old files hold the frequencies
    irrelevant=("max_position_embeddings", "pretraining_tp"),
)
