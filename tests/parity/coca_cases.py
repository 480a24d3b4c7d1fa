"""CoCa as it is compared with open_clip: configuration, weights and inputs. numpy only; see pairs_cases.py."""

import json

import numpy as np

from tests.parity.pairs_cases import HERE, weight

START, END = 126, 127
_WORDS = {"context_length": 7, "vocab_size": 128, "width": 12, "heads": 3, "mlp_ratio": 4.0}
CONFIG = {  # widths differ from one another where they may
    "embed_dim": 12,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 18, "layers": 3, "width": 18, "head_width": 9, "mlp_ratio": 2.0, "patch_size": 5,
        "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {**_WORDS, "layers": 2, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**_WORDS, "layers": 3},
}  # fmt: skip


def weights(shapes):
    """{name: array}: as pairs_cases.weight, norms about 1."""
    norms = lambda name: "ln_" in name and name.endswith("weight")
    return {name: np.asarray(weight(name, shape) + np.float32(norms(name))) for name, shape in shapes.items()}


def inputs():
    """(pixels [3, 3, 18, 18], ids [3, 7] of captions that end at 3, at 5 and at the last place, then 0)."""
    draw = np.random.default_rng(0)
    ids = draw.integers(1, START, (3, 7))
    ids[:, 0] = START
    for row, end in enumerate((3, 5, 6)):
        ids[row, end], ids[row, end + 1 :] = END, 0
    return draw.standard_normal((3, 3, 18, 18)).astype(np.float32), ids


def real(ids):
    """bool [3, 6, 1]: the places whose logits have a meaning: open_clip hides padding from what stands behind it."""
    return (np.arange(ids.shape[1] - 1) <= np.argmax(ids == END, 1)[:, None])[..., None]


def load():
    """{config, weights, image [3, E], text [3, E], logits [3, 6, V]} of the golden file."""
    with np.load(HERE / "coca.npz", allow_pickle=False) as stored:
        golden = dict(stored)
    return {"config": {"model_cfg": CONFIG}, "weights": weights(json.loads(str(golden.pop("shapes")))), **golden}
