"""--base: a run on a pre-trained model as it is there, whatever the run file makes."""

import dataclasses

import jax
import numpy as np
import pytest

from launch import load, train
from launch.run import base, pretrained, registry
from launch.run.experiment import Init
from launch.run.initial import initial_state
from launch.run.mesh import make_mesh
from launch.run.program import Program
from launch.storage.checkpoint import Checkpoints
from paradigm.errors import UserError
from paradigm.hf.family import FREE, differing
from t5like.tokenizers import ByteTokenizer
from tests.launch.test_load import CONFIG, make_run
from tests.parity import cases, make
from vision.vit import vit

RUN = "runs/small/clinc150.gin"
HIDDEN = (
    CONFIG.format(objective="MaskedLM", model="bert", ema=None)
    + """
TextData.tokenizer = 'bytes'
TextData.specials = ('mask',)
MaskedLM.length = 16
bert.d_model = 24
bert.heads = 3
bert.d_ff = 32
bert.style = 'modern'
"""
)


def experiment(directory, *params, run=RUN):
    lines = base.bindings(str(directory), registry.parse([run], params))
    return registry.parse([run], [*lines, *params])


def differs(ours, theirs):
    return [name for name, *_ in differing(ours, theirs) if name not in FREE]


MASKED = """
Experiment.objective = @MAE()
Experiment.data = @ImageData()
Experiment.optimizer = @AdamW()
Experiment.total_steps = 4
Experiment.batch_size = 8
AdamW.learning_rate = 0.001
MAE.encoder = @vit()
MAE.augment = @mae_views()
MAE.decoder_width = 16
MAE.decoder_layers = 1
MAE.decoder_heads = 2
ImageData.source = 'digits'
vit.size = 'tiny'
vit.layers = 1
vit.image_size = 8
vit.patch = 4
vit.channels = 1
"""
SHORT = "TextClassification.length = 16"  # the models have few positions
CASES = {
    "Encoder": ("bert", "modernbert"),
    "Decoder": ("gpt2", "llama_31", "llama_yarn"),
    "EncoderDecoder": ("t5_v1_0", "mbart"),
}


@pytest.mark.parametrize("case, owner", [(case, owner) for owner, several in CASES.items() for case in several])
def test_a_task_has_the_model_of_the_base_and_its_tokenizer(case, owner, tmp_path):
    """All of its settings, also those that the run file sets, and config.gin has them."""
    directory = make.released(cases.load(case), tmp_path)
    found = experiment(directory, "Experiment.total_steps = 3", SHORT, "TextClassification.pool = None")
    [model] = pretrained.modules(directory).values()
    assert type(found.objective.model).__name__ == owner and not differs(found.objective.model, model)
    assert found.data.tokenizer == str(directory) and not found.data.specials and found.total_steps == 3
    [init] = found.init
    assert (init.path, init.strict, init.bodies) == (str(directory), True, True)
    assert registry.parse_text(registry.operative_config()) == found


def test_what_is_bound_beside_counts_and_how_it_is_computed_stays(tmp_path):
    directory = make.released(cases.load("bert"), tmp_path)
    found = experiment(
        directory, SHORT, "bert.dropout = 0.25", "bert.drop_path = 0.5", "TextRecords.specials = ('mask',)"
    )
    assert found.objective.model.dropout == 0.25 and found.objective.model.drop_path == 0.5
    assert found.data.specials == ("mask",)


def test_a_task_trains_on_a_run_and_what_is_drawn_is_told(tmp_path, capsys):
    was, state = make_run(tmp_path / "base", HIDDEN, ByteTokenizer(specials=("mask",)))
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(f'{{"text": "a{i}", "label": "{"xyz"[i % 3]}"}}\n' for i in range(20)))
    params = [f"TextRecords.source = '{table}'", "TextRecords.input = '{text}'", "TextRecords.label = 'label'"]
    params += ["Experiment.total_steps = 1", "Experiment.batch_size = 8", "Experiment.evaluators = ()"]
    params += [SHORT]
    train.run(RUN, tmp_path / "run", params, base=tmp_path / "base")
    assert "drawn are classifier/" in capsys.readouterr().out
    run = load(tmp_path / "run")
    assert not differs(run.model, was.objective.model) and len(run.classify("a").chances) == 3
    jax.tree.map(np.testing.assert_array_equal, run.params["model"], state.params["model"])  # a schedule begins at 0


def test_pictures_are_of_the_channels_of_the_base_and_other_moments_are_told(tmp_path, capsys, monkeypatch):
    encoder = vit("tiny", image_size=16, patch=8, layers=1, channels=3, pool="class", positions="learned")
    monkeypatch.setattr(pretrained, "is_pretrained", lambda path: True)
    monkeypatch.setattr(pretrained, "modules", lambda path: {"encoder": encoder, "decoder": encoder})
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    found = experiment(tmp_path, run="runs/smoke/lora.gin")
    assert found.objective.encoder == encoder.clone(scan=False) and found.data.channels == 3
    assert (
        "mean (0.5, 0.5, 0.5) and deviation (0.5, 0.5, 0.5), and the run file's views of (0.485,"
        in capsys.readouterr().out
    )
    experiment(
        tmp_path, "mae_views.mean = (0.5, 0.5, 0.5)", "mae_views.std = (0.5, 0.5, 0.5)", run="runs/smoke/lora.gin"
    )
    assert not capsys.readouterr().out
    # Version 5 of the library writes a pair's processors into one file, which counts more.
    both = '{"image_processor": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_normalize": false}}'
    (tmp_path / "processor_config.json").write_text(both)
    experiment(tmp_path, run="runs/smoke/lora.gin")
    assert "processor_config.json has pictures of mean (0, 0, 0) and deviation (1, 1, 1)" in capsys.readouterr().out


def test_an_encoder_of_pictures_comes_without_its_decoder_and_gets_a_classifier(tmp_path, capsys):
    was, state = make_run(tmp_path / "base", MASKED)
    params = ["Experiment.total_steps = 1", "Experiment.batch_size = 8", "Experiment.adapt = None"]
    params += ["mae_views.std = (0.25,)", "mae_views.mean = (0.5,)"]
    train.run("runs/smoke/lora.gin", tmp_path / "run", params, base=tmp_path / "base")
    told = capsys.readouterr().out
    assert "not taken decoder" in told and "drawn are classifier/" in told
    assert f"{tmp_path / 'base'} has pictures of mean (0.5) and deviation (0.5), and the run file's" in told
    run = load(tmp_path / "run")
    assert not differs(run.objective.encoder, was.objective.encoder)
    jax.tree.map(np.testing.assert_array_equal, run.params["encoder"], state.params["encoder"])
    # --init_from tells it as well, once the parameters are known to fit.
    views = dataclasses.replace(was.objective.augment, mean=(0.1,), std=(0.5,))
    other = dataclasses.replace(was, objective=dataclasses.replace(was.objective, augment=views))
    for experiment, told in ((was, ""), (other, "has pictures of mean (0.5) and deviation (0.5), and the run file's")):
        program = Program(experiment, make_mesh("data:-1"))
        initial_state(program, Checkpoints(tmp_path / "none"), (Init(str(tmp_path / "base")),))
        found = capsys.readouterr().out
        assert told in found if told else not found


def test_a_chat_template_that_is_not_read_is_told(tmp_path, capsys):
    directory, run = make.released(cases.load("t5_v1_1"), tmp_path), "runs/smoke/text_to_text.gin"
    (directory / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    experiment(directory, run=run)
    assert "chat template" not in capsys.readouterr().out
    experiment(directory, "TextRecords.turns = 'messages'", run=run)
    assert "has a chat template, which is not read: turns are written as TextRecords.turn" in capsys.readouterr().out


def test_what_cannot_be_a_base(tmp_path, monkeypatch):
    directory = make.released(cases.load("bert"), tmp_path / "bert")
    with pytest.raises(UserError, match=r"holds model \(Encoder\), and MAE reads encoder: take another base"):
        experiment(directory, run="runs/smoke/mae.gin")
    with pytest.raises(UserError, match="Sum has several models, or none: describe them in a gin file"):
        experiment(directory, run="runs/smoke/slip.gin")
    with pytest.raises(UserError, match="CLIP has several models, or none"):
        experiment(directory, run="runs/smoke/clip.gin")
    monkeypatch.setattr(pretrained, "modules", lambda path: {"encoder": vit("tiny")})
    with pytest.raises(UserError, match=r"--base=\S+ does not go with runs/smoke/igpt.gin: .*IGPT.encoder = @vit\(\)"):
        train.parsed(["runs/smoke/igpt.gin"], [], [], str(directory))
    monkeypatch.undo()
    with pytest.raises(UserError, match="no such run directory"):
        experiment(tmp_path / "nowhere")
    with pytest.raises(UserError, match="SpanQA works on Encoder or EncoderDecoder"):
        experiment(make.released(cases.load("gpt2"), tmp_path / "gpt2"), run="runs/smoke/span_qa.gin")


def test_every_maker_of_a_base_makes_its_class():
    made = {name: registry.configurables()[maker](**first) for name, (maker, first) in base.MAKERS.items()}
    assert {name: type(module).__name__ for name, module in made.items()} == {name: name for name in base.MAKERS}
