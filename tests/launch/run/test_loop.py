"""The loop: first states, workdirs, bad steps, signals, what is in flight."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.aot import dry_run
from launch.run import data, evaluation, initial, loop, step_metrics, writers
from launch.run.experiment import Init
from launch.run.program import Program
from launch.storage import manifest
from launch.storage.checkpoint import Checkpoints
from multimodal.data import PairData
from paradigm import trees
from paradigm.combine import Sum
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.objective import Loss
from paradigm.optim import AdamW
from paradigm.schedule import Linear
from tests import contract, miniatures
from tests.launch import small
from vision.data import ImageData


@dataclasses.dataclass(frozen=True)
class Poisoned(miniatures.TwoTerms):
    """Its loss is not a number at some steps."""

    first: int = 0
    last: int = 0

    def loss(self, params, extra, batch, ctx):
        loss = super().loss(params, extra, batch, ctx)
        bad = ctx.train & (ctx.step >= self.first) & (ctx.step < self.last)
        energy = loss.terms["energy"]
        energy = energy.replace(sum=jnp.where(bad, jnp.nan, energy.sum))
        return Loss({**loss.terms, "energy": energy}, loss.metrics)


def files(directory):
    return {p: p.stat().st_mtime_ns for p in Path(directory).rglob("*")}


# --- bad steps -------------------------------------------------------------------------------------------------------


def test_bad_steps_are_counted_and_left_out_of_the_means(tmp_path):
    poisoned = small.experiment(Poisoned(first=4, last=6), total_steps=8, log_every=4, eval_every=100)
    loop.train(poisoned, tmp_path / "poisoned")
    first, second = [row for row in small.rows(tmp_path / "poisoned") if "train/loss" in row]
    assert (first["train/bad_steps"], second["train/bad_steps"]) == (0, 2)
    assert np.isfinite(second["train/loss"])


@pytest.mark.parametrize("stops", [(), (7,)])
def test_too_many_bad_steps_in_a_row_end_the_run_and_name_the_batch(tmp_path, stops):
    """Also when the row of them was interrupted half way."""
    experiment = small.experiment(Poisoned(first=4, last=100), total_steps=30, log_every=4, eval_every=100)
    for stop in stops:
        loop.train(dataclasses.replace(experiment, total_steps=stop), tmp_path)
    wanted = rf"not finite in {step_metrics.BAD_STEPS} steps in a row, last in batch 13 \(examples 208 to 223\)"
    with pytest.raises(UserError, match=wanted + ".*; the newest checkpoint, (3|6|7|9|12), is as it was$"):
        loop.train(experiment, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] <= 13


def test_bad_steps_from_the_first_on_say_that_there_is_no_checkpoint(tmp_path):
    experiment = small.experiment(Poisoned(first=0, last=100), total_steps=30, save_every=100, eval_every=100)
    with pytest.raises(UserError, match="look at those data; no checkpoint was saved before$"):
        loop.train(experiment, tmp_path)


def test_a_stall_of_the_input_shows(tmp_path):
    """A source that gives one record at a time, however many threads ask for them: 16 records a batch."""
    one_at_a_time = threading.Lock()

    @dataclasses.dataclass(frozen=True)
    class Stalled(small.NumbersData):
        def source(self, split):
            source = super().source(split)
            return Slow(source) if split == "train" else source

    class Slow:
        def __init__(self, source):
            self.source, self.fingerprint = source, source.fingerprint

        def __len__(self):
            return len(self.source)

        def __getitem__(self, position):
            with one_at_a_time:
                time.sleep(0.005)
            return self.source[position]

    loop.train(small.experiment(data=Stalled(), total_steps=60, log_every=60, eval_every=60, save_every=60), tmp_path)
    speed = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["speed"]
    assert 0.02 < speed["input_wait"] <= 1.05 * speed["seconds_per_step"]


class Fails(Evaluator):
    works = False

    def run(self, objective, variables, data):
        if not Fails.works:
            raise UserError("Fails: cannot work")
        return {"works": 1.0}, []


def test_an_evaluation_that_fails_loses_no_step_and_is_due_again(tmp_path, monkeypatch):
    experiment = small.experiment(total_steps=6, eval_every=4, save_every=100, evaluators=(Fails(),))
    with pytest.raises(UserError, match="Fails: cannot work"):
        loop.train(experiment, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
    monkeypatch.setattr(Fails, "works", True)
    loop.train(experiment, tmp_path)
    assert [row["step"] for row in small.rows(tmp_path) if "valid/works" in row] == [4, 6]
    loop.train(experiment, tmp_path / "whole")
    assert small.rows(tmp_path) == small.rows(tmp_path / "whole")


def test_held_out_examples_that_cannot_be_read_are_told_before_the_first_step(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class BrokenValid(small.NumbersData):
        def source(self, split):
            return Unreadable() if split == "valid" else super().source(split)

    class Unreadable:
        fingerprint = "unreadable"

        def __len__(self):
            return 20

        def __getitem__(self, position):
            raise OSError("bad sector")

    with pytest.raises(UserError, match="bad sector"):
        loop.train(small.experiment(data=BrokenValid()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_ends_before_the_run_is_told_at_the_start_and_in_a_dry_run(tmp_path, capsys):
    short = small.experiment(optimizer=AdamW(Linear(0.01, total_steps=1)), total_steps=2)
    warning = "warning: optimizer.learning_rate: Linear ends at step 1 of 2 and stays at 0: leave its total_steps out"
    loop.train(short, tmp_path)
    assert capsys.readouterr().err.count(warning) == 1 and warning in dry_run.report(short)


# --- the first state -------------------------------------------------------------------------------------------------


def test_own_checkpoint_before_init_from_before_scratch(tmp_path, capsys):
    donor = small.experiment(total_steps=4, save_every=2, eval_every=100)
    given = loop.train(donor, tmp_path / "donor").state.params
    new = small.experiment(total_steps=1, seed=7, ema=0.9, optimizer=Still(), eval_every=100)

    scratch = loop.train(new, tmp_path / "scratch").state
    assert "started from scratch" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        contract.assert_trees_equal(scratch.params, given)

    for where in ("donor", "donor/checkpoints/4"):
        state = loop.train(new, tmp_path / f"from {Path(where).name}", init_from=tmp_path / where).state
        assert f"started from the parameters of {tmp_path / 'donor'} at step 4" in capsys.readouterr().out
        contract.assert_trees_equal(state.params, given)
        contract.assert_trees_close(state.extra["ema"], given, 1e-6)
    older = loop.train(new, tmp_path / "older", init_from=tmp_path / "donor" / "checkpoints" / "2").state
    with pytest.raises(AssertionError):
        contract.assert_trees_equal(older.params, given)

    loop.train(dataclasses.replace(new, total_steps=2), tmp_path / "scratch", init_from=tmp_path / "donor")
    assert f"resumed from step 1 ({tmp_path / 'donor'} is for new runs)" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Still:
    """An optimizer that changes nothing."""

    weight_decay = 0.0

    def init(self, params):
        return ()

    def update(self, grads, state, params, step):
        return jax.tree.map(jnp.zeros_like, grads), state

    def learning_rate_at(self, step):
        return jnp.float32(0.0)


def test_init_from_another_model_or_from_nothing(tmp_path):
    loop.train(small.experiment(total_steps=1), tmp_path / "donor")
    other = small.experiment(miniatures.TwoTerms(name="tower"))
    with pytest.raises(UserError, match=r"at step 1 does not fit the model: tower/in/kernel: wanted .* found nothing"):
        loop.train(other, tmp_path / "other", init_from=tmp_path / "donor")
    with pytest.raises(UserError, match="nothing: no checkpoint there; give a run directory"):
        loop.train(other, tmp_path / "other", init_from=tmp_path / "nothing")


def test_init_partly_from_takes_what_matches_and_says_so(tmp_path, capsys):
    donor = loop.train(small.experiment(total_steps=2), tmp_path / "donor").state.params
    experiment = small.experiment(miniatures.BothEncoders(), total_steps=1, seed=7, optimizer=Still())
    fresh = loop.train(experiment, tmp_path / "fresh").state.params
    state = loop.train(experiment, tmp_path / "new", init_partly_from=tmp_path / "donor").state
    assert "started from matching parameters (2 matched, 2 missing, 0 unexpected)" in capsys.readouterr().out
    contract.assert_trees_equal(state.params, {**fresh, "encoder": donor["encoder"]})
    nothing = small.experiment(miniatures.TwoTerms(name="tower"))
    with pytest.raises(UserError, match="no leaf of .*donor at step 2 matches the model: it wants .*tower"):
        loop.train(nothing, tmp_path / "nothing", init_partly_from=tmp_path / "donor")


def test_init_takes_the_average_by_which_a_run_is_evaluated(tmp_path, capsys):
    donor = loop.train(small.experiment(total_steps=2, ema=0.5), tmp_path / "donor").state
    experiment = small.experiment(total_steps=1, seed=7, optimizer=Still())
    state = loop.train(experiment, tmp_path / "new", init_from=tmp_path / "donor").state
    assert "started from the parameters of" in (said := capsys.readouterr().out) and "at step 2, averaged," in said
    contract.assert_trees_equal(state.params, donor.extra["ema"])
    with pytest.raises(AssertionError):
        contract.assert_trees_equal(state.params, donor.params)


ENCODER = (("^encoder/", True),)


def test_init_takes_several_sources_under_other_names(tmp_path):
    of = lambda name, seed: loop.train(
        small.experiment(miniatures.TwoTerms(name=name), total_steps=2, seed=seed), tmp_path / name
    ).state.params[name]
    tower, spare = of("tower", 1), of("spare", 2)
    both = small.experiment(miniatures.BothEncoders(), total_steps=1, seed=7, optimizer=Still())
    tower_as_encoder = Init(str(tmp_path / "tower"), rename=(("^tower/", "encoder/"),))
    place = lambda: tmp_path / f"{len(list(tmp_path.iterdir()))}"
    start = lambda *inits: loop.train(dataclasses.replace(both, init=inits), place())
    contract.assert_trees_equal(
        start(tower_as_encoder, Init(str(tmp_path / "spare"))).state.params, {"encoder": tower, "spare": spare}
    )
    with pytest.raises(UserError, match="encoder/in/kernel is in more than one of .*tower, .*tower: rename it"):
        start(tower_as_encoder, tower_as_encoder)
    with pytest.raises(UserError, match="tower at step 2 does not fit the model: tower/in/kernel: wanted nothing"):
        start(Init(str(tmp_path / "tower")), Init(str(tmp_path / "spare")))
    with pytest.raises(UserError, match="rename 'towr' matches no parameter of .*tower at step 2: correct it"):
        start(dataclasses.replace(tower_as_encoder, rename=(("towr", "x"),)))
    for wrong in (("to", "en"), (("(", "x"),)):
        with pytest.raises(UserError, match=r"Init.rename: .* is not \(regular expression, a text\)"):
            Init("tower", rename=wrong)
    with pytest.raises(UserError, match=r"Experiment.init: rename '\^tower/' to .*: invalid group reference 1"):
        start(dataclasses.replace(tower_as_encoder, rename=(("^tower/", r"\1"),)))
    with pytest.raises(UserError, match="--init_from=here and --init_partly_from=there: give one of them"):
        loop.train(both, tmp_path / "two", init_from="here", init_partly_from="there")
    more = dataclasses.replace(both, objective=ThreeEncoders(), init=(tower_as_encoder, Init(str(tmp_path / "spare"))))
    with pytest.raises(UserError, match="none of its sources has third/in/kernel and 1 more: add one that has"):
        loop.train(more, tmp_path / "three")


@dataclasses.dataclass(frozen=True)
class ThreeEncoders(miniatures.BothEncoders):
    def init(self, key):
        return {**super().init(key), **miniatures.Miniature("third").init(key)}


def test_a_frozen_module_comes_whole_or_not_at_all(tmp_path):
    donor = loop.train(small.experiment(miniatures.TwoTerms(name="tower"), total_steps=2), tmp_path / "donor")
    init = Init(str(tmp_path / "donor"), rename=(("^tower/", "encoder/"),), strict=False)
    tuned = small.experiment(miniatures.BothEncoders(), total_steps=1, freeze=ENCODER, init=(init,))
    state = loop.train(tuned, tmp_path / "new").state
    contract.assert_trees_equal(state.frozen["encoder"], donor.state.params["tower"])
    half = dataclasses.replace(init, rename=(("^tower/in", "encoder/in"),))
    with pytest.raises(UserError, match=r"donor lacks encoder/out/kernel of what is frozen, or has them of other shap"):
        loop.train(dataclasses.replace(tuned, init=(half,)), tmp_path / "half")
    with pytest.raises(UserError, match="encoder is frozen, and without Experiment.init or --init_partly_from=DIR it"):
        loop.train(dataclasses.replace(tuned, init=()), tmp_path / "scratch")


def test_what_is_frozen_is_saved_once_and_known_by_its_bytes(tmp_path):
    frozen = small.experiment(total_steps=6, save_every=2, eval_every=100, freeze=(("/in/", True),))
    whole = loop.train(frozen, tmp_path / "whole").state
    loop.train(dataclasses.replace(frozen, total_steps=4), tmp_path / "run")
    kept = Checkpoints(tmp_path / "run" / "frozen")
    stamp = (kept.directory / "0" / "manifest.json").stat().st_mtime_ns
    resumed = loop.train(frozen, tmp_path / "run").state
    contract.assert_trees_equal(jax.device_get(whole), jax.device_get(resumed))
    assert kept.steps() == [0] and (kept.directory / "0" / "manifest.json").stat().st_mtime_ns == stamp
    for step in (4, 6):
        where = tmp_path / "run" / "checkpoints" / str(step)
        tree = (where / "state" / "_METADATA").read_text()
        assert "opt_state" in tree and "frozen" not in tree and manifest.read(where)["frozen"] == kept.digest(0)
    _, arrays, _ = Checkpoints(tmp_path / "run" / "checkpoints").arrays(only=("params",))
    contract.assert_trees_equal(arrays["params"], jax.device_get(whole.all_params))

    other = dataclasses.replace(frozen, seed=5)
    loop.train(other, tmp_path / "other")
    shutil.rmtree(kept.directory)
    shutil.copytree(tmp_path / "other" / "frozen", kept.directory)
    with pytest.raises(UserError, match="frozen is not what checkpoint 6 was made with"):
        loop.train(dataclasses.replace(frozen, total_steps=8), tmp_path / "run")


def test_init_from_brings_running_statistics(tmp_path):
    donor = loop.train(small.experiment(miniatures.RunningStatistics(), total_steps=3), tmp_path / "donor").state
    new = small.experiment(miniatures.RunningStatistics(still=True), total_steps=1, seed=7, optimizer=Still())
    for how in ("init_from", "init_partly_from"):
        state = loop.train(new, tmp_path / how, **{how: tmp_path / "donor"}).state
        contract.assert_trees_equal(state.extra["batch_stats"], donor.extra["batch_stats"])


def test_running_statistics_find_their_parameters_in_parts_and_teachers():
    """A combination keeps its parts' apart; a source need not be one, nor have its parts' names."""
    place = lambda mean, *at: functools.reduce(lambda tree, name: {name: tree}, at[::-1], {"encoder": {"mean": mean}})
    alone, of_teacher = place(np.ones(2), "batch_stats"), place(np.zeros(2), "teacher", "batch_stats")
    joined = place(2 * np.ones(2), "clip", "batch_stats") | place(3 * np.ones(2), "simclr", "batch_stats")
    found = lambda wanted, source: {
        name: x[0] for name, x in initial.stats_for(*map(initial.running_stats, (wanted, source))).items()
    }
    parts = "clip/batch_stats/encoder/mean", "simclr/batch_stats/encoder/mean"
    assert found(joined, alone | of_teacher) == dict.fromkeys(parts, 1.0)
    assert found(joined, joined) == dict(zip(parts, (2.0, 3.0)))
    assert found(alone | of_teacher, place(np.ones(2), "simclr", "batch_stats")) == {
        "batch_stats/encoder/mean": 1.0, "teacher/batch_stats/encoder/mean": 1.0}  # fmt: skip
    assert found(alone, place(np.ones(3), "batch_stats")) == {}


def test_init_from_brings_running_statistics_to_a_part(tmp_path):
    donor = loop.train(small.experiment(miniatures.RunningStatistics(), total_steps=2), tmp_path / "donor").state
    both = Sum((("one", miniatures.RunningStatistics(still=True)), ("two", miniatures.TwoTerms())))
    new = small.experiment(both, total_steps=1, seed=7, optimizer=Still())
    state = loop.train(new, tmp_path / "new", init_from=tmp_path / "donor").state
    contract.assert_trees_equal(state.extra["one"]["batch_stats"], donor.extra["batch_stats"])


def test_other_data_are_refused(tmp_path):
    experiment = small.experiment(total_steps=2)
    loop.train(experiment, tmp_path, config="Experiment.seed = 0")
    other = dataclasses.replace(experiment, total_steps=3, data=small.NumbersData(train=99))
    with pytest.raises(UserError, match="data is not what step 2 was trained on"):
        loop.train(other, tmp_path, config="Experiment.seed = 0")


def test_data_that_are_refused_are_told_before_all_is_compiled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("no record can be read")

    told, compiled = threading.Event(), []
    monkeypatch.setattr(Program, "compile", lambda *_: compiled.append(told.wait(60)))
    monkeypatch.setattr(small.NumbersData, "build", refuse)
    with pytest.raises(UserError, match="no record can be read"):
        loop.train(small.experiment(), tmp_path)
    assert not compiled
    told.set()


# --- the run directory -----------------------------------------------------------------------------------------------


def test_a_run_of_another_experiment_is_refused_with_the_difference(tmp_path):
    loop.train(small.experiment(total_steps=1), tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"another experiment.*- seed = 0; \+ seed = 5.*another directory"):
        loop.train(small.experiment(total_steps=1, seed=5), tmp_path)
    assert files(tmp_path) == before


def test_directories_that_cannot_be_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"--workdir={tmp_path}/file/run cannot be written"):
        loop.train(small.experiment(), tmp_path / "file" / "run")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has metrics.jsonl but no config.gin"):
        loop.train(small.experiment(), tmp_path)


def test_configuration_and_environment_come_before_the_first_step_and_after_all_that_a_run_needs(tmp_path, monkeypatch):
    def stop_here(*_, **__):
        raise KeyError("stop here")

    for name in ("Data", "Evaluation"):
        with monkeypatch.context() as patch:
            patch.setattr(loop, name, stop_here)
            with pytest.raises(KeyError):
                loop.train(small.experiment(), tmp_path / "never", config="Experiment.seed = 0\n")
        assert not (tmp_path / "never").exists()
    tmp_path /= "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_writers", stop_here)
        with pytest.raises(KeyError):
            loop.train(small.experiment(), tmp_path, config="Experiment.seed = 0\n")
    assert (tmp_path / "config.gin").read_text() == "Experiment.seed = 0\n"
    loop.train(small.experiment(total_steps=1), tmp_path, config="Experiment.seed = 0\n")
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__ and environment["devices"]["count"] == 8
    assert len(environment["earlier"]) == 1
    meta, _ = Checkpoints(tmp_path / "checkpoints").meta(1)
    assert meta["config"] == "Experiment.seed = 0\n" and meta["next_index"] == 16 and meta["objective"] == "TwoTerms"


def test_imported_code_is_kept_with_its_hash_and_told_when_it_differs(tmp_path, capsys):
    code, run = tmp_path / "mine.py", tmp_path / "run"
    told = []
    for steps, text in ((1, "x = 1\n"), (2, "x = 1\n"), (3, "x = 2\n")):
        code.write_text(text)
        loop.train(small.experiment(total_steps=steps), run, config="a = 1\n", imports={"mine": [code]})
        told.append("mine (sha256" in capsys.readouterr().out)
    assert told == [False, False, True]
    one, other = sorted((run / "imports").iterdir(), key=lambda path: path.read_text())
    assert (one.read_text(), other.read_text()) == ("x = 1\n", "x = 2\n")
    recorded = json.loads((run / "environment.json").read_text())["imports"]["mine"]
    assert other.name == f"mine-{recorded[:12]}.py" and len(recorded) == 64


@dataclasses.dataclass(frozen=True)
class FilesData(small.NumbersData):
    source: str = "digits"


@pytest.mark.parametrize("source", ["/not/here", "nowhere/pictures", "pictures.zip", "folder:here", "~/not/here"])
def test_data_that_are_not_there_are_told_before_anything_is_compiled(source, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Program", None)  # what compiles
    with pytest.raises(UserError, match=f"FilesData.source='{source}': no such file or directory"):
        loop.train(small.experiment(data=FilesData(source=source)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sources_that_are_no_plain_paths_are_left_to_the_recipe(tmp_path):
    for source in ("digits", "tfds:mnist/x", "gs://bucket/x", "data/*.txt", str(tmp_path)):
        data.look(FilesData(source=source), tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.json").write_text("{}")
    data.look(FilesData(source="/gone/since"), tmp_path / "data")  # what was prepared is used


@pytest.mark.parametrize("recipe", [ImageData, PairData])
def test_every_kind_of_source_that_is_a_file_is_looked_at(recipe, tmp_path):
    """KIND:PATH of each that a recipe names: what is there is left to its reader, what is not there is told."""
    with pytest.raises(UserError) as error:
        recipe(source="none").build(progress=False)
    kinds = set(str(error.value).partition("choose from ")[2].split(", ")) - {"digits", "shapes", "tfds"}
    assert kinds >= {"folder", "parquet"} if recipe is ImageData else kinds >= {"csv", "wds", "beside"}
    for kind in kinds:
        data.look(recipe(source=f"{kind}:{tmp_path}"), tmp_path / "data")
        with pytest.raises(UserError, match=f"source='{kind}:{tmp_path}/none': no such file or directory"):
            data.look(recipe(source=f"{kind}:{tmp_path}/none"), tmp_path / "data")


@pytest.mark.parametrize("method", ["train", "valid"])
def test_a_full_disk_is_one_line_and_older_checkpoints_stay(tmp_path, monkeypatch, method):
    experiment = small.experiment(total_steps=8, save_every=2)
    written = getattr(writers.Writers, method)

    def fill(self, step, *rest):
        if step > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, step, *rest)

    monkeypatch.setattr(writers.Writers, method, fill)
    with pytest.raises(UserError, match="No space left on device; make room"):
        loop.train(experiment, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").find() in (4, 6)


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_in_an_evaluation_ends_it_and_it_comes_when_the_run_goes_on(tmp_path, monkeypatch):
    experiment = small.experiment(total_steps=8, eval_every=4, save_every=4)
    loop.train(experiment, tmp_path / "whole")
    put = Program.put

    def disturbed(self, batch, phase):
        if evaluating:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(self, batch, phase)

    evaluating, run = [], evaluation.Evaluation.run

    def counted(self, *args):
        evaluating.append(1)
        return run(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Program, "put", disturbed)
        patch.setattr(evaluation.Evaluation, "run", counted)
        done = loop.train(experiment, tmp_path / "stopped")
    assert done.interrupted and done.step == 4
    assert [row["step"] for row in small.rows(tmp_path / "stopped")] == [4]
    loop.train(experiment, tmp_path / "stopped")
    assert small.rows(tmp_path / "stopped") == small.rows(tmp_path / "whole")
    checkpoints = Checkpoints(tmp_path / "stopped" / "checkpoints", best_metric="valid/loss")
    assert {step: "valid/loss" in checkpoints.meta(step)[1] for step in (4, 8)} == {4: True, 8: True}


def test_handlers_are_given_back_and_the_second_interrupt_is_not_caught():
    before = signal.getsignal(signal.SIGINT)
    with loop.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked(1) and stop.hurried()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


# --- what the host does meanwhile ------------------------------------------------------------------------------------


class Recorder:
    def __init__(self):
        self.steps, self.speeds, self.said = [], [], []

    def train(self, step, metrics, speed):
        self.steps.append(step)
        self.speeds.append(speed)

    def say(self, text):
        self.said.append(text)


@pytest.mark.parametrize("devices,unread", [(1, 1), (8, 0)])
def test_metrics_are_read_one_step_late_and_at_once_on_virtual_devices(monkeypatch, devices, unread):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(jax, "device_get", lambda metrics: read.append(int(metrics["loss"][0])) or metrics)
    experiment = small.experiment(log_every=2)
    program = Program(experiment, contract.mesh_of("data"))
    monkeypatch.setattr(step_metrics, "peak_flops", lambda again: 1e30)
    recorder, read = Recorder(), []
    running = step_metrics.StepMetrics(experiment, program, recorder, {"logged": 0, "window": {}}, 0, 0, lambda: None)
    for step in range(1, 6):
        running.push(step, "main", {"loss": (float(step), 1.0), "bad_step": (0.0, 1.0)})
        late = unread if step > 1 else 0  # the first step is waited for: it warms up, and the peak is measured after it
        assert read == list(range(1, step + 1 - late))
    assert recorder.steps == [2, 4]
    running.drain()
    assert read == [1, 2, 3, 4, 5]
    assert running.progress == {"logged": 4, "window": {"loss": (5.0, 1.0), "bad_steps": (0.0, 0.0)}}


def fed(monkeypatch, peaks, idle=lambda: True, steps=12):
    """(the recorder, which calls for a peak were for another one) of steps whose peak is measured as these."""
    peaks, again = list(peaks), []
    monkeypatch.setattr(jax, "device_get", lambda metrics: metrics)
    monkeypatch.setattr(step_metrics, "peak_flops", lambda again: asked.append(again) or peaks.pop(0))
    asked, recorder = again, Recorder()
    experiment = small.experiment(log_every=1)
    program = Program(experiment, contract.mesh_of("data"))
    progress = {"logged": 0, "window": {}}
    running = step_metrics.StepMetrics(experiment, program, recorder, progress, 0, 0, lambda: None, idle)
    for step in range(1, steps):
        running.push(step, "main", {"loss": (1.0, 1.0), "bad_step": (0.0, 1.0)})
    return recorder, asked


def test_an_mfu_above_one_measures_the_peak_again_and_is_then_told_as_impossible(monkeypatch):
    recorder, asked = fed(monkeypatch, [1.0, 1e30])  # FLOP/s of a CPU that was busy, and that was not
    assert asked == [False, True] and recorder.said == []
    assert max(speed.get("mfu", 0) for speed in recorder.speeds) > 1 > recorder.speeds[-1]["mfu"]
    recorder, asked = fed(monkeypatch, [1.0, 1.0, 1.0])
    assert asked == [False, True, True] and len(recorder.said) == 1
    assert recorder.said[0].startswith("warning: MFU ") and "is impossible: the peak of 'cpu'" in recorder.said[0]


def test_the_peak_is_measured_when_nothing_else_runs(monkeypatch):
    busy = [False] * 3 + [True] * 20
    recorder, asked = fed(monkeypatch, [1e30], idle=lambda: busy.pop(0))
    assert asked == [False]
    assert ["mfu" in speed for speed in recorder.speeds][:2] == [False, False] and "mfu" in recorder.speeds[-1]
    assert "seconds_per_step" in recorder.speeds[1]


def test_a_run_says_what_it_trains_and_what_a_step_needs(tmp_path):
    experiment = small.experiment(total_steps=4, log_every=2, eval_every=100, freeze=(("/in/", True),))
    loop.train(experiment, tmp_path)
    sizes = {"in": 8 * 16, "out": 16 * 16}
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["parameters"] == {"all": sizes["in"] + sizes["out"], "trained": sizes["out"]}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    needs = [row["speed"]["peak_memory"] for row in rows if "peak_memory" in row["speed"]]
    least = 4 * (sizes["in"] + 3 * sizes["out"]) + 16 // 8 * 8 * 4  # parameters, two moments, this device's rows
    assert needs and all(least < need < 100 * least for need in needs)


def test_profile_traces_into_the_run_directory(tmp_path):
    loop.train(small.experiment(total_steps=4, eval_every=100), tmp_path, profile=(2, 3))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_profile_of_a_run_that_goes_on_in_the_midst_of_it(tmp_path, capsys):
    with pytest.raises(UserError, match="--profile=3:5: the last step is 2"):
        loop.train(small.experiment(total_steps=3, eval_every=100), tmp_path, profile=(3, 5))
    loop.train(small.experiment(total_steps=3, eval_every=100), tmp_path)
    loop.train(small.experiment(total_steps=5, eval_every=100), tmp_path, profile=(2, 4))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    loop.train(small.experiment(total_steps=6, eval_every=100), tmp_path, profile=(2, 4))
    assert "warning: nothing is traced: --profile=2:4 lies before step 5" in capsys.readouterr().out


def test_shapes_of_prepare_and_batch_spec_must_agree():
    program = Program(small.experiment(), contract.mesh_of("data"))
    with pytest.raises(UserError, match="TwoTerms.preprocess gives .* and batch_spec says"):
        program.put({"y": np.zeros((16, 6))}, "main")
    assert program.rows() == slice(0, 16)
    assert not any(x.sharding is None for _, x in trees.named_leaves(program.state))


def test_a_start_that_failed_before_its_first_row_claims_nothing(tmp_path):
    with pytest.raises(UserError, match="no records"):
        loop.train(small.experiment(data=small.NumbersData(train=0)), tmp_path)
    assert not (tmp_path / "config.gin").exists()
    assert loop.train(small.experiment(total_steps=1, seed=5), tmp_path).step == 1
