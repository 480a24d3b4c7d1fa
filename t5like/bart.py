"""BART and mBART by name: an EncoderDecoder with norms after each branch, learned positions and a tied output."""

from paradigm.errors import build, choose
from t5like.models import EncoderDecoder

# d_model, heads, layers: Lewis et al. 2020, section 2.1, and fairseq's bart_base and bart_large (models/bart/model.py);
# `tiny` is this project's.
SIZES = {"tiny": (128, 4, 2), "base": (768, 12, 6), "large": (1024, 16, 12)}
STYLES = {"bart": {"norm_place": "post"}, "mbart": {"norm_place": "pre", "scale_embeddings": True}}


def bart(size, vocab_size=None, style="bart", **overrides):
    """A BART EncoderDecoder by name.

    Args:
        size: tiny, base or large.
        vocab_size: rows of its tables; None: as the vocabulary has ids, rounded up (objective.bind).
        style: bart; or mbart, with norms before each branch, one after the last, and embeddings times the root of their
            width (Liu et al. 2020, section 2.2; fairseq's mbart_large).
        overrides: any field of EncoderDecoder.

    Raises:
        UserError: an unknown style, size or field (the nearest is named), or heads that do not divide.
    """
    d_model, heads, layers = choose("BART size", str(size).lower(), SIZES)
    fields = {
        **{"vocab_size": vocab_size, "d_model": d_model, "heads": heads, "layers": layers, "d_ff": 4 * d_model},
        **{"positions": "learned", "max_length": 1024 + 2, "position_offset": 2},  # the first two rows are of padding
        **{"norm": "layer", "eps": 1e-5, "input_norm": True, "bias": True, "activation": "gelu_exact"},
        **{"init_std": 0.02, "embed_std": 0.02, "scaled_init": False, "tied": True, "logits_bias": True},
        **{"dropout": 0.1, "dropout_style": "gpt2"},
    }
    model = build(EncoderDecoder, fields | choose("BART style", style, STYLES), overrides)
    assert model.head_width > 0  # raises now rather than in the first trace
    return model
