"""GPT-2: a Decoder with learned positions."""

from paradigm.hf import MEANING, Leaf, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from t5like.hf.common import ACTIVATIONS, OUTPUT, prefixed, text_family
from t5like.models import Decoder

# Of heads that classify; the order of the softmax's arithmetic; n_ctx is what old files call n_positions beside it.
_IRRELEVANT = ("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
               "summary_use_proj", "reorder_and_upcast_attn", "n_ctx",
    "predict_special_tokens", "is_decoder")  # fmt: skip


def _model(config, tensors):
    del tensors
    dropout = config.get("resid_pdrop", 0.1)
    config.only(embd_pdrop=dropout, add_cross_attention=False)
    config.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    width = config.get("n_embd")
    return Decoder(
        vocab_size=config.get("vocab_size"),
        d_model=width,
        heads=config.get("n_head"),
        d_ff=config.get("n_inner", None) or 4 * width,
        layers=config.get("n_layer"),
        activation=config.choose("activation_function", "gelu_new", ACTIVATIONS),
        norm="layer",
        eps=config.get("layer_norm_epsilon", 1e-5),
        bias=True,
        positions="learned",
        max_length=config.get("n_positions"),
        dropout=dropout,
        attention_dropout=config.get("attn_pdrop", 0.1),
        dropout_style="gpt2",
        tied=config.get("tie_word_embeddings", True),
    )


def _config(model):
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.max_length,
        "n_embd": model.d_model,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.d_ff,
        "activation_function": inverse(ACTIVATIONS).get(model.activation, "gelu_new"),
        "layer_norm_epsilon": model.eps,
        "attn_pdrop": MEANING["attention_dropout"](model),
        "embd_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _leaves(model):
    rows = [
        *norm("ln_1", "attention_norm"),
        *dense("attn.c_attn", "attention/query attention/key attention/value", torch=False),
        *dense("attn.c_proj", "attention/out", 2, torch=False),
        *norm("ln_2", "mlp_norm"),
        *dense("mlp.c_fc", "mlp/up", torch=False),
        *dense("mlp.c_proj", "mlp/down", torch=False),
    ]
    return [
        Leaf("transformer.wte.weight", ("embed/embedding",), aliases=(OUTPUT,) if model.tied else ()),
        Leaf("transformer.wpe.weight", ("positions/embedding",)),
        *stacked(model.layers, "transformer.h.{}", "decoder", rows),
        *plain(norm("transformer.ln_f", "decoder/norm")),
        *([] if model.tied else plain(dense("lm_head", "logits", bias=False))),
    ]


GPT2 = text_family(
    "GPT-2",
    "gpt2",
    Decoder,
    "learned",
    _model,
    _config,
    _leaves,
    free=frozenset(),
    rename=prefixed("transformer."),
    ignored=r"transformer\.h\.\d+\.attn\.(masked_)?bias",  # old files hold the causal mask
    irrelevant=_IRRELEVANT,
)
