"""load: a run directory, without its data or its optimizer, becomes something that infills and continues text."""

import dataclasses
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import launch.load  # the function must win over anything that importing submodules leaves behind
from launch import load
from launch.run import registry
from launch.run.experiment import bound
from launch.storage.checkpoint import Checkpoints
from paradigm.errors import UserError
from paradigm.step import init_state
from t5like import decode
from t5like.features import embed
from t5like.models import gpt
from t5like.tasks import ask
from t5like.tokenizers import ByteTokenizer
from tests.launch import small

CONFIG = """
Experiment.objective = @{objective}()
Experiment.data = @TextData()
Experiment.optimizer = @AdamW()
Experiment.total_steps = 4
Experiment.batch_size = 8
Experiment.ema = {ema}
{objective}.model = @{model}()
{model}.size = 'tiny'
AdamW.learning_rate = 0.001
"""
SPANS = CONFIG.format(objective="SpanCorruption", model="t5", ema=0.9)
CAPTIONS = """
Experiment.objective = @CapPa()
Experiment.data = @PairData()
Experiment.optimizer = @AdamW()
Experiment.total_steps = 4
Experiment.batch_size = 8
AdamW.learning_rate = 0.001
CapPa.encoder = @vit()
CapPa.captioner = @cappa_text()
CapPa.augment = @siglip_views()
vit.size = 'tiny'
vit.image_size = 16
vit.patch = 8
vit.layers = 1
cappa_text.size = 'tiny'
cappa_text.length = 16
cappa_text.layers = 1
"""
NEXT = CONFIG.format(objective="NextToken", model="gpt", ema=None) + "NextToken.length = 32"


def make_run(workdir, text, tokenizer=None):
    """A run directory as training leaves it, at steps 2 (all zeros) and 4."""
    experiment = bound(registry.parse_text(text))
    config = registry.operative_config()
    state = jax.jit(lambda: init_state(experiment.objective, experiment.optimizer, 0, experiment.ema))()
    if "ema" in state.extra:  # which starts as the parameters
        state.extra["ema"] = jax.tree.map(lambda x: x + 1, state.params)
    with Checkpoints(workdir / "checkpoints", best_metric="valid/loss") as checkpoints:
        checkpoints.save(2, jax.tree.map(np.zeros_like, state), {"config": config}, {"valid/loss": 2})
        checkpoints.save(4, state, {"config": config}, {"valid/loss": 4})
    (tokenizer or ByteTokenizer()).save(workdir / "tokenizer")
    return experiment, state


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("spans")
    return workdir, *make_run(workdir, SPANS)


def test_infill(spans):
    workdir, experiment, state = spans
    run = load(workdir)
    assert run.step == 4 and run.experiment == experiment and run.model == experiment.objective.model
    jax.tree.map(np.testing.assert_array_equal, run.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, run.variables(), {"params": state.extra["ema"]})
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(run.params))
    logits, _, _ = run.objective.apply(
        "model", run.variables("online"), np.ones((1, 8), np.int32), np.ones((1, 4), np.int32)
    )
    assert logits.shape == (1, 4, 384)
    assert "sat on" in str(run.infill("The <X> sat on <Y> mat", max_new_tokens=4))
    assert "params" not in repr(run)
    with pytest.raises(UserError, match="^generate: SpanCorruption cannot continue a text, .*: use infill.*, which"):
        run.generate("Once")


def test_the_best_and_a_chosen_step(spans):
    workdir = spans[0]
    assert load(workdir, "best").step == 2 and load(str(workdir), 2).step == 2
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 4\] is of step 3"):
        load(workdir, 3)


def test_generate(tmp_path):
    make_run(tmp_path, NEXT)
    run = load(tmp_path)
    assert run.variables().keys() == {"params"} and run.extra == {}
    assert str(run.generate("Once", max_new_tokens=4, temperature=1.0)).startswith("Once") and run.speed == {}
    run.generate("Once", max_new_tokens=4, temperature=1.0)
    assert run.speed["decoded_tokens_per_second"] > 0
    with pytest.raises(UserError, match="^infill: NextToken cannot fill blanks, .* can: use generate.*, which it can$"):
        run.infill("The <X> sat")
    images = dataclasses.replace(run, experiment=small.experiment())
    with pytest.raises(UserError, match="TwoTerms cannot fill blanks, .* can: it can neither infill nor generate$"):
        images.infill("The <X> sat")


class Column:
    """One of a table, as pandas has them: no list, and asked whether it is empty it refuses to say."""

    __init__ = lambda self, values: setattr(self, "values", values)
    __iter__ = lambda self: iter(self.values)
    __array__ = lambda self, *_, **__: np.array(self.values, object)

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")


def test_embed_texts(tmp_path):
    """The mean over a text's tokens, however many others it is read with and whatever their length."""
    make_run(tmp_path, NEXT)
    run, texts = load(tmp_path), ["Once", "upon a time, and longer than that"]
    found = run.embed(texts)
    ids = np.r_[run.objective.known.start, run.tokenizer.encode(texts[0])][None]
    hidden, _, _ = run.objective.apply("model", run.variables(), ids, None, np.ones_like(ids), method="hidden")
    np.testing.assert_allclose(found[0], np.asarray(hidden)[0].mean(0), atol=1e-5)
    np.testing.assert_allclose(run.embed(texts[1]), found[1], atol=1e-5)
    for several in (Column(texts), iter(texts), np.array(texts)):
        np.testing.assert_array_equal(run.embed(several), found)
    middle = run.embed(texts[0], layer=0)
    assert middle.shape == found[0].shape and not np.allclose(middle, found[0])
    with pytest.raises(UserError, match="^embed: pool='cls': a Decoder's first place has seen nothing of the text"):
        run.embed(texts[0], pool="cls")
    for layer in (99, -99, 0.5):
        with pytest.raises(UserError, match=f"^embed: layer={layer}: the model has layers 0 to "):
            run.embed(texts[0], layer=layer)
    with pytest.raises(UserError, match="^seed=None: write a whole number, another one for other draws"):
        run.generate(texts[0], seed=None, max_new_tokens=1)
    assert run.embed([]).shape == (0, run.model.d_model)
    with pytest.raises(UserError, match="^embed: this run reads texts: give a text, or a list of them"):
        run.embed(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="^classify.classes=.*: NextToken cannot embed pictures and texts, .*leave cla"):
        run.classify("Once", classes=["a", "b"])
    pictures = dataclasses.replace(run, experiment=registry.parse(["runs/smoke/mae.gin"]))
    with pytest.raises(UserError, match="^classify: MAE cannot classify pictures, Classify can: load a run that was"):
        pictures.classify(np.zeros((8, 8, 1), np.uint8))


def test_variables_that_a_run_has_not(tmp_path):
    make_run(tmp_path, NEXT)
    for which in ("ema", "tutor"):
        with pytest.raises(UserError, match=f"^which='{which}': NextToken has no variables .* here: leave it out"):
            load(tmp_path).variables(which)


def test_embed_refuses_what_has_no_position(tmp_path):
    make_run(tmp_path, NEXT + "\ngpt.style = 'gpt2'\ngpt.max_length = 32\n")
    run = load(tmp_path)
    assert run.embed("Once" * 7).shape == (run.model.d_model,)
    with pytest.raises(UserError, match="embed: 'Once.* is of 33 tokens, and the model has 32 positions: cut it, or"):
        run.embed(["Once", "Once" * 8])


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="absent: no such run directory"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="checkpoints: no checkpoint there yet"):
        load(tmp_path)
    make_run(tmp_path, NEXT)
    (tmp_path / "config.gin").touch()
    for inside in ("checkpoints", "checkpoints/4"):
        with pytest.raises(UserError, match=f"no checkpoint there yet: the run is {tmp_path}, and a step is named bes"):
            load(tmp_path / inside)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").touch()
    with pytest.raises(
        UserError, match=f"weights of the transformers library begin a run, .*--init_from={tmp_path}/hf"
    ):
        load(tmp_path / "hf")
    with Checkpoints(tmp_path / "weights" / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": {"model": {"kernel": np.zeros(2)}}}, {})
    with pytest.raises(
        UserError, match=r"checkpoints/0 holds weights and no run: launch.train --init_from=.*begins one"
    ):
        load(tmp_path / "weights")
    with pytest.raises(UserError, match="step=1.5: write a number or 'best'"):
        load(tmp_path, step=1.5)
    with pytest.raises(UserError, match=r"step=\[1\]: write a number or 'best'"):
        load(tmp_path, [1])
    registry.parse_text(NEXT + "\ngpt.vocab_size = 512")
    arrays = Checkpoints(tmp_path / "checkpoints").arrays()[1]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(6, arrays, {"config": registry.operative_config()})
    with pytest.raises(UserError, match=r"6 does not fit the model: .*: wanted \(512, \d+\), found \(384, \d+\)"):
        load(tmp_path)
    with pytest.raises(UserError, match="its tokenizer/, which belongs to the run, is gone"):
        (tmp_path / "tokenizer").rename(tmp_path / "elsewhere")
        _ = load(tmp_path, 4).tokenizer


@pytest.mark.parametrize("given", [3, None, ["a", 3], b"a", np.zeros(2)])
def test_what_is_no_text_is_refused(given):
    """A notebook may give anything: one line, before a model is asked."""
    known = types.SimpleNamespace(pair=False, model=gpt("tiny", 384)), None, ByteTokenizer()
    pairs = (types.SimpleNamespace(pair=True), *known[1:], ())
    asks = {
        "rewrite: a text is wanted, or a list of them, not": lambda: ask.rewrite(*known, (), given),
        "classify: this run reads one text at a time": lambda: ask.classify(*known, (), given),
        "classify: this run reads pairs of texts": lambda: ask.classify(*pairs, [given]),
        "tag: a text is wanted, or a list of words, not": lambda: ask.tag(*known, (), given),
        "answer: question and context are texts, not": lambda: ask.answer(*known, (), "who?", given),
        "infill: a text is wanted, not": lambda: decode.infill(*known, given),
        "generate: a text is wanted, not": lambda: decode.generate(*known, given),
        "embed: this run reads texts": lambda: embed(*known, given),
        "max_new_tokens=1.5: ask for 1 or more": lambda: decode.generate(*known, "a", max_new_tokens=1.5),
    }
    for said, asked in asks.items():
        with pytest.raises(UserError, match=f"^{said}"):
            asked()


def test_importing_launch_is_cheap():
    script = "import sys, launch; assert 'jax' not in sys.modules; from launch import load; assert callable(load)"
    subprocess.run([sys.executable, "-c", script + "; import launch.load; assert launch.load is load"], check=True)
    with pytest.raises(AttributeError, match="module 'launch' has no attribute 'lode'"):
        launch.lode  # noqa: B018


def test_pictures_are_classified_by_a_run_its_adaptation_and_what_that_is_merged_into(tmp_path):
    text = re.sub(r"(?m)^(CapPa|cappa_text|siglip).*\n|@CapPa\(\)", "", CAPTIONS).replace("@PairData()", "@ImageData()")
    text = text.replace("Experiment.objective = ", "Experiment.objective = @Classify()")
    text += "Classify.encoder = @vit()\nClassify.augment = @no_views()\nClassify.classes = 3\nno_views.size = 16\n"
    make_run(tmp_path, text + "Experiment.adapt = @LoRA()\nLoRA.rank = 2\n")
    draw = np.random.default_rng(0)
    drawn = lambda x: x + draw.normal(0, 0.1, x.shape).astype(np.float32)  # a new head takes all classes for alike
    run = load(tmp_path)
    run = dataclasses.replace(run, params=jax.tree.map(drawn, run.params))
    images = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((16, 16), (20, 31))]
    assert run.classify(images)[0].label in "012"
    (tmp_path / "labels.json").write_text('["ant", "bee", "cat"]')
    found = run.classify(images)
    row = run.objective.preprocess({"image": images[1]}, None, 0, False)
    view = run.objective.view({name: row[name][None] for name in ("image", "aspect")})
    wanted = jax.nn.softmax(run.objective.logits(run.variables(), view))[0]
    assert [found[1].chances[name] for name in ("ant", "bee", "cat")] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert found[1].label == max(found[1].chances, key=found[1].chances.get) == next(iter(found[1].chances))
    assert run.classify(images[1]).chances == pytest.approx(found[1].chances)
    assert run.merged().classify(images[1]).chances == pytest.approx(found[1].chances, abs=1e-5)
    assert run.classify([]) == []
    assert run.classify(jax.numpy.asarray(images[1])).chances == pytest.approx(found[1].chances)
    assert run.classify(iter(images))[1].chances == pytest.approx(found[1].chances)
    wanted, _ = run.objective.features(run.variables(), view)
    np.testing.assert_allclose(run.embed(images)[1], np.asarray(wanted)[0], atol=1e-5)
    np.testing.assert_allclose(run.embed(images[1]), np.asarray(wanted)[0], atol=1e-5)
    assert run.embed([]).shape == (0, run.objective.encoder.features)
    with pytest.raises(UserError, match="^a bee cannot be read as a picture"):
        run.embed("a bee")
    with pytest.raises(UserError, match="^segment: Classify cannot segment pictures, Segmentation can"):
        run.segment(images)
    with pytest.raises(UserError, match="pictures have 1 channels and the encoder reads 3"):
        run.classify(images[0][..., :1])
    with pytest.raises(UserError, match=r"^a picture is object \[\]: sources give uint8"):
        run.classify(None)


def test_caption(tmp_path, monkeypatch):
    """One string a picture, which begins with the prompt; who cannot caption says who can."""
    make_run(tmp_path / "captions", CAPTIONS, ByteTokenizer(0))
    run, pictures = load(tmp_path / "captions"), [np.zeros((9, 7, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)]
    found = run.caption(pictures, "ab")
    assert len(found) == 2 and all(text.startswith("ab") for text in found)
    assert found == run.caption(pictures, prompt="ab") and run.caption(pictures[0], "ab") == found[0]
    assert run.caption(pictures[0], temperature=1.0, seed=2) == run.caption(pictures[:1], temperature=1.0, seed=2)[0]
    assert run.caption([]) == []
    monkeypatch.setattr("vision.ask.TOGETHER", 1)
    assert run.caption(pictures, "ab") == found
    make_run(tmp_path / "next", NEXT)
    with pytest.raises(UserError, match="caption: NextToken cannot caption pictures, .*CapPa.*can: use an objective"):
        load(tmp_path / "next").caption(pictures)
