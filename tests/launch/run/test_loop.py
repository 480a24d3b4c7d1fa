"""The loop: workdirs, bad steps, signals, what is in flight."""

import dataclasses
import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.aot import dry_run
from launch.run import data, evaluation, loop, step_metrics, writers
from launch.run.program import Program
from launch.storage.checkpoint import Checkpoints
from multimodal.data import PairData
from paradigm import trees
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.objective import Loss
from paradigm.optim import AdamW
from paradigm.schedule import Linear
from tests import contract, miniatures
from tests.launch import small
from vision.data import ImageData


@dataclasses.dataclass(frozen=True)
class Refusing(miniatures.TwoTerms):
    def loss(self, params, extra, batch, ctx):
        raise UserError("there is no such batch")


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
    class Stalled(miniatures.NumbersData):
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
    class BrokenValid(miniatures.NumbersData):
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


def test_other_data_are_refused(tmp_path):
    experiment = small.experiment(total_steps=2)
    loop.train(experiment, tmp_path, config="Experiment.seed = 0")
    other = dataclasses.replace(experiment, total_steps=3, data=miniatures.NumbersData(train=99))
    with pytest.raises(UserError, match="data is not what step 2 was trained on"):
        loop.train(other, tmp_path, config="Experiment.seed = 0")


def test_data_that_are_refused_are_told_before_all_is_compiled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("no record can be read")

    told, compiled = threading.Event(), []
    monkeypatch.setattr(Program, "compile", lambda *_: compiled.append(told.wait(60)))
    monkeypatch.setattr(miniatures.NumbersData, "build", refuse)
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
class FilesData(miniatures.NumbersData):
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
    good = {name: np.zeros(s.shape, s.dtype) for name, s in program.batch["main"].items()}
    program.put({**good, "x": np.zeros((16, 8))}, "main")  # of float64
    for x, what in (np.zeros((16, 9), np.float32), r"float32 \[9\]"), (np.zeros((16, 8), complex), r"complex128 \[8\]"):
        said = rf"TwoTerms.preprocess gives 'x' as {what} and batch_spec says float32 \[8\]: make them agree"
        with pytest.raises(UserError, match=said):
            program.put({**good, "x": x}, "main")
    rowless = type("Rowless", (miniatures.TwoTerms,), {"batch_spec": lambda self, n, phase=None: {}})()
    with pytest.raises(UserError, match="Rowless.batch_spec must hold index, mask: add"):
        Program(small.experiment(objective=rowless), contract.mesh_of("data"))
    assert program.rows() == slice(0, 16)
    assert not any(x.sharding is None for _, x in trees.named_leaves(program.state))


def test_a_start_that_failed_before_its_first_row_claims_nothing(tmp_path):
    with pytest.raises(UserError, match="no records"):
        loop.train(small.experiment(data=miniatures.NumbersData(train=0)), tmp_path)
    with pytest.raises(UserError, match="no such batch"):  # when the step is compiled
        loop.train(small.experiment(objective=Refusing()), tmp_path)
    assert not (tmp_path / "config.gin").exists()
    assert loop.train(small.experiment(total_steps=1, seed=5), tmp_path).step == 1
