"""Runs on one's own data with nothing but their place: classes, fields and pooling follow the data."""

import json

import numpy as np
import pytest
from PIL import Image

from launch import evaluate, load
from launch.run import loop, registry
from launch.run.experiment import bound, completed
from paradigm.errors import UserError
from t5like.models import gpt
from t5like.records import TextRecords
from t5like.tokenizers import ByteTokenizer

SMALL = ["Experiment.total_steps = 1", "Experiment.batch_size = 8", "Experiment.mesh = 'data:-1'"]
TEXT = [*SMALL, "bert.layers = 1", "bert.d_model = 16", "bert.heads = 2", "bert.d_ff = 32"]
CLASSIFY = ["runs/smoke/classification.gin"]


def train(files, params, workdir, **how):
    experiment = registry.parse(files, params)
    return loop.train(experiment, workdir, config=registry.operative_config(), **how)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.jsonl"
    rows = [{"text": f"{w} number {i}", "intent": w} for i in range(12) for w in ("cat", "dog", "bird")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_classes_follow_a_table(table, tmp_path, capfd):
    params = [*TEXT, f"TextRecords.source = '{table}'", "TextRecords.tokenizer = 'bytes'"]
    finished = train(CLASSIFY, params, tmp_path / "run")
    assert finished.state.params["classifier"]["output"]["kernel"].shape == (16, 3)
    told = capfd.readouterr().err
    assert "fields     input {text}, label intent\n" in told and "intent: 3 classes (bird, cat, dog)" in told
    assert "\r" not in told
    table_moved = table.with_name("moved.jsonl")
    table.rename(table_moved)  # a run needs its source no more: neither to go on, nor to be asked
    try:
        assert train(CLASSIFY, [*params, "Experiment.total_steps = 2"], tmp_path / "run").step == 2
        run = load(tmp_path / "run")
        assert run.objective.classes == 3 and run.objective.pool == "mean"  # bytes have no cls
        [found] = run.classify(["cat number 3"])
        assert set(found.chances) == {"bird", "cat", "dog"}
    finally:
        table_moved.rename(table)
    step, metrics, _ = evaluate.evaluate(tmp_path / "run")
    assert step == 2 and "valid/accuracy" in metrics


def test_classes_follow_a_prepared_directory(table, tmp_path):
    TextRecords(str(table)).build(tmp_path / "prepared", workers=1)
    params = [*TEXT, f"TextRecords.source = '{tmp_path / 'prepared'}'"]
    finished = train(CLASSIFY, params, tmp_path / "run")  # whose tokenizer takes the place of the run file's
    assert finished.state.params["classifier"]["output"]["kernel"].shape == (16, 3)
    experiment = completed(bound(registry.parse(CLASSIFY, params)))  # as a dry run has it
    assert experiment.objective.classes == 3


def test_data_without_two_classes_are_refused_before_the_run_begins(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} is", "label": "a"}) + "\n" for i in range(20)))
    params = [*TEXT, f"TextRecords.source = '{path}'", "TextRecords.tokenizer = 'bytes'"]
    with pytest.raises(UserError, match="needs labels of two classes or more, and in the field 'label' all are 'a'"):
        train(CLASSIFY, params, tmp_path / "run")
    assert not (tmp_path / "run" / "config.gin").exists()
    path.write_text("".join(json.dumps({"text": f"{i} is", "kind": "a"}) + "\n" for i in range(20)))
    with pytest.raises(UserError, match="set TextRecords.label to the field that holds them, of text, kind$"):
        train(CLASSIFY, params, tmp_path / "other")


def test_pooling_follows_the_model_and_its_tokenizer():
    from t5like.models import bert
    from t5like.tasks import TextClassification

    bare, framed = ByteTokenizer().vocabulary, ByteTokenizer(specials=("cls", "sep")).vocabulary
    small = dict(layers=1, d_model=16, heads=2, d_ff=32)
    pool = lambda model, vocabulary: TextClassification(model, 3).bind(vocabulary).pool
    assert pool(bert("tiny", **small), framed) == "first" and pool(bert("tiny", **small), bare) == "mean"
    assert pool(gpt("tiny", **small), bare) == "last"


def pictures(folder, classes=("cat", "dog", "owl"), count=4):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((8, 8, 3), 60 * number + i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_classes_follow_pictures(tmp_path, capfd):
    source = pictures(tmp_path / "set")
    params = [*SMALL, f"ImageData.source = '{source}'", "Experiment.adapt = None", "vit.layers = 1", "vit.d_model = 16"]
    params += ["vit.heads = 2", "vit.d_ff = 32", "Experiment.evaluators = ()"]
    finished = train(["runs/smoke/lora.gin"], params, tmp_path / "run")
    assert finished.state.params["classifier"]["output"]["kernel"].shape == (16, 3)
    assert load(tmp_path / "run").objective.classes == 3
    others = pictures(tmp_path / "others", ("bee", "cat", "dog"))  # as many, and a number is another class's
    with pytest.raises(UserError, match="other classes: the run tells apart cat, dog, owl, and .* has bee, cat, dog: "):
        evaluate.evaluate(tmp_path / "run", gin_params=[f"ImageData.source = '{others}'"])
    other = [*params, f"ImageData.source = '{others}'"]
    train(["runs/smoke/lora.gin"], other, tmp_path / "other", init_from=tmp_path / "run")
    told = "run at step 1 tells apart cat, dog, owl, and the data have bee, cat, dog: it begins with other classes'"
    assert told in capfd.readouterr().err
    with pytest.raises(
        UserError, match="Classify.classes=2 and the training records have 3 labels: set it to that, or"
    ):
        train(["runs/smoke/lora.gin"], [*params, "Classify.classes = 2"], tmp_path / "two")
    with pytest.raises(UserError, match=r"Classify needs labels of two classes or more, and in \S+set there are none"):
        train(["runs/smoke/lora.gin"], [*params, "ImageData.labels = False"], tmp_path / "none")


@pytest.mark.parametrize(
    "params, message",
    [
        (["Experiment.optimizer = None"], "Experiment.optimizer = None is no optimizer: write @NAME"),
        (["Experiment.objective = @bert()"], r"Experiment.objective = @Encoder\(\) is no objective"),
        (["Experiment.adapt = 'lora'"], "Experiment.adapt = 'lora' is no adaptation: write"),
        (["Experiment.evaluators = ('x',)"], "Experiment.evaluators = 'x' is no evaluator"),
        (["Experiment.init = ('x',)"], r"Experiment.init = 'x' is no init: write @NAME\(\), as in @Init\(\)"),
        (["bert.layers = 0"], "Encoder: layers=0 must be at least 1"),
        (["bert.dropout = 2.0"], r"Encoder: dropout=2.0 must lie in \[0, 1\)"),
        (["AdamW.learning_rate = -1.0"], "AdamW.learning_rate = -1.0 must be 0 or more"),
        (["AdamW.learning_rate = 1e999"], "AdamW.learning_rate = inf must be a finite number"),
        (
            ["AdamW.learning_rate = @Cosine()", "Cosine.peak = -1.0", "Cosine.warmup_steps = 0"],
            "the learning rate of AdamW falls to -1: it must be 0 or more",
        ),
        (["TextRecords.source = ' '"], "TextRecords.source is empty: name a file, a folder or another source"),
        (
            ["TextRecords.columns = 'text'"],
            r"TextRecords.columns = 'text' is a text where several are wanted: write \('t",
        ),
        (["TextRecords.valid = 'a'"], "TextRecords.valid = 'a' is a text where a number is wanted: leave the quotes"),
        (["TextClassification.length = None"], "TextClassification.length = None is not a whole number"),
    ],
)
def test_wrong_values_are_told_before_anything_is_made(params, message, table, tmp_path):
    base = [*TEXT, f"TextRecords.source = '{table}'", "TextRecords.tokenizer = 'bytes'"]
    with pytest.raises(UserError, match=message) as error:
        train(CLASSIFY, [*base, *params], tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_best_metric_that_is_none_is_told(table, tmp_path, capfd):
    base = [*TEXT, f"TextRecords.source = '{table}'", "TextRecords.tokenizer = 'bytes'"]
    train(CLASSIFY, [*base, "Experiment.best_metric = 'valid/acc'"], tmp_path / "run")
    assert "warning: Experiment.best_metric='valid/acc' is none of valid/loss, valid/accuracy" in capfd.readouterr().out
