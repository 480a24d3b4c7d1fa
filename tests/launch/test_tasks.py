"""Tasks as runs: from a pre-trained model by naming it, and what a notebook asks of them."""

import json

import jax
import numpy as np
import pytest

from launch import load
from launch.run import loop, registry
from launch.run.experiment import bound
from launch.storage.checkpoint import Checkpoints
from paradigm.errors import UserError
from paradigm.step import init_state
from t5like.decode import beam_rows
from t5like.tokenizers import ByteTokenizer

BASES = {"bert": "MaskedLM", "gpt": "NextToken", "t5": "SpanCorruption"}
COMMON = """
Experiment.optimizer = @AdamW()
Experiment.total_steps = 1
Experiment.batch_size = 8
Experiment.mesh = 'data:-1'
{model}.size = 'tiny'
{model}.layers = 1
{model}.d_model = 16
{model}.heads = 2
{model}.d_ff = 32
"""
BASE = """
Experiment.objective = @{objective}()
Experiment.data = @TextData()
{objective}.model = @{model}()
{objective}.length = 32
TextData.specials = ('mask', 'cls', 'sep')
AdamW.learning_rate = 1e-3
"""
TASK = """
Experiment.objective = @{task}()
Experiment.data = @TextRecords()
Experiment.init = (@Init(),)
Init.path = '{base}'
{task}.model = @{model}()
{task}.length = 24
TextRecords.source = '{source}'
TextRecords.tokenizer = '{base}'
TextRecords.valid = 0.3
AdamW.learning_rate = 0.0
AdamW.weight_decay = 0.0
"""
TASKS = {
    "TextClassification": "TextRecords.input = '{text}'\nTextRecords.label = 'kind'\nTextClassification.classes = 2\n"
    "Experiment.evaluators = (@ClassificationScores(),)",
    "TokenTagging": "TextRecords.input = '{words}'\nTextRecords.label = 'tags'\nTextRecords.label_kind = 'tags'\n"
    "TokenTagging.classes = 2\nExperiment.evaluators = (@TaggingScores(),)",
    "SpanQA": "TextRecords.input = '{kind}'\nTextRecords.target = '{text}'\nTextRecords.label = 'answers'\n"
    "TextRecords.label_kind = 'answer'\nTextRecords.group = 'text'\nExperiment.evaluators = (@AnswerScores(),)",
    "TextToText": "TextRecords.input = '{text}'\nTextRecords.target = '{kind}'\nTextToText.target_length = 8\n"
    "TextScores.count = 3\nExperiment.evaluators = (@TextScores(),)",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = []
    for i in range(24):
        words = [f"w{i}", ("bark", "meow")[i % 2], "now"]
        answers = [{"text": words[1], "answer_start": len(words[0]) + 1}]
        rows.append({"text": " ".join(words), "words": words, "tags": ["O", "B-n", "O"], "answers": answers,
                     "kind": ("dog", "cat")[i % 2]})  # fmt: skip
    path = tmp_path_factory.mktemp("records") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A run of each pre-training objective as training leaves it."""
    found = {}
    for model, objective in BASES.items():
        workdir = tmp_path_factory.mktemp(model)
        text = (BASE + COMMON).format(model=model, objective=objective)
        experiment = bound(registry.parse_text(text))
        state = jax.jit(lambda e=experiment: init_state(e.objective, e.optimizer, 3))()
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save(4, state, {"config": registry.operative_config()}, {})
        ByteTokenizer(specials=("mask", "cls", "sep")).save(workdir / "tokenizer")
        found[model] = workdir, state.params
    return found


def train(workdir, task, model, base, source, *params):
    text = (TASK + COMMON).format(task=task, model=model, base=base, source=source) + TASKS[task]
    experiment = registry.parse_text(text, params)
    return loop.train(experiment, workdir, config=registry.operative_config())


@pytest.mark.parametrize(
    "task, model",
    [
        ("TextClassification", "bert"),
        pytest.param("TextClassification", "gpt", marks=pytest.mark.slow),
        ("TokenTagging", "bert"),
        ("SpanQA", "bert"),
        ("TextToText", "t5"),
        pytest.param("TextToText", "gpt", marks=pytest.mark.slow),
    ],
)
def test_a_task_begins_with_the_base_and_answers_in_a_notebook(task, model, bases, source, tmp_path, capsys):
    base, params = bases[model]
    finished = train(tmp_path / "run", task, model, base, source)
    new = finished.state.params.keys() - {"model"}
    assert len(new) == (task != "TextToText") and (f"drawn are {''.join(new)}/" in capsys.readouterr().out) == bool(new)
    jax.tree.map(np.testing.assert_array_equal, finished.state.params["model"], params["model"])
    run = load(tmp_path / "run")
    if task == "TextClassification":
        one, two = run.classify(["w1 bark now", "x"])
        assert run.labels == ("cat", "dog") and one.label == max(one.chances, key=one.chances.get)
        assert sum(two.chances.values()) == pytest.approx(1) and run.classify("x").chances == pytest.approx(two.chances)
        with pytest.raises(UserError, match="classify: this run reads one text at a time"):
            run.classify([("a", "b")])
        with pytest.raises(UserError, match="tag: TextClassification cannot tag words, TokenTagging can"):
            run.tag("a b")
    elif task == "TokenTagging":
        found = run.tag("w1 bark " + 9 * "long ")
        assert [word for word, _ in found][:2] == ["w1", "bark"] and {t for _, t in found[:4]} <= {"O", "B-n"}
        assert found[-1] == ("long", None)
    elif task == "SpanQA":
        assert run.answer("dog", "w1 bark now") in {"w1", "bark", "now", "w1 bark", "bark now", "w1 bark now"}
    else:
        wanted = run.rewrite(["w1 bark now", "a"])
        assert len(wanted) == 2 and run.rewrite("a") == wanted[1] == run.generate("a")
        with pytest.raises(UserError, match="^infill: TextToText cannot fill blanks, .* can: use rewrite$"):
            run.infill("a <X>")
        part, variables = run.objective, run.variables()
        read = [part.preprocess.kept(run.tokenizer.encode("w1 bark now"))]
        given = dict(inputs=read) if model == "t5" else {}
        prompts = [[]] if given else read
        [[(best, score), (_, worse)]] = beam_rows(
            part, variables, prompts, 5, part.known, beams=3, n_best=2, prefix=part.prefix, **given
        )
        assert run.rewrite("w1 bark now", beams=3, max_new_tokens=5) == run.tokenizer.decode(best) and score >= worse
        with pytest.raises(UserError, match="beams=3 searches and temperature=1 draws"):
            run.rewrite("a", beams=3, temperature=1.0)
    assert all(np.isfinite(value) for value in finished.metrics.values())


def test_a_head_is_taken_where_the_base_has_it_and_a_base_that_differs_is_refused(bases, source, tmp_path):
    base, _ = bases["bert"]
    first = train(tmp_path / "first", "TextClassification", "bert", base, source)
    again = train(tmp_path / "again", "TextClassification", "bert", tmp_path / "first", source)
    kernel = lambda finished: np.asarray(finished.state.params["classifier"]["output"]["kernel"])
    np.testing.assert_array_equal(kernel(again), kernel(first))
    with pytest.raises(UserError, match="does not fit the model: model/.*wanted"):
        train(tmp_path / "wide", "TextClassification", "bert", base, source, "bert.d_ff = 48")


def test_a_task_begins_with_a_directory_of_the_transformers_library(bases, source, tmp_path):
    from launch.convert import read
    from paradigm import hf
    from t5like.hf import FAMILIES

    pytest.importorskip("safetensors")
    base, params = bases["gpt"]
    objective = bound(registry.parse_text((BASE + COMMON).format(model="gpt", objective="NextToken"))).objective
    hf.write(tmp_path / "hf", {"model": objective.model}, {"model": params["model"]}, FAMILIES)
    assert read(tmp_path / "hf")[1].keys() == {"model"}
    given = f"Init.path = '{tmp_path / 'hf'}'"
    finished = train(tmp_path / "run", "TextClassification", "gpt", base, source, given)
    jax.tree.map(np.testing.assert_array_equal, finished.state.params["model"], params["model"])
