"""Attention maps: the weights are those of the block, and the sheet says which head is which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import trees
from paradigm.adapt import BottleneckAdapter, LoRA
from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.layers import NORMS
from paradigm.transformer import Attention
from tests.compiled import compiled
from tests.vision import tiny
from vision.attention_maps import AttentionMaps, class_attention
from vision.augment import no_views
from vision.objectives import IGPT, Classify
from vision.objectives.igpt import image_gpt

OBJECTIVE = Classify(encoder=tiny.encoder(registers=1), augment=no_views(), host_image_size=tiny.SIZE, classes=3)


def variables(objective):
    """Of far from even attention."""
    return {"params": jax.tree.map(lambda x: 3 * x, tiny.params(objective))}


def test_weights_are_those_that_the_block_attends_with():
    encoder, params = OBJECTIVE.encoder, variables(OBJECTIVE)["params"]["encoder"]
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    _, more = compiled(OBJECTIVE.features, {"params": {"encoder": params}}, images)
    weights = class_attention(encoder, params, more["layers"])
    assert weights.shape == (2, 2, 18) and np.ptp(weights) > 0.05
    block = jax.tree.map(lambda x: x[-1], params["blocks"]["layers"])
    x = NORMS["layer"](encoder.eps, jnp.float32).apply({"params": block["attention_norm"]}, more["layers"][-2])
    fields = {name: getattr(encoder, name) for name in ("d_model", "heads", "d_ff", "norm", "bias")}
    wanted, memory = Attention(**fields).apply({"params": block["attention"]}, x, AttentionMask())
    mixed = jnp.einsum("bhl,bhlk->bhk", weights, memory["value"])
    out = block["attention"]["out"]
    np.testing.assert_allclose(jnp.einsum("bhk,hkd->bd", mixed, out["kernel"]) + out["bias"], wanted[:, 0], atol=1e-4)


def test_a_sheet_of_them():
    data = tiny.Opened(None, batch=tiny.batch_of(4, 20)(0) | {"image": np.zeros((4, 16, 16, 3), np.uint8)})
    numbers, [artefact] = AttentionMaps(count=2).run(OBJECTIVE, variables(OBJECTIVE), data)
    assert not numbers and artefact.name == "attention_maps" and artefact.value.ndim == 3
    assert artefact.value.shape[1] == 4 * (16 * 6 + 2), "the original, the mean and two heads"


def test_views_of_another_size_than_the_encoders():
    larger = dataclasses.replace(OBJECTIVE, augment=no_views(22))
    data = tiny.Opened(None, batch=tiny.batch_of(2, 20)(0))
    _, [artefact] = AttentionMaps(count=2).run(larger, variables(OBJECTIVE), data)
    assert artefact.value.shape[1] == 4 * (20 * 5 + 2), "5 x 5 patches of 4 pixels, enlarged 5 times"


def test_an_adapted_encoders_maps_are_those_of_its_merged_form():
    data = tiny.Opened(None, batch=tiny.batch_of(2, 20)(0) | {"image": np.zeros((2, 16, 16, 3), np.uint8)})
    adapted = OBJECTIVE.adapted(LoRA(rank=2))
    params = trees.named_map(
        lambda name, x: jax.random.normal(jax.random.key(2), x.shape) if name.endswith("lora_b") else x,
        variables(adapted)["params"],
    )
    show = lambda objective, params: AttentionMaps(count=2).run(objective, {"params": params}, data)[1][0].value
    maps = show(adapted, params)
    np.testing.assert_allclose(maps, np.float32(show(OBJECTIVE, adapted.adapt.merge(params))), atol=1)
    assert (maps != show(OBJECTIVE, adapted.adapt.split(params)[0])).any()


def test_what_has_no_class_token():
    objective = Classify(encoder=tiny.small_resnet(), augment=no_views(), host_image_size=tiny.SIZE, classes=3)
    with pytest.raises(UserError, match="AttentionMaps: ResNet has no class token"):
        AttentionMaps().check(objective, None)
    for changes in ({"qk_norm": True}, {"grid_bias": "shared"}):
        encoder = tiny.encoder(**changes)
        with pytest.raises(UserError, match="AttentionMaps reads pre-norm, scaled attention"):
            AttentionMaps().check(Classify(encoder=encoder, augment=no_views(), host_image_size=16, classes=3), None)
    pixels = IGPT(encoder=image_gpt("tiny", image_size=8), augment=no_views())
    with pytest.raises(UserError, match="AttentionMaps: ImageGPT has no class token"):
        AttentionMaps().check(pixels, None)
    with pytest.raises(UserError, match="AttentionMaps reads .* no merged form: leave it out"):
        AttentionMaps().check(OBJECTIVE.adapted(BottleneckAdapter()), None)
