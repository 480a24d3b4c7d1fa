"""Adapters of the peft library: its outputs by our models, what we write read again, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch import convert, load
from launch.run import pretrained
from paradigm import trees
from paradigm.adapt import IA3, BottleneckAdapter, LoRA, PromptTuning
from paradigm.errors import UserError
from paradigm.hf import peft
from tests import contract
from tests.adapt.models import adapted
from tests.adapt.test_methods import disturbed
from tests.launch.test_adapted_runs import LORA, places, run  # noqa: F401
from tests.launch.test_adapted_runs import adapted as lora_run
from tests.parity import peft as parity
from tests.parity import peft_cases
from tests.parity.peft import FAMILIES

TOLERANCE = 1e-4
CASES = list(peft_cases.CASES)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_librarys_and_what_is_written_is_read(case, tmp_path):
    modules, params = parity.base(case, tmp_path / "base")
    adapt, own = peft.read(parity.released(case, tmp_path / "theirs"), modules, FAMILIES, params)
    both = trees.merge(params, own)
    logits, scored = parity.run(modules, adapt, both, peft_cases.inputs(case))
    golden = peft_cases.load(case)
    assert scored.sum() > 15 and np.abs(logits - golden["logits"])[scored].max() < TOLERANCE
    assert np.abs(parity.run(modules, None, params, peft_cases.inputs(case))[0] - logits)[scored].max() > 0.1
    peft.write(tmp_path / "ours", modules, FAMILIES, adapt, both)
    again, found = peft.read(tmp_path / "ours", modules, FAMILIES, params)
    assert again == adapt
    contract.assert_trees_close(found, own, 1e-6)


def test_a_vit_of_version_4_of_the_library_and_under_a_classifier_is_read_too(tmp_path):
    """Released adapters have the names of the files; `query` of today's is `attention.q_proj`."""
    modules, params = parity.base("vit_lora", tmp_path / "base")
    path = parity.released("vit_lora", tmp_path / "theirs")
    adapt, own = peft.read(path, modules, FAMILIES, params)
    tensors = load_file(path / peft.TENSORS)
    for old, new in (("vit.layers", "layers"), ("vit.encoder.layer", "layers")):
        changes = [(f".{new}.", f".{old}.")]
        if "encoder" in old:
            names = (("q_proj", "attention.query"), ("o_proj", "output.dense"))
            changes += [*((f"attention.{a}", f"attention.{b}") for a, b in names), ("mlp.fc2", "output.dense")]
        renamed = {}
        for name, x in tensors.items():
            for change in changes:
                name = name.replace(*change)
            renamed[name] = x
        assert len(renamed) == len(tensors) and not renamed.keys() & tensors.keys()
        save_file(renamed, path / peft.TENSORS)
        again, found = peft.read(path, modules, FAMILIES, params)
        assert {*again.targets} == {*adapt.targets}
        contract.assert_trees_equal(found, own)
    with pytest.raises(UserError, match="is of another model: it adapts bert.*, and a ViT has layers.0.attention"):
        peft.read(parity.released("bert_lora", tmp_path / "bert"), modules, FAMILIES, params)


def test_kernels_that_share_one_of_their_modules_keep_what_is_theirs(tmp_path):
    """GPT-2's query and value are columns of c_attn, with an A each here and one for all there."""
    objective = adapted(LoRA(rank=2, rank_stabilized=True), "gpt2")
    params = disturbed(objective)
    modules = {"model": objective.model}
    peft.write(tmp_path / "one", modules, FAMILIES, objective.adapt, params)
    config = json.loads((tmp_path / "one" / peft.CONFIG).read_text())
    assert set(config["rank_pattern"].values()) == {4} and config["target_modules"][0] == "transformer.h.0.attn.c_attn"
    base, _ = objective.adapt.split(params)
    adapt, own = peft.read(tmp_path / "one", modules, FAMILIES, base)
    contract.assert_trees_close(adapt.merge(trees.merge(base, own)), objective.adapt.merge(params), 1e-5)


@pytest.mark.parametrize("adapt, name, lost", [
    (LoRA(rank=2, targets=("/kernel$",)), "vit", "ViT .* no encoder/embed/lora_a"),
    (IA3(outputs=("embed/kernel$",)), "vit", "ViT .* no encoder/embed/ia3"),
    (PromptTuning(length=2, where="."), "t5", "T5 .* no model/decoder/soft"),
])  # fmt: skip
def test_leaves_that_peft_has_no_place_for_are_not_left_out(adapt, name, lost, tmp_path):
    objective = adapted(adapt, name)
    with pytest.raises(UserError, match=f"an adapter of a {lost} as ours is: it is not written"):
        peft.write(tmp_path / "out", pretrained.bodies(objective), FAMILIES, objective.adapt, disturbed(objective))
    assert not (tmp_path / "out").exists()


def changed(directory, **entries):
    path = directory / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return directory


@pytest.mark.parametrize("entries, message", [
    ({"peft_type": "LOHA"}, "peft_type in .* is 'LOHA'; those that are read: LORA, IA3, PROMPT_TUNING, PREFIX_TUNING"),
    ({"bias": "all"}, "a LORA adapter with bias='all' is not one of our models"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' .* it changes the base's weights"),
    ({"r": 7, "rank_pattern": {}}, r"is of rank \d, and its config says 7: save it again"),
    ({"alpha_pattern": {"(": 2}}, r"alpha_pattern in .*adapter_config.json: .* is not .regular expression"),
    ({"rank_pattern": {"c_attn": "4"}}, r"rank_pattern in .*: .* is not .regular expression, a whole number"),
    ({"lora_alpha": 0}, "lora_alpha=0 is not one of our models: it is above 0 in them"),
    ({"alpha_pattern": {"c_fc": 0}}, "alpha_pattern=.* is not one of our models: they have numbers above 0"),
    ({"use_dora": True}, "use_dora=True, of lora_A, lora_B, lora_magnitude_vector: save it again"),
    ({"new_thing": 3}, "new_thing=3 .* we do not know what this entry does"),
])  # fmt: skip
def test_settings_that_are_not_ours(entries, message, tmp_path):
    modules, params = parity.base("gpt2_lora", tmp_path / "base")
    directory = changed(parity.released("gpt2_lora", tmp_path / "theirs"), **entries)
    with pytest.raises(UserError, match=message):
        peft.read(directory, modules, FAMILIES, params)


def test_an_adapter_without_tensors_is_no_adapter(tmp_path):
    modules, params = parity.base("gpt2_lora", tmp_path / "base")
    directory = changed(
        parity.released("gpt2_lora", tmp_path / "theirs"), init_lora_weights="eva", eva_config={"rho": 2}
    )
    assert trees.named_leaves(peft.read(directory, modules, FAMILIES, params)[1])
    save_file({}, directory / peft.TENSORS)
    with pytest.raises(UserError, match="holds no tensors, so that the adapter would change nothing: save it again"):
        peft.read(directory, modules, FAMILIES, params)


def test_magnitudes_that_the_config_does_not_say_are_not_left_out(tmp_path):
    modules, params = parity.base("clip_dora", tmp_path / "base")
    directory = changed(parity.released("clip_dora", tmp_path / "theirs"), use_dora=False)
    with pytest.raises(UserError, match="has lora_A, lora_B, lora_magnitude_vector, where its config says .*=False"):
        peft.read(directory, modules, FAMILIES, params)


def test_adapters_of_another_model_and_methods_that_peft_lacks(tmp_path):
    modules, params = parity.base("gpt2_lora", tmp_path / "base")
    with pytest.raises(UserError, match="is of another model: it adapts bert.encoder.*, and a GPT-2 has transformer"):
        peft.read(parity.released("bert_lora", tmp_path / "bert"), modules, FAMILIES, params)
    odd = {"model": modules["model"].clone(norm="rms")}
    with pytest.raises(UserError, match="is of another model: an adapter is read for those .* none of them .*'rms'"):
        peft.read(parity.released("gpt2_lora", tmp_path / "odd"), odd, FAMILIES, params)
    wide = {"model": modules["model"].clone(d_ff=20)}
    kernels = trees.named_map(
        lambda n, x: np.zeros((3, 12, 20)) if n.endswith("up/kernel") else np.zeros((3, 20, 12))
        if n.endswith("down/kernel") else x, params)  # fmt: skip
    with pytest.raises(UserError, match="is of another model: transformer.h.0.mlp.c_fc adapts 12 x 48, and ours is 12"):
        peft.read(parity.released("gpt2_lora", tmp_path / "gpt2"), wide, FAMILIES, kernels)
    with pytest.raises(UserError, match="the peft library has no BottleneckAdapter as ours is; those that are written"):
        peft.write(tmp_path / "out", modules, FAMILIES, BottleneckAdapter(), params)


def test_a_run_takes_an_adapter_and_gives_one(places, tmp_path):  # noqa: F811
    lora_run(places)
    convert.to_peft(places / "lora", tmp_path / "out")
    init = f"Experiment.init = (@base/Init(), @more/Init())\nbase/Init.path = '{places}/base'\n"
    init += f"more/Init.path = '{tmp_path}/out'\n"
    pattern = ("(('', 8),)", "(('', 32.0),)")
    how = [f"LoRA.ranks = {pattern[0]}", f"LoRA.alphas = {pattern[1]}", "AdamW.learning_rate = 0.0"]
    run(tmp_path / "again", places / "other.txt", LORA + init, how)
    ask = lambda path: load(path).merged().params
    contract.assert_trees_close(ask(tmp_path / "again"), ask(places / "lora"), 1e-5)
    with pytest.raises(UserError, match="model/decoder/.* with scale=4.0, and the objective's LoRA has scale=1.0"):
        run(tmp_path / "scaled", places / "other.txt", LORA + init, [how[0], "LoRA.alpha = 8.0"])
    with pytest.raises(UserError, match="is a LoRA, and the objective's adaptation is IA3: set Experiment.adapt"):
        run(tmp_path / "ia3", places / "other.txt", "Experiment.adapt = @IA3()\n" + init)
    with pytest.raises(UserError, match="is an adapter: name its base before it in Experiment.init"):
        run(tmp_path / "alone", places / "other.txt", LORA, init_from=str(tmp_path / "out"))
    with pytest.raises(UserError, match="is no adapted run: --format=hf writes its weights"):
        convert.to_peft(places / "base", tmp_path / "none")
    shutil.rmtree(tmp_path / "again")


def test_what_was_trained_beside_an_adapter_is_told_or_refused(places, tmp_path, monkeypatch):  # noqa: F811
    lora_run(places)
    found = load(places / "lora")
    more = dataclasses.replace(found.experiment, freeze=(("embed/embedding$", False),))
    monkeypatch.setattr("launch.load", lambda *_: dataclasses.replace(found, experiment=more))
    with pytest.raises(UserError, match="trained model/embed/embedding of its base too, and an adapter .* without it"):
        convert.to_peft(places / "lora", tmp_path / "out")
    tuned = dataclasses.replace(found.experiment, objective=adapted(LoRA(rank=2), "vit"))
    params = disturbed(tuned.objective)
    monkeypatch.setattr("launch.load", lambda *_: dataclasses.replace(found, experiment=tuned, params=params))
    assert convert.to_peft(places / "lora", tmp_path / "out").endswith("/out, without classifier, trained too")
