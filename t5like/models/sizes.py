"""Models by the name of their size and style, as their papers and released checkpoints have them."""

from paradigm.errors import UserError, build, choose
from paradigm.rope import Llama3Scaling
from t5like.models.networks import Decoder, Encoder, EncoderDecoder

# d_model, heads, head_dim, d_ff, layers; from the t5x configs examples/t5/t5_1_1 and t5_1_0 (3b and 11b of v1.0 as the
# released checkpoints). `tiny` is this project's, for tests and two cores.
T5_SIZES = {
    "1.1": {
        "tiny": (128, 4, 32, 320, 2),
        "small": (512, 6, 64, 1024, 8),
        "base": (768, 12, 64, 2048, 12),
        "large": (1024, 16, 64, 2816, 24),
        "xl": (2048, 32, 64, 5120, 24),
        "xxl": (4096, 64, 64, 10240, 24),
    },
    "1.0": {
        "tiny": (128, 4, 32, 512, 2),
        "small": (512, 8, 64, 2048, 6),
        "base": (768, 12, 64, 3072, 12),
        "large": (1024, 16, 64, 4096, 24),
        "3b": (1024, 32, 128, 16384, 24),
        "11b": (1024, 128, 128, 65536, 24),
    },
}
T5_SIZES["1.1"] |= {"3b": T5_SIZES["1.1"]["xl"], "11b": T5_SIZES["1.1"]["xxl"]}
T5_SIZES |= {"mt5": T5_SIZES["1.1"], "umt5": T5_SIZES["1.1"]}

# d_model, heads, layers: Radford et al. 2019, table 2, and the released models; `8b` is Llama 3's (Llama Team 2024,
# table 3; its other widths are in models/llama_8b.gin); `tiny` and `1b` are this project's.
GPT_SIZES = {
    "tiny": (128, 4, 2),
    "124m": (768, 12, 12),
    "355m": (1024, 16, 24),
    "774m": (1280, 20, 36),
    "1.5b": (1600, 25, 48),
    "1b": (2048, 16, 20),
    "8b": (4096, 32, 32),
}
GPT_SIZES |= {
    "small": GPT_SIZES["124m"],
    "medium": GPT_SIZES["355m"],
    "large": GPT_SIZES["774m"],
    "xl": GPT_SIZES["1.5b"],
}
# Decoders of other families: what their papers and the config.json of their released checkpoints have.
TINY = {"d_model": 128, "heads": 4, "kv_heads": 2, "layers": 2, "d_ff": 384}
LLAMA3 = {"rope_theta": 500_000.0, "kv_heads": 8}
DECODERS = {
    # Touvron et al. 2023 ("LLaMA"), table 2, whose 7B is Llama 2's too; Llama Team 2024 ("The Llama 3 Herd of
    # Models"), table 3.
    "llama": {
        "tiny": TINY,
        "2-7b": {"d_model": 4096, "heads": 32, "layers": 32, "d_ff": 11008},
        "3.1-8b": {
            "d_model": 4096,
            "heads": 32,
            "layers": 32,
            "d_ff": 14336,
            "rope_scaling": Llama3Scaling(),
            **LLAMA3,
        },
        "3.2-1b": {"d_model": 2048, "heads": 32, "layers": 16, "d_ff": 8192, "tied": True}
        | {"rope_scaling": Llama3Scaling(factor=32.0), **LLAMA3},
    },
    # Jiang et al. 2023 ("Mistral 7B"), table 1; version 0.1, whose attention has a window.
    "mistral": {"tiny": TINY, "7b": {"d_model": 4096, "heads": 32, "kv_heads": 8, "layers": 32, "d_ff": 14336}},
    # Yang et al. 2024 ("Qwen2 Technical Report"), table 1.
    "qwen2": {
        "tiny": TINY,
        "0.5b": {"d_model": 896, "heads": 14, "kv_heads": 2, "layers": 24, "d_ff": 4864, "tied": True},
        "1.5b": {"d_model": 1536, "heads": 12, "kv_heads": 2, "layers": 28, "d_ff": 8960, "tied": True},
        "7b": {"d_model": 3584, "heads": 28, "kv_heads": 4, "layers": 28, "d_ff": 18944},
    },
    # Yang et al. 2025 ("Qwen3 Technical Report"), table 1; heads are 128 wide whatever the width.
    "qwen3": {
        "tiny": TINY,
        "0.6b": {"d_model": 1024, "heads": 16, "kv_heads": 8, "layers": 28, "d_ff": 3072, "tied": True},
        "1.7b": {"d_model": 2048, "heads": 16, "kv_heads": 8, "layers": 28, "d_ff": 6144, "tied": True},
        "4b": {"d_model": 2560, "heads": 32, "kv_heads": 8, "layers": 36, "d_ff": 9728, "tied": True},
        "8b": {"d_model": 4096, "heads": 32, "kv_heads": 8, "layers": 36, "d_ff": 12288},
    },
}
OF_DECODERS = {
    "llama": {"eps": 1e-5},
    "mistral": {"eps": 1e-5, "window": 4096},
    "qwen2": {"eps": 1e-6, "qkv_bias": True, "rope_theta": 1_000_000.0},
    "qwen3": {"eps": 1e-6, "qk_norm": True, "rope_theta": 1_000_000.0, "head_dim": 128},
}


def t5(size, vocab_size=None, version="1.1", **overrides):
    """A T5 EncoderDecoder by name (Raffel et al. 2020; v1.1: gated GELU after Shazeer 2020, no dropout, untied).

    Args:
        size: tiny, small, base, large, xl or 3b, xxl or 11b (v1.0: 3b and 11b only).
        vocab_size: rows of its tables; None: as the vocabulary has ids, rounded up (objective.bind).
        version: "1.1", "1.0" (ReLU, tied with logits scaled by d_model ** -0.5, dropout 0.1), mt5 (as 1.1: Xue et al.
            2021) or umt5 (relative positions of each layer's own: Chung et al. 2023).
        overrides: any field of EncoderDecoder.

    Raises:
        UserError: an unknown version, size or field (the nearest is named), or heads that do not divide.
    """
    sizes = choose("T5 version", str(version), T5_SIZES)
    d_model, heads, head_dim, d_ff, layers = choose(f"T5 v{version} size", str(size).lower(), sizes)
    fields = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "heads": heads,
        "head_dim": head_dim,
        "d_ff": d_ff,
        "layers": layers,
    }
    fields |= {"positions": "relative_per_layer" if version == "umt5" else "relative", "scale_attention": False}
    if str(version) == "1.0":
        fields |= {"activation": "relu", "tied": True, "tied_scale": True, "dropout": 0.1}
    return _checked(build(EncoderDecoder, fields, overrides))


def gpt(size, vocab_size=None, style="rope", **overrides):
    """A Decoder by name.

    Args:
        size: tiny, 124m or small, 355m or medium, 774m or large, 1.5b or xl (GPT-2's), 1b, 8b; of llama, mistral, qwen2
            and qwen3 those of DECODERS.
        vocab_size: as of `t5`.
        style: rope (rotary positions, RMSNorm, gated SiLU of width 8/3 D, untied); gpt2 (learned positions, tanh GELU,
            LayerNorm, biases, tied; Radford et al. 2019); or rope with what tells a family apart: llama, mistral (a
            window of attention), qwen2 (biases of queries, keys and values), qwen3 (norms of queries and keys).
        overrides: any field of Decoder.

    Raises:
        UserError: an unknown style, size or field (the nearest is named), or heads that do not divide.
    """
    fields = {"vocab_size": vocab_size, "init_std": 0.02, "embed_std": 0.02}
    if style in DECODERS:
        fields |= {"positions": "rope", "activation": "gated_silu"} | OF_DECODERS[style]
        fields |= choose(f"{style} size", str(size).lower(), DECODERS[style])
        return _checked(build(Decoder, fields, overrides))
    d_model, heads, layers = choose("GPT size", str(size).lower(), GPT_SIZES)
    fields |= {"d_model": d_model, "heads": heads, "layers": layers}
    styles = {
        # 8/3 D keeps a gated MLP at the parameters of a plain one of 4 D (Shazeer 2020, section 3), rounded up to 64.
        "rope": {"positions": "rope", "activation": "gated_silu", "d_ff": -(-8 * d_model // 3 // 64) * 64},
        "gpt2": {
            **{
                "positions": "learned",
                "max_length": 1024,
                "norm": "layer",
                "eps": 1e-5,
                "activation": "gelu",
                "bias": True,
            },
            **{"tied": True, "d_ff": 4 * d_model, "dropout_style": "gpt2"},
        },
    }
    styles |= dict.fromkeys(DECODERS)  # for the message
    return _checked(build(Decoder, fields | choose("GPT style", style, styles), overrides))


# d_model, heads, layers: Devlin et al. 2019, section 3; the small ones Turc et al. 2019 ("Well-Read Students Learn
# Better"), table 1.
BERT_SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 8, 4),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 16, 24),
}
# Clark et al. 2020, table 6; its tables of the small size are 128 wide. Base and large are BERT's.
ELECTRA_SIZES = {"small": (256, 4, 12)}
# Warner et al. 2024, table 4; the hidden width of each.
MODERNBERT_SIZES = {"base": (768, 12, 22), "large": (1024, 16, 28)}
MODERNBERT_HIDDEN = {768: 1152, 1024: 2624}


def bert(size, vocab_size=None, style="bert", **overrides):
    """An Encoder by name.

    Args:
        size: tiny, mini, small, medium, base, large.
        vocab_size: as of `t5`.
        style: bert (norms after each branch, learned positions, biases, GELU, dropout 0.1: Devlin et al. 2019, with
            two token types), roberta (the same without types, positions from 2 on: Liu et al. 2019), or modern (norms
            before, rotary positions, gated GELU of width 8/3 D, no biases and no dropout: after MosaicBERT and
            ModernBERT, without their ALiBi and local layers); all have BERT's head. mosaic: modern with ALiBi in place
            of rotary positions (Portes et al. 2023). modernbert: every third layer sees all, the others 64 tokens to
            each side, with rotary positions of their own base (Warner et al. 2024, section 2.1 and table 4). electra:
            bert without the head, as ELECTRA's discriminator, whose small size is its own (Clark et al. 2020, table 6).
        overrides: any field of Encoder.

    Raises:
        UserError: an unknown style, size or field (the nearest is named), or heads that do not divide.
    """
    sizes = BERT_SIZES | {"electra": ELECTRA_SIZES, "modernbert": MODERNBERT_SIZES}.get(style, {})
    d_model, heads, layers = choose("BERT size", str(size).lower(), sizes)
    fields = {"vocab_size": vocab_size, "d_model": d_model, "heads": heads, "layers": layers}
    fields |= {"init_std": 0.02, "embed_std": 0.02, "norm": "layer", "tied": True, "head": True}
    styles = {
        "bert": {
            **{"positions": "learned", "max_length": 512, "activation": "gelu_exact", "d_ff": 4 * d_model},
            **{
                "norm_place": "post",
                "input_norm": True,
                "eps": 1e-12,
                "bias": True,
                "scaled_init": False,
                "token_types": 2,
            },
            **{"dropout": 0.1, "dropout_style": "gpt2"},
        },
        "modern": {
            **{"positions": "rope", "activation": "gated_gelu_exact", "d_ff": -(-8 * d_model // 3 // 64) * 64},
            **{"eps": 1e-5, "bias": False, "head_activation": "gelu_exact"},
        },
    }
    styles["roberta"] = styles["bert"] | {"token_types": 0, "max_length": 514, "position_offset": 2, "eps": 1e-5}
    styles["mosaic"] = styles["modern"] | {"positions": "alibi"}
    styles["modernbert"] = styles["modern"] | {
        **{"norm": "layer_unbiased", "input_norm": True, "first_norm": False, "window": 65, "global_every": 3},
        **{"rope_theta": 160000.0, "local_theta": 10000.0, "d_ff": MODERNBERT_HIDDEN.get(d_model, 3 * d_model // 2)},
    }
    styles["electra"] = styles["bert"] | {"head": False, "embed_width": 128 if str(size).lower() == "small" else None}
    return _checked(build(Encoder, fields | choose("BERT style", style, styles), overrides))


def _checked(model):
    if model.vocab_size is not None and model.vocab_size < 1:
        raise UserError(f"vocab_size={model.vocab_size}: a model needs the number of its tokenizer's ids, or None")
    assert model.head_width > 0  # raises now rather than in the first trace
    return model
