"""A run becomes files of the transformers library, these become a checkpoint, and a new run starts from it."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import convert, load
from launch.run import registry
from launch.run.experiment import Init, bound
from launch.run.initial import initial_state
from launch.run.mesh import make_mesh
from launch.run.program import Program
from launch.storage.checkpoint import Checkpoints
from multimodal import hf as pairs
from paradigm import trees
from paradigm.errors import UserError
from t5like import hf as texts
from t5like.tokenizers import ByteTokenizer
from tests.launch.test_load import NEXT, SPANS, make_run
from tests.parity import make
from tests.parity import pairs_cases as cases

EXPORTED = {"config.json", "model.safetensors", "tokenizer", "tokenizer.json", "tokenizer_config.json"}

PIXELS = "preprocessor_config.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    make_run(workdir, SPANS)
    return workdir


def test_there_and_back(run, tmp_path):
    """The averaged weights of the run, through both formats, bit for bit."""
    assert convert.to_hf(run, tmp_path / "hf") == f"step 4 of {run} -> {tmp_path / 'hf'}"
    assert {path.name for path in (tmp_path / "hf").iterdir()} == EXPORTED
    told = convert.to_checkpoint(tmp_path / "hf", tmp_path / "back")
    assert f"--init_from={tmp_path / 'back'}" in told and "d_model = 128" in told
    step, arrays, _ = Checkpoints(tmp_path / "back" / "checkpoints").arrays(only=("params",))
    wanted = load(run).variables()["params"]
    assert step == 0
    jax.tree.map(np.testing.assert_array_equal, trees.merge_strict(wanted, arrays["params"]), wanted)


def test_the_best(run, tmp_path):
    convert.to_hf(run, tmp_path, "best")
    _, params = convert.read(tmp_path)
    assert not any(x.any() for x in jax.tree.leaves(params))  # step 2 of make_run is all zeros


def test_refusals(run, tmp_path):
    (tmp_path / "note").touch()
    with pytest.raises(UserError, match="is there already and is not written over"):
        convert.to_hf(run, tmp_path)
    with pytest.raises(UserError, match="is there already and is not written over"):
        convert.to_checkpoint(tmp_path, tmp_path / "note")
    with pytest.raises(UserError, match="--step=last: write a number"):
        convert.to_hf(run, tmp_path / "new", "last")


def test_command(run, tmp_path):
    command = lambda *flags: subprocess.run(
        [sys.executable, "-m", "launch.convert", *flags], capture_output=True, text=True, check=False
    )
    done = command(f"--workdir={run}", f"--out={tmp_path / 'hf'}", "--format=hf", "--step=2")
    assert (done.returncode, done.stdout) == (0, f"step 2 of {run} -> {tmp_path / 'hf'}\n")
    done = command(f"--weights={run}", f"--out={tmp_path / 'back'}", "--format=peft")
    assert done.returncode == 2 and "--format=peft reads --workdir and nothing else" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_decoder(tmp_path):
    make_run(tmp_path / "run", NEXT)
    convert.to_hf(tmp_path / "run", tmp_path / "hf")
    assert convert.read(tmp_path / "hf")[0]["model"].positions == "rope"


@pytest.mark.parametrize(
    ("run", "differs"), [("prefix_lm", True), ("mntp", True), ("next_token", False), ("span_corruption", False)]
)
def test_a_decoder_that_read_from_both_sides_is_told(run, differs):
    told = convert._both_sides(parsed(run)[0])
    assert bool(told) is differs and all("read from both sides; the library's reads from the left" in x for x in told)


MAE = """
Experiment.objective = @MAE()
Experiment.data = @ImageData()
Experiment.optimizer = @AdamW()
Experiment.total_steps = 4
Experiment.batch_size = 8
Experiment.ema = 0.9
MAE.encoder = @vit()
MAE.augment = @no_views()
MAE.host_image_size = 16
MAE.mask_ratio = 0.5
MAE.decoder_width = 16
MAE.decoder_layers = 1
MAE.decoder_heads = 2
no_views.size = 16
ImageData.source = 'tfds:nothing'
vit.size = 'tiny'
vit.image_size = 16
vit.patch = 4
vit.layers = 1
AdamW.learning_rate = 0.001
"""


def test_a_run_on_images(tmp_path):
    """MAE's averaged encoder and decoder there and back; of another objective on images, the encoder alone."""
    make_run(tmp_path / "run", MAE)
    convert.to_hf(tmp_path / "run", tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {"config.json", "model.safetensors", PIXELS}
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["mask_ratio"], config["norm_pix_loss"]) == ("vit_mae", 0.5, True)
    told = convert.to_checkpoint(tmp_path / "hf", tmp_path / "back")
    assert f"--init_partly_from={tmp_path / 'back'}" in told and "d_model = 128" in told
    _, arrays, _ = Checkpoints(tmp_path / "back" / "checkpoints").arrays(only=("params",))
    wanted = load(tmp_path / "run").variables()["params"]
    jax.tree.map(np.testing.assert_array_equal, trees.merge_strict(wanted, arrays["params"]), wanted)

    other = re.sub(r"MAE\.(decoder|mask).*\n", "", MAE).replace("MAE", "Classify") + "Classify.classes = 3"
    make_run(tmp_path / "classify", other)
    convert.to_hf(tmp_path / "classify", tmp_path / "vit")
    modules, params = convert.read(tmp_path / "vit")
    assert set(modules) == {"encoder"} and modules["encoder"].positions == "learned"
    wanted = load(tmp_path / "classify").variables()["params"]["encoder"]
    assert np.array_equal(params["encoder"]["embed"]["kernel"], wanted["embed"]["kernel"])


def test_pairs_of_towers(tmp_path):
    """A released CLIP as a checkpoint: a tree for each tower, the very numbers."""
    source = make.released(cases.load("clip"), tmp_path / "released")
    assert f"--init_from={tmp_path / 'back'}" in convert.to_checkpoint(source, tmp_path / "back")
    _, arrays, _ = Checkpoints(tmp_path / "back" / "checkpoints").arrays(only=("params",))
    _, wanted = convert.read(source)
    jax.tree.map(np.testing.assert_array_equal, trees.merge_strict(wanted, arrays["params"]), wanted)


def test_a_run_on_pairs_takes_its_tokenizer_along(tmp_path):
    text = registry.SHIPPED.joinpath("runs/smoke/clip.gin").read_text() + "\nPairData.tokenizer = 'bytes'\n"
    make_run(tmp_path / "run", text, ByteTokenizer(0))
    convert.to_hf(tmp_path / "run", tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {*EXPORTED, PIXELS}
    objective, params = pairs.read_objective(tmp_path / "hf")
    wanted = load(tmp_path / "run").variables()["params"]
    jax.tree.map(np.testing.assert_array_equal, trees.merge_strict(wanted, params), wanted)


def parsed(run):
    """(a run's objective for bytes and three classes, its parameters, all 0)."""
    tokenizer = ByteTokenizer(20, ("mask", "cls", "sep"))
    objective = bound(registry.parse([f"runs/smoke/{run}.gin"], []), tokenizer.vocabulary, tuple("abc"), None).objective
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return objective, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def test_combinations_are_written_as_the_model_in_them(tmp_path):
    objective, params = parsed("slip")
    assert convert._package(objective).write_objective(tmp_path / "slip", objective, params) == ["projector"]
    found = pairs.read_objective(tmp_path / "slip")[0]
    assert found.augment.mean == dict(objective.parts)["clip"].augment.mean and pairs.texts_end(objective)
    objective, params = parsed("spactor")
    with pytest.raises(UserError, match="has no model: EncoderDecoder, generator: Encoder, detector: TokenHead; what"):
        convert._package(objective).write_objective(tmp_path / "spactor", objective, params)
    assert texts.ids(objective)["decoder_start_token_id"] == 0  # of one that leaves no head
    objective, params = parsed("electra")
    with pytest.raises(UserError, match="ELECTRA discriminator has activation='gelu_exact'; a model with activation"):
        convert._package(objective).write_objective(tmp_path / "electra", objective, params)


@pytest.mark.parametrize("kind", ["text", "images"])
def test_a_new_run_starts_from_a_directory_of_the_library(tmp_path, kind):
    text = SPANS if kind == "text" else registry.SHIPPED.joinpath("runs/smoke/mae.gin").read_text()
    experiment, _ = make_run(tmp_path / "run", text)
    convert.to_hf(tmp_path / "run", tmp_path / "hf")
    program = Program(experiment, make_mesh("data:-1"))
    start = lambda init: initial_state(program, Checkpoints(tmp_path / "none"), (init,))
    make, _, line = start(Init(str(tmp_path / "hf"), strict=kind == "text"))
    wanted = jax.device_get(load(tmp_path / "run").variables()["params"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(make().all_params), wanted)
    assert str(tmp_path / "hf") in line
    with pytest.raises(UserError, match="none: no checkpoint there; give a run directory, .* save_pretrained"):
        start(Init(str(tmp_path / "none")))


def test_weights_of_another_kind_of_model_are_refused_by_name(run, tmp_path):
    make_run(tmp_path / "run", NEXT)
    convert.to_hf(tmp_path / "run", tmp_path / "hf")
    program = Program(load(run).experiment, make_mesh("data:-1"))
    wanted = "hf holds a Decoder, and SpanCorruption's model is an EncoderDecoder: .*hf does not fit the model: model/"
    with pytest.raises(UserError, match=wanted):
        initial_state(program, Checkpoints(tmp_path / "none"), (Init(str(tmp_path / "hf")),))
    wanted = r"is of another kind: it holds tower, and SpanCorruption has model \(EncoderDecoder\): .* does not fit"
    with pytest.raises(UserError, match=wanted):  # nor a run, whose modules have other names
        other = Init(str(tmp_path / "run"), rename=(("^model/", "tower/"),))
        initial_state(program, Checkpoints(tmp_path / "none"), (other,))
