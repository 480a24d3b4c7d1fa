"""T5 v1.0 and v1.1, mT5 and UMT5: an EncoderDecoder with relative positions, UMT5's for each layer."""

from paradigm.hf import Leaf, Table, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from t5like.hf.common import OUTPUT, decoder_layers, text_family
from t5like.models import EncoderDecoder

# feed_forward_proj: (ours, and what the library derives from it and writes beside it: dense_act_fn, is_gated_act)
ACTIVATIONS = {
    "relu": ("relu", "relu", False),
    "gelu_new": ("gelu", "gelu_new", False),
    "gelu": ("gelu_exact", "gelu", False),
    "silu": ("silu", "silu", False),
    "gated-gelu": ("gated_gelu", "gelu_new", True),
    "gated-gelu_new": ("gated_gelu", "gelu_new", True),
    "gated-silu": ("gated_silu", "silu", True),
}
_NAMES = inverse({name: ours for name, (ours, *_) in ACTIVATIONS.items()})
# Old files have a bias that cross-attention never used.
_IGNORED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"


def _model(config, tied, tied_scale, feed_forward_proj="relu", positions="relative"):
    activation, function, gated = config.choose("feed_forward_proj", feed_forward_proj, ACTIVATIONS)
    config.only(dense_act_fn=function, is_gated_act=gated)
    config.only(relative_attention_num_buckets=32, relative_attention_max_distance=128)
    config.only(pad_token_id=0, decoder_start_token_id=0)  # ours pads with 0, and begins with it
    return EncoderDecoder(
        vocab_size=config.get("vocab_size"),
        d_model=config.get("d_model"),
        heads=config.get("num_heads"),
        head_dim=config.get("d_kv"),
        d_ff=config.get("d_ff"),
        layers=config.get("num_layers"),
        decoder_layers=config.get("num_decoder_layers", None),
        activation=activation,
        eps=config.get("layer_norm_epsilon", 1e-6),
        positions=positions,
        scale_attention=False,
        dropout=config.get("dropout_rate", 0.1),
        tied=tied,
        tied_scale=tied_scale,
    )


def _t5(config, tensors, **how):
    # Version 5 of the library writes tie_word_embeddings=True whatever the file holds: the setting's old meaning is in
    # scale_decoder_outputs, and an output matrix counts when it is there.
    tied = config.get("tie_word_embeddings", True)
    scaled = config.get("scale_decoder_outputs", tied)
    tied = tied and (scaled or OUTPUT not in tensors)
    if scaled and not tied:
        config.refuse("scale_decoder_outputs", "they scale the logits of tied embeddings alone")
    return _model(config, tied, scaled, **how)


def _mt5(config, tensors):
    """The library ties an output matrix that a file lacks, and never scales; its tie_word_embeddings says nothing."""
    return _model(config, OUTPUT not in tensors, False, feed_forward_proj="gated-gelu")


def _entries(model, model_type, architecture):
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        "d_kv": model.head_width,
        "d_ff": model.d_ff,
        "num_heads": model.heads,
        "num_layers": model.layers,
        "num_decoder_layers": decoder_layers(model),
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": _NAMES.get(model.activation, "relu"),
        "layer_norm_epsilon": model.eps,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": model.tied,
        "scale_decoder_outputs": model.tied_scale,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _leaves(model):
    def attention(layer, theirs, ours):
        kernels = [("q", "query", 1), ("k", "key", 1), ("v", "value", 1), ("o", "out", 2)]
        rows = [r for t, o, n in kernels for r in dense(f"layer.{layer}.{theirs}.{t}", f"{ours}/{o}", n, bias=False)]
        return [*rows, *norm(f"layer.{layer}.layer_norm", f"{ours}_norm", bias=False)]

    def mlp(layer):
        into = [("wi_0", "gate"), ("wi_1", "up")] if model.activation.startswith("gated") else [("wi", "up")]
        kernels = [*into, ("wo", "down")]
        rows = [r for t, o in kernels for r in dense(f"layer.{layer}.DenseReluDense.{t}", f"mlp/{o}", bias=False)]
        return [*rows, *norm(f"layer.{layer}.layer_norm", "mlp_norm", bias=False)]

    own, cross = attention(0, "SelfAttention", "attention"), attention(1, "EncDecAttention", "cross")
    aliases = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *([OUTPUT] if model.tied else []))
    leaves = [Leaf("shared.weight", ("embed/embedding",), aliases=aliases)]
    table, per_layer = "SelfAttention.relative_attention_bias.weight", model.positions == "relative_per_layer"
    own = [*own, (f"layer.0.{table}", "relative_bias/embedding", Table())] if per_layer else own
    encoder, decoder = [*own, *mlp(1)], [*own, *cross, *mlp(2)]
    for side, layers, rows in (("encoder", model.layers, encoder), ("decoder", decoder_layers(model), decoder)):
        if not per_layer:
            leaves.append(Leaf(f"{side}.block.0.layer.0.{table}", (f"{side}/relative_bias/embedding",)))
        leaves += stacked(layers, side + ".block.{}", side, rows)
        leaves += plain(norm(f"{side}.final_layer_norm", f"{side}/norm", bias=False))
    return leaves + ([] if model.tied else plain(dense("lm_head", "logits", bias=False)))


def _family(title, model_type, model, architecture, positions="relative", **how):
    config = lambda model: _entries(model, model_type, architecture)
    how |= {"ignored": _IGNORED}
    return text_family(title, model_type, EncoderDecoder, positions, model, config, _leaves, **how)


T5 = _family("T5", "t5", _t5, "T5ForConditionalGeneration")
MT5 = _family(
    "mT5",
    "mt5",
    _mt5,
    "MT5ForConditionalGeneration",
    irrelevant=("tie_word_embeddings", "scale_decoder_outputs"),
)
UMT5 = _family(
    "UMT5",
    "umt5",
    lambda config, tensors: _t5(config, tensors, feed_forward_proj="gated-gelu", positions="relative_per_layer"),
    "UMT5ForConditionalGeneration",
    positions="relative_per_layer",
)
