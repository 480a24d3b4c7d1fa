"""ModernBERT: an Encoder with norms before each branch, rotary positions, a gated MLP and layers of local attention;
the bare model, as sentence encoders are, has no head for hidden tokens."""

import dataclasses

from paradigm.hf import MEANING, Leaf, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from paradigm.hf.leaves import Absent, Vector
from t5like.hf.common import ACTIVATIONS as OF_HEAD
from t5like.hf.common import prefixed, text_family
from t5like.models import Encoder

ACTIVATIONS = {"gelu": "gated_gelu_exact", "gelu_pytorch_tanh": "gated_gelu", "silu": "gated_silu"}
THETA, LOCAL_THETA = 160_000.0, 10_000.0
_BIAS = "decoder.bias"  # of the head


def _thetas(config):
    """(of full, of local attention): in rope_parameters, or where older files say it."""
    config.only(rope_scaling=None)
    whole, found = config.part("rope_parameters"), []
    for kind, name, default in (("full", "global", THETA), ("sliding", "local", LOCAL_THETA)):
        part = whole.part(f"{kind}_attention")
        part.only(rope_type="default", partial_rotary_factor=1.0)
        found.append(part.get("rope_theta", config.get(f"{name}_rope_theta", default)))
    return found


def _rhythm(config):
    """Every how many layers, from the first on, one sees all. Of files that list the layers it is found again."""
    layers, given = config.get("num_hidden_layers"), config.get("layer_types", None, list)
    every = config.get("global_attn_every_n_layers", 3)
    kinds = lambda n: ["sliding_attention" if i % n else "full_attention" for i in range(layers)]
    if given is None or kinds(every) == given:
        return every
    if "global_attn_every_n_layers" in config.entries:
        config.refuse("global_attn_every_n_layers", "layer_types beside it says something else")
    found = next((n for n in range(1, layers + 1) if kinds(n) == given), None)
    if found is None:
        config.refuse("layer_types", "they have full attention in every n-th layer from the first on")
    return found


def _model(config, tensors):
    theta, local_theta = _thetas(config)
    width = config.get("local_attention", 128)
    if width % 2:
        config.refuse("local_attention", "a window has as many tokens to each side")
    for name in ("attention_bias", "mlp_bias", "norm_bias"):
        config.only(**{name: False})
    config.only(decoder_bias=True, tie_word_embeddings=True, position_embedding_type="absolute")
    return Encoder(
        vocab_size=config.get("vocab_size", 50368),
        d_model=config.get("hidden_size", 768),
        heads=config.get("num_attention_heads", 12),
        d_ff=config.get("intermediate_size", 1152),
        layers=config.get("num_hidden_layers"),
        activation=config.choose("hidden_activation", "gelu", ACTIVATIONS),
        norm="layer_unbiased",
        input_norm=True,
        first_norm=False,
        eps=config.get("norm_eps", 1e-5),
        positions="rope",
        rope_theta=theta,
        local_theta=local_theta,
        window=width // 2 + 1,
        global_every=_rhythm(config),
        attention_dropout=config.get("attention_dropout", 0.0),
        tied=True,
        head=_BIAS in tensors,
        head_activation=config.choose("classifier_activation", "gelu", OF_HEAD),  # of the head for hidden tokens too
    )


def _config(model):
    kinds = ["sliding_attention" if i % (model.global_every or 1) else "full_attention" for i in range(model.layers)]
    return {
        "architectures": ["ModernBertForMaskedLM" if model.head else "ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_attention_heads": model.heads,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.layers,
        "hidden_activation": inverse(ACTIVATIONS).get(model.activation, "gelu"),
        "classifier_activation": inverse(OF_HEAD).get(model.head_activation, "gelu"),
        "norm_eps": model.eps,
        "layer_types": kinds,
        "local_attention": 2 * ((model.window or 65) - 1),
        "global_attn_every_n_layers": model.global_every or 1,
        "global_rope_theta": model.rope_theta,
        "local_rope_theta": model.rope_theta if model.local_theta is None else model.local_theta,
        "attention_dropout": MEANING["attention_dropout"](model),
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    }


def _leaves(model):
    rows = [
        *dense("attn.Wqkv", "attention/query attention/key attention/value", bias=False),
        *dense("attn.Wo", "attention/out", 2, bias=False),
        *norm("mlp_norm", "mlp_norm", bias=False),
        *dense("mlp.Wi", "mlp/gate mlp/up", bias=False),
        *dense("mlp.Wo", "mlp/down", bias=False),
        *norm("attn_norm", "attention_norm", bias=False),
    ]
    layers = stacked(model.layers, "model.layers.{}", "encoder", rows)
    head = dense("head.dense", "head/dense", bias=False) + norm("head.norm", "head/norm", bias=False)
    return [
        Leaf("model.embeddings.tok_embeddings.weight", ("embed/embedding",), aliases=("decoder.weight",)),
        *plain(norm("model.embeddings.norm", "encoder/pre_norm", bias=False)),
        # The first block has no norm there; ours has one like all blocks, which nothing reads.
        *(
            dataclasses.replace(x, how=Absent(1.0)) if x.name == "model.layers.0.attn_norm.weight" else x
            for x in layers
        ),
        *plain(norm("model.final_norm", "encoder/norm", bias=False)),
        *([*plain(head), Leaf(_BIAS, ("head/bias",), Vector)] if model.head else []),
    ]


MODERNBERT = text_family(
    "ModernBERT",
    "modernbert",
    Encoder,
    "rope",
    _model,
    _config,
    _leaves,
    rename=prefixed("model.", "head.", "decoder."),
    free=frozenset({"max_length", "dropout"}),
    meaning={"head_activation": lambda m: m.head_activation or m.activation},
    irrelevant=(
        *("max_position_embeddings", "initializer_cutoff_factor", "deterministic_flash_attn", "reference_compile"),
        *(
            "sparse_prediction",
            "sparse_pred_ignore_index",
            "repad_logits_with_grad",
            "embedding_dropout",
            "mlp_dropout",
        ),
        *("classifier_pooling", "classifier_bias", "cls_token_id", "layer_norm_eps"),
    ),
)
