"""CoCa from open_clip's files and back; its outputs, reproduced by ours (see tests/parity/coca.py)."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from launch.run import pretrained, registry
from multimodal import hf
from multimodal.views import CLIP_MEAN, CLIP_STD
from paradigm.errors import UserError
from paradigm.hf import OPEN_CLIP, config_of
from tests.multimodal import tiny
from tests.parity import coca as parity
from tests.parity import coca_cases as cases


def test_outputs_of_open_clip(tmp_path):
    golden = cases.load()
    objective, params = hf.read_objective(parity.released(golden, tmp_path))
    assert parity.largest(parity.run(objective, params), golden) < 1e-4
    assert pretrained.is_pretrained(tmp_path) and set(pretrained.read(tmp_path)[0]) == {*objective.modules()}


def test_what_pads_a_caption_makes_no_difference(tmp_path):
    golden = cases.load()
    objective, params = hf.read_objective(parity.released(golden, tmp_path))
    ids = cases.inputs()[1]
    tokens = np.pad(np.where(ids, ids, cases.END), ((0, 0), (0, 1)))  # CLIP's own tokenizer pads with the end
    text = objective.embed_texts({"params": params}, tokens)
    np.testing.assert_allclose(text, golden["text"], atol=1e-4)


def test_the_tokenizer_that_lies_beside_the_weights_is_read(tmp_path):
    directory = parity.released(cases.load(), tmp_path)
    (directory / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    with pytest.raises(UserError, match="the tokenizer has 515 ids but the text tower of CoCa 128"):
        hf.read_objective(directory)


def test_written_files_are_those_that_were_read(tmp_path):
    golden = cases.load()
    objective, params = hf.read_objective(parity.released(golden, tmp_path / "released"))
    hf.write_objective(tmp_path / "written", objective, params)
    written = load_file(tmp_path / "written" / OPEN_CLIP[1])
    assert written.keys() == golden["weights"].keys()
    for name, x in golden["weights"].items():
        np.testing.assert_array_equal(written[name], x, err_msg=name)
    said = json.loads((tmp_path / "written" / OPEN_CLIP[0]).read_text())
    config, (mean, std) = said["model_cfg"], (said["preprocess_cfg"][name] for name in ("mean", "std"))
    assert (tuple(mean), tuple(std)) == (CLIP_MEAN, CLIP_STD)
    assert hf.read_objective(tmp_path / "written")[0].augment == objective.augment
    said["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.25]
    (tmp_path / "written" / OPEN_CLIP[0]).write_text(json.dumps(said))
    assert hf.read_objective(tmp_path / "written")[0].augment.mean == (0.5, 0.5, 0.25)
    assert config["vision_cfg"] == cases.CONFIG["vision_cfg"] and config["embed_dim"] == 12
    with pytest.raises(UserError, match="open_clip_config.json exists and is not written over"):
        hf.write_objective(tmp_path / "written", objective, params)


def test_a_run_with_its_settings_can_be_written_and_one_without_cannot():
    run = ["Experiment.total_steps = 1", "Experiment.batch_size = 8", "Experiment.data = @PairData()"]
    run += ["Experiment.optimizer = @AdamW()", "AdamW.learning_rate = 1e-3"]
    objective = registry.parse(["objectives/coca_open_clip.gin"], run).objective
    objective = objective.bind(tiny.ByteTokenizer(0).vocabulary)
    modules = {name: module for name, (module, _) in objective.modules().items()}
    family, config = config_of(modules, hf.FAMILIES)
    assert family.model_type == "open_clip" and config["vision_cfg"]["width"] == 768
    assert config["text_cfg"]["context_length"] == config["multimodal_cfg"]["context_length"] == 76
    other = {name: module for name, (module, _) in tiny.coca().modules().items()}
    with pytest.raises(UserError, match="what can be written"):
        config_of(other, hf.FAMILIES)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda c: c["vision_cfg"].update(attentional_pool=False), "vision_cfg.attentional_pool=False is not one of"),
        (lambda c: c["vision_cfg"].update(qk_norm=True), "vision_cfg.qk_norm=True is not one of our models"),
        (lambda c: c["multimodal_cfg"].update(width=24), "multimodal_cfg.width=24 is not one of our models: their two"),
        (lambda c: c["vision_cfg"].update(attn_pooler_queries=1), "vision_cfg.attn_pooler_queries=1 is not one of our"),
        (lambda c: c["text_cfg"].update(pad_id=3), "text_cfg.pad_id=3 is not one of our models: they have 0"),
        (lambda c: c["text_cfg"].update(mlp_ratio=2.0), "text_cfg.mlp_ratio=2.0 is not one of our models"),
        (lambda c: c.pop("multimodal_cfg"), "of open_clip's models CoCa alone is read"),
        (lambda c: c.update(new=1), "new=1 is not one of our models: we do not know what this entry does"),
    ],
)
def test_configs_that_are_not_ours(change, text, tmp_path):
    golden = json.loads(json.dumps({"config": {"model_cfg": cases.CONFIG}}))
    change(golden["config"]["model_cfg"])
    with pytest.raises(UserError, match=text):
        hf.read(parity.released({**golden, "weights": {}}, tmp_path))


def test_the_papers_class_token_has_no_place_and_open_clips_has_one():
    shapes = lambda objective: jax.eval_shape(objective.init, jax.random.key(0))["text"]["positions"]["embedding"].shape
    assert shapes(tiny.coca())[0] == tiny.LENGTH - 1
    assert shapes(tiny.open_coca())[0] == tiny.LENGTH
