"""Outputs, losses and gradients of the transformers library's image models, reproduced by ours (tests/parity)."""

import jax
import numpy as np
import pytest

from paradigm import trees
from tests.parity import make, vision
from tests.parity import vision_cases as cases
from vision import hf

TOLERANCE = 1e-4
VITS = cases.VITS


@pytest.fixture(scope="module", params=VITS)
def golden(request):
    return request.param, cases.load(request.param)


@pytest.fixture(scope="module")
def ours(golden, tmp_path_factory):
    """(modules, params) read from the files that the reference was run on."""
    case, stored = golden
    return hf.read(make.released(stored, tmp_path_factory.mktemp(case)))


def test_outputs(golden, ours):
    """ViT, DINOv2, I-JEPA: all tokens, at its own resolution and, positions interpolated, at another. BEiT: the
    logits of tokens, some patches hidden; data2vec: all tokens, some patches hidden, and fine-tuned also the mean.

    ViT-MAE given the same noise: predictions, loss, mask, and the loss's gradient through decoder and encoder.
    """
    case, stored = golden
    found = vision.run(*ours, stored)
    wanted = {"dinov2_registers": {"hidden"}, "beit": {"logits"}, "beit_layers": {"logits"}, "data2vec": {"hidden"}}
    wanted = (wanted | {"data2vec_pooled": {"hidden", "pooled"}}).get(case)
    wanted = wanted or ({"loss", "logits", "mask", *found} if "mae" in case else {"hidden", "larger"})
    assert found.keys() == wanted
    for name, x in found.items():
        x = np.asarray(x)
        assert x.shape == stored[name].shape and np.abs(stored[name]).max() > 40 * TOLERANCE, name
        assert np.abs(x - stored[name]).max() < TOLERANCE, name


def test_the_noise_decides(golden, ours):
    """With the rows' noise exchanged, other patches are predicted, from others."""
    case, stored = golden
    if case.startswith("vit_mae"):
        other = dict(stored["inputs"], noise=stored["inputs"]["noise"][::-1])
        found = vision.run(*ours, {**stored, "inputs": other})
        assert np.abs(found["logits"] - stored["logits"]).max() > 0.1
        assert np.array_equal(found["mask"], stored["mask"][::-1])


def test_every_weight_matters(golden, ours):
    """A leaf that the outputs could not show would be a leaf that nobody compared."""
    case, stored = golden
    modules, params = ours
    shown = ("loss", "logits") if case.startswith("vit_mae") else ("logits",) if "beit" in case else ("hidden",)
    shown += ("pooled",) * (case == "data2vec_pooled")
    base = vision.run(modules, params, stored)
    for name, _ in trees.named_leaves(params):
        if name.endswith("key/bias") or (name == "encoder/mask_token" and not case.startswith(("beit", "data2vec"))):
            continue  # adds the same to all logits of a query, which softmax takes away; nothing is masked there
        moved = trees.named_map(lambda n, x, name=name: x * 1.5 + 0.1 if n == name else x, params)
        found = vision.run(modules, moved, stored)
        assert max(np.abs(np.asarray(found[k]) - np.asarray(base[k])).max() for k in shown) > TOLERANCE, name


@pytest.mark.parametrize("case", vision.RESNETS)
def test_resnets(case):
    """Basic and bottleneck blocks: the pooled output and the last stage in evaluation, the pooled one in training."""
    golden = cases.load(case)
    found = jax.tree.map(np.asarray, vision.run_resnet(case, golden))
    for name in ("pooled", "last", "trained"):
        assert np.abs(found[name] - golden[name]).max() < TOLERANCE, name
    assert np.abs(found["pooled"] - golden["trained"]).max() > 1e-2  # the two differ: running statistics are random
