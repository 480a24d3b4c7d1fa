"""BART and mBART: an EncoderDecoder with learned positions on both sides and a vector added to tied logits."""

from paradigm.hf import MEANING, Leaf, Table, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from t5like.hf.common import ACTIVATIONS, decoder_layers, prefixed, text_family
from t5like.models import EncoderDecoder

_OFFSET = 2  # the library's BartLearnedPositionalEmbedding: the first two rows are of padding
_LOGITS_BIAS = "final_logits_bias"  # not in the files of a bare BartModel, as bart-base and bart-large are
# Of training or of classifiers, or read by no version of the library.
_IRRELEVANT = ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "classif_dropout", "num_hidden_layers",
               "add_bias_logits", "extra_pos_embeddings", "static_position_embeddings", "decoder_start_token_id",
               "force_bos_token_to_be_generated", "init_std")  # fmt: skip


def _model(post):
    def model(config, tensors):
        del tensors
        d_ff, heads = config.get("encoder_ffn_dim"), config.get("encoder_attention_heads")
        config.only(decoder_ffn_dim=d_ff, decoder_attention_heads=heads, is_encoder_decoder=True)
        config.only(tie_word_embeddings=True, normalize_embedding=True, add_final_layer_norm=not post)
        config.only(normalize_before=not post)
        return EncoderDecoder(
            vocab_size=config.get("vocab_size"),
            d_model=config.get("d_model"),
            heads=heads,
            d_ff=d_ff,
            layers=config.get("encoder_layers"),
            decoder_layers=config.get("decoder_layers"),
            activation=config.choose("activation_function", "gelu", ACTIVATIONS),
            norm="layer",
            norm_place="post" if post else "pre",
            input_norm=True,
            eps=1e-5,
            bias=True,
            positions="learned",
            max_length=config.get("max_position_embeddings") + _OFFSET,
            position_offset=_OFFSET,
            scale_embeddings=config.get("scale_embedding", False),
            dropout=config.get("dropout", 0.1),
            attention_dropout=config.get("attention_dropout", 0.0),
            dropout_style="gpt2",
            tied=True,
            logits_bias=True,
        )

    return model


def _config(kind, architecture, post):
    def config(model):
        return {
            "architectures": [architecture],
            "model_type": kind,
            "vocab_size": model.vocab_size,
            "d_model": model.d_model,
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), model.heads),
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), model.d_ff),
            "encoder_layers": model.layers,
            "decoder_layers": decoder_layers(model),
            "num_hidden_layers": model.layers,
            "activation_function": inverse(ACTIVATIONS).get(model.activation, "gelu"),
            "max_position_embeddings": model.places,
            "scale_embedding": model.scale_embeddings,
            "normalize_before": not post,
            "add_final_layer_norm": not post,
            "dropout": model.dropout,
            "attention_dropout": MEANING["attention_dropout"](model),
            "is_encoder_decoder": True,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        }

    return config


def _leaves(post):
    def attention(theirs, ours):
        parts = [("q_proj", "query", 1), ("k_proj", "key", 1), ("v_proj", "value", 1), ("out_proj", "out", 2)]
        rows = [row for t, o, n in parts for row in dense(f"{theirs}.{t}", f"{ours}/{o}", n)]
        return [*rows, *norm(f"{theirs}_layer_norm", f"{ours}_norm")]

    own, cross = attention("self_attn", "attention"), attention("encoder_attn", "cross")
    mlp = [*dense("fc1", "mlp/up"), *dense("fc2", "mlp/down"), *norm("final_layer_norm", "mlp_norm")]

    def leaves(model):
        aliases = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
        found = [
            Leaf("model.shared.weight", ("embed/embedding",), aliases=aliases),
            Leaf(_LOGITS_BIAS, ("head/bias",), Table(1), missing=0.0),
        ]
        sides = (
            ("encoder", model.layers, "positions", [*own, *mlp]),
            ("decoder", decoder_layers(model), "decoder_positions", [*own, *cross, *mlp]),
        )
        for side, layers, positions, rows in sides:
            found.append(Leaf(f"model.{side}.embed_positions.weight", (f"{positions}/embedding",)))
            found += plain(norm(f"model.{side}.layernorm_embedding", f"{side}/pre_norm"))
            found += stacked(layers, f"model.{side}.layers.{{}}", side, rows)
            if not post:
                found += plain(norm(f"model.{side}.layer_norm", f"{side}/norm"))
        return found

    return leaves


def _family(title, kind, architecture, post):
    return text_family(
        title,
        kind,
        EncoderDecoder,
        "learned",
        _model(post),
        _config(kind, architecture, post),
        _leaves(post),
        rename=prefixed("model.", _LOGITS_BIAS),
        irrelevant=_IRRELEVANT,
        ignored=r"model\.(encoder|decoder)\.version",
    )


BART = _family("BART", "bart", "BartForConditionalGeneration", True)
MBART = _family("mBART", "mbart", "MBartForConditionalGeneration", False)
