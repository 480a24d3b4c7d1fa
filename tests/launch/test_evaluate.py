"""Evaluation: every example once, the same code during training and after it."""

import dataclasses
import functools
import math
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.evaluate import evaluate
from launch.run import loop, registry, writers
from launch.run.data import Data
from launch.run.evaluation import Evaluation
from launch.run.forgetting import adapted_state
from launch.run.mesh import make_mesh
from launch.run.program import Program
from launch.storage.checkpoint import Checkpoints
from multimodal.captions import BigramCaptions
from paradigm import progress
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.objective import MAIN, Context
from paradigm.records import spread
from t5like.baselines import BigramBaseline, UnigramBaseline
from t5like.decode import GenerateSamples, InfillSamples
from t5like.likelihood import MinimalPairs, PseudoPerplexity
from t5like.probes import TextProbes
from t5like.tasks.choice import MultipleChoice
from t5like.tasks.written import TextScores
from tests import contract, miniatures
from tests.launch import small
from vision import attention_maps, codebook, probe, segments, visualize


def evaluation(experiment, tmp_path):
    program = Program(experiment, make_mesh(experiment.mesh))
    data = Data(experiment, tmp_path)
    return Evaluation(program, data), program.init(), data


@pytest.mark.parametrize("limit,counted", [(20, 37), (3, 37), (2, 32)])
def test_each_example_counts_once(tmp_path, limit, counted):
    """37 examples in batches of 16, or a sample of them, against a mean over examples taken one at a time."""
    experiment = small.experiment(eval_batches=limit)
    run, state, data = evaluation(experiment, tmp_path)
    metrics, _ = run.run(state)
    objective, ctx = experiment.objective, Context(jnp.int32(0), train=False)
    values = []
    for i in spread(37, counted).tolist():
        batch = {"x": miniatures.Numbers()[i]["x"][None], "mask": np.ones(1), "index": np.zeros((1, 2), np.uint32)}
        values.append(objective.loss(jax.device_get(state.params), {}, batch, ctx).terms["energy"].sum)
    assert metrics["valid/loss/energy"] == pytest.approx(np.mean(values), rel=1e-5)
    assert sum(batch["mask"].sum() for batch in data.batches()) == counted


def test_one_term_is_the_loss_and_several_add_up(tmp_path):
    run, state, _ = evaluation(small.experiment(miniatures.TeacherQueue()), tmp_path)
    assert set(run.run(state)[0]) == {"valid/loss"}
    run, state, _ = evaluation(small.experiment(), tmp_path)
    metrics, _ = run.run(state)
    assert metrics["valid/loss"] == pytest.approx(metrics["valid/loss/energy"] + metrics["valid/loss/recall"])


def test_a_term_that_weighs_nothing_adds_nothing(tmp_path, monkeypatch):
    run, state, _ = evaluation(small.experiment(), tmp_path)
    step = run._step(MAIN)
    empty = lambda *args: {**step(*args), "loss/recall": (0.0, 0.0)}
    monkeypatch.setattr(run, "_step", lambda phase: empty)
    metrics, _ = run.run(state)
    assert metrics["valid/loss"] == metrics["valid/loss/energy"] and math.isnan(metrics["valid/loss/recall"])
    monkeypatch.setattr(run, "_step", lambda phase: lambda *args: {**empty(*args), "loss/energy": (0.0, 0.0)})
    assert math.isnan(run.run(state)[0]["valid/loss"])


def test_evaluators_of_one_class_do_not_overwrite_each_other(tmp_path):
    run, state, _ = evaluation(small.experiment(evaluators=(Shows(), Shows(2.0), Shows(3.0))), tmp_path)
    metrics, artefacts = run.run(state)
    assert [metrics[f"valid/dots{end}"] for end in ("", "_2", "_3")] == [1.0, 2.0, 3.0]
    assert [one.name for one in artefacts] == ["dots", "said", "dots_2", "said_2", "dots_3", "said_3"]


EVALUATORS = [
    (probe.Probes, "train_images test_images epochs finetune_steps finetune_batch"),
    (visualize.Neighbours, "queries nearest train_images"),
    (codebook.Codebook, "images count patches"),
    *((getattr(visualize, kind), "count") for kind in "Views PatchPCA GeneratedImages Reconstructions".split()),
    *((kind, "count") for kind in (attention_maps.AttentionMaps, segments.Segments, InfillSamples, TextScores)),
    (GenerateSamples, "count max_new_tokens"),
    (PseudoPerplexity, "windows length"),
    (functools.partial(MinimalPairs, "FILE"), "pairs"),
    (functools.partial(TextProbes, "FILE"), "texts length epochs"),
    (functools.partial(MultipleChoice, None, ("a", "b")), "count length"),
    (UnigramBaseline, "windows"),
    (BigramBaseline, "windows"),
    (BigramCaptions, "captions"),
]


@pytest.mark.parametrize("kind, names", EVALUATORS)
def test_nothing_to_look_at_is_told_before_the_first_step(kind, names):
    for name in names.split():
        with pytest.raises(UserError, match=rf"^\w+\.{name}=0: 1 is the least$"):
            kind(**{name: 0}).check(None, None)


def test_every_phase_is_evaluated(tmp_path):
    run, state, _ = evaluation(small.experiment(miniatures.alternating()), tmp_path)
    metrics, _ = run.run(state)
    assert {"valid/loss/recall/energy", "valid/loss/recall/recall", "valid/loss/signs/signs"} <= set(metrics)


def test_with_an_average_of_weights_that_is_what_is_evaluated(tmp_path):
    run, state, _ = evaluation(small.experiment(ema=0.9), tmp_path)
    before = run.run(state)[0]
    scaled = jax.tree.map(lambda x: 2 * x, state.params)
    assert run.run(state.replace(params=scaled))[0] == before
    assert run.run(state.replace(extra={"ema": scaled}))[0] != before


def test_it_can_be_abandoned_between_batches(tmp_path):
    run, state, _ = evaluation(small.experiment(), tmp_path)
    asked = []
    assert run.run(state, lambda: asked.append(1) or len(asked) > 2) is None
    assert len(asked) == 3


@dataclasses.dataclass(frozen=True)
class Weighs(Evaluator):
    """An evaluator: the sum of all weights, and of all validation examples."""

    def run(self, objective, variables, data):
        examples = sum(float(batch["x"][batch["mask"] > 0].sum()) for batch in data.batches())
        total = sum(float(x.sum()) for x in jax.tree.leaves(variables["params"]))
        text = types.SimpleNamespace(name="weight", kind="text", value=f"{data.train.examples} examples")
        return {"weight/total": total, "weight/examples": examples}, [text]


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}])
def test_offline_and_during_training_agree_and_evaluators_run_in_both(settings, tmp_path, monkeypatch):
    """Evaluators are given the weights that evaluation uses: the average, where one is kept."""
    experiment = small.experiment(total_steps=6, eval_every=3, save_every=3, evaluators=(Weighs(),), **settings)
    done = loop.train(experiment, tmp_path)
    monkeypatch.setattr(registry, "parse_text", lambda text, params, name: experiment)
    logged = {row["step"]: row for row in small.rows(tmp_path) if "valid/loss" in row}
    for step, wanted in ((None, 6), (3, 3), ("best", min(logged, key=lambda s: logged[s]["valid/loss"]))):
        found, metrics, artefacts = evaluate(tmp_path, step)
        assert found == wanted
        assert {"step": wanted, **metrics} == logged[wanted]
        assert [a.value for a in artefacts] == ["100 examples"]
    summed = lambda tree: sum(float(x.sum()) for x in jax.tree.leaves(tree))
    used = done.state.extra["ema"] if settings else done.state.params
    assert logged[6]["valid/weight/total"] == pytest.approx(summed(used))
    assert not settings or abs(summed(used) - summed(done.state.params)) > 1e-3
    assert (tmp_path / "samples" / "00000003" / "weight.txt").read_text() == "100 examples\n"
    with pytest.raises(UserError, match="of step 5"):
        evaluate(tmp_path, 5)
    monkeypatch.setattr(registry, "parse_text", lambda *_: dataclasses.replace(experiment, eval_batches=0))
    with pytest.raises(UserError, match="at least 1"):
        evaluate(tmp_path)


def test_what_was_forgotten_is_asked_with_the_queue_of_pretraining(tmp_path):
    experiment = small.experiment(miniatures.TeacherQueue(), total_steps=3, eval_every=3)
    done = loop.train(experiment, tmp_path)
    program, saved = Program(experiment, make_mesh(experiment.mesh)), Checkpoints(tmp_path / "checkpoints")
    state, _ = adapted_state(program, saved, saved, tmp_path)
    for name in ("queue", "cursor"):
        np.testing.assert_array_equal(state.extra[name], done.state.extra[name])
    contract.assert_trees_equal(state.params, done.state.params)
    contract.assert_trees_equal(state.extra["teacher"], done.state.params)


@dataclasses.dataclass(frozen=True)
class Counts(Evaluator):
    def run(self, objective, variables, data):
        for _ in progress.counted(range(2), "picture", 2):
            with progress.within("inside"):
                progress.report("here")
        return {}, []


def test_how_far_an_evaluator_is_goes_to_the_console_while_it_runs(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(writers.Console, "status", lambda self, text: heard.append(text))
    loop.train(small.experiment(total_steps=2, evaluators=(Counts(),)), tmp_path)
    inside = "Counts · inside · here"
    assert heard == ["Counts", "Counts · picture 1 of 2", inside, "Counts · picture 2 of 2", inside, ""]
    progress.report("to nobody")
    assert len(heard) == 6


@dataclasses.dataclass(frozen=True)
class Shows(Evaluator):
    number: float = 1.0

    def run(self, objective, variables, data):
        picture = np.zeros((20, 30, 3), np.uint8)
        return {"dots": self.number}, [Artefact("dots", "image", picture), Artefact("said", "text", "x")]


def test_pictures_have_a_title(tmp_path):
    run, state, _ = evaluation(small.experiment(evaluators=(Shows(),)), tmp_path)
    _, [picture, text] = run.run(state)
    later = run.run(state.replace(step=jnp.int32(7)))[1][0].value
    assert text.value == "x" and picture.value.shape == later.shape and (picture.value[-20:, :30] == 0).all()
    assert len(picture.value) > 30 and (picture.value[:-20] != later[:-20]).any(), "the step is in the title"


def command(*flags):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "launch.evaluate", *flags], capture_output=True, text=True, env=environment, timeout=120
    )


def test_the_command_is_helpful(tmp_path):
    shown = command("--help")
    assert shown.returncode == 0 and "--step" in shown.stdout and "one JSON object" in shown.stdout
    failed = command(f"--workdir={tmp_path}")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "no run is here" in failed.stderr
    failed = command(f"--workdir={tmp_path}", "--step=last")
    assert failed.returncode == 2 and "--step=last: write a number of steps or 'best'" in failed.stderr


def test_evaluators_are_named_with_their_scopes():
    """So that the line which runs without one of several that cannot work is one that works."""
    written = ["@a/Probes()", "@Reconstructions()", "@b/Probes()"]
    scoped = [
        f"Experiment.evaluators = ({', '.join(written)})",
        "a/Probes.methods = ('knn',)",
        "b/Probes.test_images = 9",
    ]
    found = registry.parse(["runs/smoke/mae.gin"], scoped).evaluators
    assert registry.references("Experiment.evaluators", found) == written
    assert registry.references("Experiment.evaluators", found[1:]) == ["@Reconstructions()", "@Probes()"]
