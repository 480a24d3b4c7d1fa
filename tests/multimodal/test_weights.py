"""CLIP and SigLIP from the transformers library's files and back; its outputs, reproduced by ours (see parity.py)."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from multimodal import hf
from multimodal.towers import clip_text
from multimodal.views import clip_views, siglip_views
from paradigm import hf as files
from paradigm import trees
from paradigm.errors import UserError
from paradigm.hf.family import abstract
from tests import contract
from tests.multimodal import tiny
from tests.parity import make
from tests.parity import pairs as parity
from tests.parity import pairs_cases as cases
from vision.vit import vit

everyone = pytest.mark.parametrize("case", cases.CONFIGS)


def released(tmp_path, case="clip", change=lambda tensors: tensors, **entries):
    golden = cases.load(case)
    golden["config"] = golden["config"] | entries
    golden["weights"] = change(dict(golden["weights"]))
    return make.released(golden, tmp_path / "released")


@everyone
def test_outputs_of_the_library(case, tmp_path):
    objective, params = hf.read_objective(released(tmp_path, case))
    assert parity.largest(parity.run(case, objective, params), cases.load(case)) < 1e-4


@everyone
def test_written_files_are_those_that_were_read(case, tmp_path):
    objective, params = hf.read_objective(released(tmp_path, case))
    hf.write_objective(tmp_path / "out", objective, params)
    tensors, golden = load_file(tmp_path / "out" / "model.safetensors"), cases.load(case)["weights"]
    assert tensors.keys() == golden.keys()
    for name, x in golden.items():
        np.testing.assert_array_equal(tensors[name], x, err_msg=name)
    again, same = hf.read_objective(tmp_path / "out")
    contract.assert_trees_equal(params, same)
    assert (again.encoder, again.text.end_id, again.width) == (
        objective.encoder,
        objective.text.end_id,
        objective.width,
    )


def test_the_old_end_is_the_highest_id_of_each_caption(tmp_path):
    """A config that says 2 is pooled where a caption has its highest id, which need not be the last of all ids."""
    objective, params = hf.read_objective(released(tmp_path, "clip_old"))
    ids = np.array([[3, 9, 4, 5, 9, 2, 1], [2, 2, 2, 2, 2, 2, 7], [8, 4, 3, 2, 1, 1, 1]])
    pooled, named = objective.text.apply({"params": params["text"]}, ids)
    np.testing.assert_array_equal(pooled, np.asarray(named["tokens"])[np.arange(3), [1, 6, 0]])
    hf.write_objective(tmp_path / "out", objective, params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["eos_token_id"] == 2
    assert hf.read_objective(tmp_path / "out")[0].text == objective.text


def test_the_bias_of_patches_becomes_part_of_their_positions(tmp_path):
    """CLIP has none; what we write computes the same."""
    objective = tiny.clip()
    params = jax.tree.map(np.array, jax.jit(objective.init)(jax.random.key(0)))
    params["encoder"]["embed"]["bias"] += np.linspace(-1, 1, 16, dtype=np.float32)
    hf.write_objective(tmp_path, objective, params)
    again, same = hf.read_objective(tmp_path)
    assert not np.any(same["encoder"]["embed"]["bias"])
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    a, b = (o.embed_images({"params": p}, image) for o, p in ((objective, params), (again, same)))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_trained_run_goes_out_and_comes_back(tmp_path):
    for name, objective in (("clip", tiny.clip()), ("siglip", tiny.siglip())):
        params = jax.jit(objective.init)(jax.random.key(3))
        hf.write_objective(tmp_path / name, objective, params)
        again, same = hf.read_objective(tmp_path / name, tokenizer=objective.tokenizer)
        if name == "siglip":
            contract.assert_trees_equal(jax.tree.map(np.asarray, params), same)
        tokens = objective.tokenize(["abc", "a longer one"])
        image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
        for embed, x in (("embed_images", image), ("embed_texts", tokens)):
            ours, theirs = (getattr(o, embed)({"params": p}, x) for o, p in ((objective, params), (again, same)))
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_settings_of_ours_are_kept(tmp_path):
    path = released(tmp_path, "siglip")
    objective, _ = hf.read_objective(path, host_image_size=99)
    assert objective.host_image_size == 99
    assert objective.ignore_aspect and objective.text.pool == "last" and not objective.text.causal
    with pytest.raises(UserError, match="holds a CLIP with image_head.width=10; the model has image_head.width=12"):
        hf.read_objective(released(tmp_path), width=12)


def test_pictures_are_normalised_as_its_files_say(tmp_path):
    """The library reads processor_config.json first, and pixels from 0 to 255 where it is told not to rescale."""
    path = released(tmp_path)
    assert hf.read_objective(path)[0].augment == clip_views(16)
    say = lambda name, said: (path / name).write_text(json.dumps(said))
    moments = lambda: (lambda views: (views.mean, views.std))(hf.read_objective(path)[0].augment)
    own = {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 1.0], "rescale_factor": 1 / 255}
    say("preprocessor_config.json", own)
    assert moments() == ((0.5, 0.25, 0.125), (0.5, 0.5, 1.0))
    say("processor_config.json", {"image_processor": {"image_mean": 51, "image_std": 102, "do_rescale": False}})
    assert moments() == ((0.2,) * 3, (0.4,) * 3)
    say("processor_config.json", {"processor_class": "CLIPProcessor"})
    say("preprocessor_config.json", own | {"do_normalize": False})
    assert moments() == ((0.0,) * 3, (1.0,) * 3)
    say("preprocessor_config.json", {"image_mean": None, "image_std": None, "rescale_factor": None})
    assert hf.read_objective(path)[0].augment == clip_views(16)
    say("preprocessor_config.json", own | {"image_std": [0.5, 0.0, 0.5]})
    with pytest.raises(UserError, match="preprocessor_config.json has .* the model reads 3 channels: give a"):
        hf.read_objective(path)


def test_how_pictures_are_normalised_goes_along(tmp_path):
    for name, build, views in (("clip", tiny.clip, clip_views), ("siglip", tiny.siglip, siglip_views)):
        for at, moments in enumerate(({}, {"mean": (0.1, 0.2, 0.3), "std": (0.7, 0.8, 0.9)})):
            objective, out = build(augment=views(16, **moments)), tmp_path / f"{name}{at}"
            params = jax.eval_shape(objective.init, jax.random.key(0))
            hf.write_objective(out, objective, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params))
            assert hf.read_objective(out)[0].augment == objective.augment
            (out / "config.json").unlink()
            (out / "model.safetensors").unlink()
            with pytest.raises(UserError, match="preprocessor_config.json exists and is not written over"):
                hf.write_objective(out, objective, params)


def test_without_its_tokenizer(tmp_path):
    objective, _ = hf.read_objective(released(tmp_path))
    with pytest.raises(UserError, match="these weights came without a tokenizer"):
        objective.tokenize(["a"])


def dropped(tensors):
    del tensors["visual_projection.weight"]
    return tensors


@pytest.mark.parametrize(
    "change,message",
    [
        (dropped, r"visual_projection.weight: wanted \(10, 18\), found nothing"),
        (lambda t: t | {"extra": np.ones(3, np.float32)}, r"extra: wanted nothing, found \(3,\)"),
        (lambda t: t | {"logit_scale": np.ones(2, np.float32)}, r"logit_scale: wanted \(\), found \(2,\)"),
        (lambda t: t | {"logit_scale": np.array(1)}, "logit_scale: wanted F32 or F16 or BF16, found I64"),
    ],
)
def test_reading_is_strict(change, message, tmp_path):
    with pytest.raises(UserError, match=f"does not fit the model: {message}"):
        hf.read_objective(released(tmp_path, change=change))


def test_old_files_hold_positions_as_numbers(tmp_path):
    ids = {"text_model.embeddings.position_ids": np.arange(7)[None]}
    _, params = hf.read_objective(released(tmp_path, change=lambda t: t | ids))
    assert np.isclose(params["log_scale"], 2.5)


@pytest.mark.parametrize(
    "entries,message",
    [
        ({"model_type": "blip"}, "is 'blip', which is none of those that can be read: clip, siglip"),
        ({"text_config": {"hidden_act": "swish"}}, "hidden_act"),
        ({"text_config": {"eos_token_id": [7, 9]}}, r"eos_token_id=\[7, 9\] is not one of our models"),
        ({"text_config": "small"}, r"config.json describes no CLIP: text_config is 'small'"),
    ],
)
def test_configs_that_are_not_ours(entries, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hf.read_objective(released(tmp_path, **entries))
    with pytest.raises(UserError, match="vision_use_head=False has no shared space"):
        hf.read_objective(released(tmp_path, "siglip", vision_config={"vision_use_head": False}))


def test_nothing_to_read_and_nothing_written_over(tmp_path):
    with pytest.raises(UserError, match="config.json is missing"):
        hf.read_objective(tmp_path / "nowhere")
    path = released(tmp_path)
    objective, params = hf.read_objective(path)
    with pytest.raises(UserError, match="config.json exists and is not written over"):
        hf.write_objective(path, objective, params)
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        hf.read_objective(path)


@pytest.mark.parametrize(
    "change,message",
    [
        (
            {"encoder": vit("tiny", 16, 4, **tiny.TOWER, positions="learned", pool="class")},
            "no encoder: ViT, .* written: CLIP .encoder: ClipViT",
        ),
        ({"text": clip_text("tiny", 259, 8, **tiny.TOWER, causal=False)}, "text.causal=True.*text.causal=False"),
        ({"text": clip_text("tiny", 259, 8, **tiny.TOWER, bias=False)}, "text.bias=False cannot be written"),
        ({"image_projection": "affine"}, "image_head.projection='affine' cannot be written"),
        ({"image_pool": "map"}, "image_head.tower=True cannot be written"),
        (
            {"text": clip_text("tiny", 259, 8, **tiny.TOWER, end_id=2), "tokenizer": hf.Absent(259, eos_id=2)},
            "takes an end id of 2 for the highest: text.end_id=2 cannot be written",
        ),
    ],
)
def test_what_the_library_cannot_say(change, message, tmp_path):
    objective = tiny.clip(**change)
    with pytest.raises(UserError, match=message):
        hf.write_objective(tmp_path, objective, jax.eval_shape(objective.init, jax.random.key(0)))


def test_defaults_of_the_library(tmp_path):
    """A config that says nothing is the library's own: CLIP B/32 and SigLIP B/16."""
    for kind, patch, width, vocabulary in (("clip", 32, 512, 49408), ("siglip", 16, 768, 32000)):
        family = {f.model_type: f for f in hf.FAMILIES}[kind]
        modules = family.modules(files.Config({"model_type": kind}, family.title), {})
        assert (modules["encoder"].patch, modules["text_head"].width) == (patch, width)
        assert modules["text"].vocab_size == vocabulary
        leaves = dict(trees.named_leaves(abstract(family, modules)))
        assert {p for leaf in files.leaves_of(family, modules) for p in leaf.paths} == set(leaves)
