"""CLIP and SigLIP as they are compared with the transformers library: configurations, weights and inputs. numpy only.

Weights are drawn from a generator seeded by the leaf's name; a golden file holds their names and shapes beside the
library's outputs. Widths differ from one another, so that a transpose can't go unseen.
"""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent
END = 49

_TEXT = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
_TEXT |= {"vocab_size": END + 1, "max_position_embeddings": 7}
_TEXT |= {"eos_token_id": END, "pad_token_id": 1, "bos_token_id": END - 1}
_IMAGE = {"hidden_size": 18, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 2}
_IMAGE |= {"image_size": 16, "patch_size": 4}


def _config(model_type, architecture, text, image, **entries):
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": {**_TEXT, **text, "model_type": f"{model_type}_text_model"},
        "vision_config": {**_IMAGE, **image, "model_type": f"{model_type}_vision_model"},
        **entries,
    }


CONFIGS = {
    # As released by OpenAI, with quick_gelu and what is not said left to the library's defaults.
    "clip": _config("clip", "CLIPModel", {"projection_dim": 10}, {"projection_dim": 10}, projection_dim=10),
    # As LAION's, with the exact GELU; an end id of 2 means the highest id of all.
    "clip_old": _config("clip", "CLIPModel", {"hidden_act": "gelu", "eos_token_id": 2, "projection_dim": 10},
                        {"hidden_act": "gelu", "projection_dim": 10, "num_channels": 1}, projection_dim=10),
    "siglip": _config("siglip", "SiglipModel", {"projection_size": 18}, {}),
}  # fmt: skip


def weight(name, shape):
    """float32 [shape], the same on every machine: a function of the leaf's name."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name in ("logit_scale", "logit_bias"):
        return np.full(shape, 2.5 if name == "logit_scale" else -3.0, np.float32)
    if len(shape) <= 1:
        return draw * np.float32(0.1) + np.float32(name.endswith("norm.weight") or "layer_norm" in name)
    if "embedding" in name or "probe" in name:
        return draw * np.float32(0.5)
    return draw / np.float32(np.sqrt(np.prod(shape[1:])))


def inputs(case):
    """(pixels [4, C, 16, 16], ids [3, 7] that end at 4, at the last place, and twice)."""
    draw = np.random.default_rng(0)
    ids = draw.integers(2, END - 1, (3, 7))
    ids[0, 4], ids[1, 6], ids[2, 2], ids[2, 5] = END, END, END, END
    channels = CONFIGS[case]["vision_config"].get("num_channels", 3)
    return draw.standard_normal((4, channels, 16, 16)).astype(np.float32), ids


def load(case):
    """{config, weights: name -> array, image [4, E], text [3, E], logits [4, 3]} of a golden file."""
    with np.load(HERE / f"{case}.npz", allow_pickle=False) as stored:
        golden = dict(stored)
    shapes = json.loads(str(golden.pop("shapes")))
    return {"config": CONFIGS[case], "weights": {n: weight(n, s) for n, s in shapes.items()}, **golden}
