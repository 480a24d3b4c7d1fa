"""A run that was interrupted equals one that was not, through the real loop: state bit for bit, and every row."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch.run import loop
from launch.storage.checkpoint import Checkpoints
from paradigm import optim
from paradigm.combine import Stages
from paradigm.errors import UserError
from paradigm.schedule import Cosine, Linear
from t5like.data import TextData
from t5like.models import gpt, t5
from t5like.objectives import NextToken, SpanCorruption
from t5like.tokenizers import ByteTokenizer
from tests import contract, miniatures
from tests.launch import small

STEPS = 12
STAGES = Stages(parts=(("recall", miniatures.TwoTerms()), ("signs", miniatures.Signs())), boundaries=(5,))
OBJECTIVES = {**miniatures.ALL, "stages": STAGES}


def finish(experiment, workdir):
    done = loop.train(experiment, workdir)
    return jax.device_get(done.state), small.rows(workdir)


def interrupted_after(monkeypatch, step):
    """Has SIGTERM come while this step was taken."""
    asked = loop.Stop.asked

    def at(self, now):
        if now == step and not self.hurried():
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(self, now)

    monkeypatch.setattr(loop.Stop, "asked", at)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_stopped_anywhere_equals_uninterrupted(name, tmp_path, monkeypatch):
    experiment = small.experiment(OBJECTIVES[name], ema=0.9, total_steps=STEPS)
    whole, rows = finish(experiment, tmp_path / "whole")
    assert [row["step"] for row in rows] == [4, 6, 8, 12, 12]
    # Within a row; then at the end of one, where an evaluation is due as well, and after it.
    for stops in [(5,), (4, 6, 7)] if name == "two_terms" else [(5,)]:
        workdir = tmp_path / f"stopped{stops}"
        for stop in stops:
            with monkeypatch.context() as patch:
                interrupted_after(patch, stop)
                done = loop.train(experiment, workdir)
            assert done.interrupted and done.step == stop
            assert Checkpoints(workdir / "checkpoints").steps()[-1] == stop
        state, again = finish(experiment, workdir)
        contract.assert_trees_equal(state, whole)
        assert again == rows


def test_killed_at_any_moment_equals_uninterrupted(tmp_path):
    """As kill -9 leaves it: the newest committed save, rows that ran ahead of it, and half a line."""
    experiment = small.experiment(total_steps=STEPS)
    whole, rows = finish(experiment, tmp_path / "whole")
    for newest in (0, 3, 6, 9):
        workdir = tmp_path / f"killed{newest}"
        shutil.copytree(tmp_path / "whole", workdir)
        for path in (workdir / "checkpoints").iterdir():
            if int(path.name) > newest:
                shutil.rmtree(path)
        with open(workdir / "metrics.jsonl", "a") as file:
            file.write('{"step": 9, "train/lo')
        state, again = finish(experiment, workdir)
        contract.assert_trees_equal(state, whole)
        assert again == rows


def test_a_longer_run_equals_the_shorter_one_gone_on(tmp_path):
    """Also where the shorter run ended within a row: its last, partial row does not stay."""
    whole, rows = finish(small.experiment(total_steps=STEPS, eval_every=100), tmp_path / "whole")
    shorter = small.experiment(total_steps=7, eval_every=100)
    _, before = finish(shorter, tmp_path / "parts")
    assert [row["step"] for row in before] == [4, 7, 7]
    written = (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    finish(shorter, tmp_path / "parts")  # nothing is left to do, and nothing is lost, the last row's speed neither
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == written
    state, again = finish(dataclasses.replace(shorter, total_steps=STEPS), tmp_path / "parts")
    contract.assert_trees_equal(state, whole)
    assert [row for row in again if "valid/loss" not in row] == [row for row in rows if "valid/loss" not in row]


def test_fewer_steps_than_were_taken_are_nothing_to_do(tmp_path, capsys):
    """Nothing is compiled, trained, removed or written; another experiment is refused all the same."""
    experiment = small.experiment(total_steps=6, save_every=2, eval_every=100, keep=3)
    loop.train(experiment, tmp_path, config="Experiment.seed = 0")
    seen = lambda: {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in tmp_path.rglob("*")}
    before, _ = seen(), capsys.readouterr()
    done = loop.train(dataclasses.replace(experiment, total_steps=4), tmp_path, config="Experiment.seed = 0")
    assert capsys.readouterr().out == f"step 6 of 4: nothing to do in {tmp_path}\n"
    assert (done.step, done.interrupted, done.metrics) == (6, False, {}) and seen() == before
    with pytest.raises(UserError, match="holds the run of another experiment"):
        loop.train(dataclasses.replace(experiment, total_steps=4), tmp_path, config="Experiment.seed = 1")
    assert seen() == before


def test_another_horizon_is_told_with_both_rates(tmp_path, capsys):
    """One line, where the run goes on to another total_steps and its schedule with it; else none."""
    text = "Experiment.total_steps = {}\n"

    def said(total, rate):
        experiment = small.experiment(total_steps=total, eval_every=100, optimizer=optim.AdamW(learning_rate=rate))
        loop.train(experiment, tmp_path / type(rate).__name__, config=text.format(total))
        return [line for line in capsys.readouterr().out.splitlines() if "schedule's" in line]

    cosine = Cosine(peak=0.01, final=0.001)
    assert said(4, cosine) == said(4, 0.01) == []
    assert said(4, cosine) == said(8, 0.01) == []
    assert said(8, cosine) == ["the schedule's horizon changed: the rate at step 4 was 0.001 and is 0.0055"]
    assert said(8, cosine) == []


def test_fewer_steps_than_a_damaged_checkpoint_has_are_taken_from_the_whole_one(tmp_path):
    experiment = small.experiment(total_steps=6, save_every=2, eval_every=100)
    whole, _ = finish(dataclasses.replace(experiment, total_steps=4), tmp_path / "whole")
    loop.train(experiment, tmp_path / "damaged")
    for step in (4, 6):
        found = [p for p in (tmp_path / f"damaged/checkpoints/{step}/state").rglob("*") if p.is_file()]
        max(found, key=lambda p: p.stat().st_size).write_bytes(b"")
    done = loop.train(dataclasses.replace(experiment, total_steps=4), tmp_path / "damaged")
    assert done.step == 4
    contract.assert_trees_equal(jax.device_get(done.state), whole)


def test_on_another_mesh_the_next_losses_agree(tmp_path):
    """Same examples and keys; sums are added in another order."""
    experiment = small.experiment(total_steps=6, log_every=1)
    whole, rows = finish(experiment, tmp_path / "whole")
    finish(dataclasses.replace(experiment, total_steps=3), tmp_path / "moved")
    _, moved = finish(dataclasses.replace(experiment, mesh="data:2,fsdp:2,tensor:2"), tmp_path / "moved")
    pick = lambda rows: [row["train/loss"] for row in rows if "train/loss" in row]
    np.testing.assert_allclose(pick(moved), pick(rows), rtol=1e-5)
    assert len(pick(moved)) == 6


def test_a_state_in_bfloat16_resumes_bit_for_bit(tmp_path):
    """Stored and rounded by seed, step and name, whatever was in between; a notebook is given float32."""
    experiment = small.experiment(total_steps=6, param_dtype="bfloat16", moment_dtype="bfloat16")
    whole, rows = finish(experiment, tmp_path / "whole")
    finish(dataclasses.replace(experiment, total_steps=3), tmp_path / "parts")
    parts, again = finish(experiment, tmp_path / "parts")
    contract.assert_trees_equal(whole, parts)
    assert again[-1] == rows[-1]
    assert {str(x.dtype) for x in jax.tree.leaves((parts.params, parts.opt_state))} >= {"bfloat16"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    for path in pathlib.Path(loop.__file__).parents[1].rglob("*.py"):
        shutil.copyfile(path, directory / f"{path.stem}.txt")
    return directory


SMALL = dict(vocab_size=384, d_model=32, heads=2, layers=1, dropout=0.1)
RATE = Linear(0.15, total_steps=20, final=0.3)
TEXT = {
    "span_corruption": lambda: SpanCorruption(t5("tiny", **SMALL), length=48, rate=RATE).bind(
        ByteTokenizer().vocabulary
    ),
    "next_token": lambda: NextToken(gpt("tiny", **SMALL), length=48).bind(ByteTokenizer().vocabulary),
}


@pytest.mark.parametrize("name", [pytest.param("span_corruption", marks=pytest.mark.slow), "next_token"])
def test_text_from_files_through_other_workers(name, corpus, tmp_path, monkeypatch):
    """Dropout and a scheduled rate on; stopped once in the thread, gone on with two worker processes."""
    objective = TEXT[name]()
    data = TextData(source=str(corpus), tokenizer="bytes", valid=0.2)
    settings = dict(data=data, total_steps=10, batch_size=8, eval_batches=2, optimizer=optim.AdamW(learning_rate=1e-3))
    experiment = small.experiment(objective, **settings)
    whole, rows = finish(experiment, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupted_after(patch, 5)
        assert loop.train(experiment, tmp_path / "parts").step == 5
    state, again = finish(dataclasses.replace(experiment, workers=2), tmp_path / "parts")
    contract.assert_trees_equal(state, whole)
    assert again == rows and rows[-1]["valid/bits_per_byte"] > 0


@pytest.mark.slow
def test_rows_cut_along_their_length_go_on_on_another_mesh(corpus, tmp_path):
    data = TextData(source=str(corpus), tokenizer="bytes", valid=0.2)
    settings = dict(data=data, total_steps=4, batch_size=8, eval_batches=2, log_every=1, eval_every=4)
    experiment = small.experiment(TEXT["next_token"](), **settings)
    _, rows = finish(experiment, tmp_path / "whole")
    begun = dataclasses.replace(experiment, total_steps=2, mesh="fsdp:-1,context:2")
    finish(begun, tmp_path / "cut")
    _, cut = finish(dataclasses.replace(begun, total_steps=4, mesh="data:2,context:4"), tmp_path / "cut")
    for name in ("train/loss", "valid/loss"):
        pick = lambda rows, name=name: [row[name] for row in rows if name in row]
        np.testing.assert_allclose(pick(cut)[-1], pick(rows)[-1], rtol=1e-5)


def test_the_command_ends_well_on_sigterm(corpus, tmp_path):
    """Exit code 0, a checkpoint of the step it stopped at, and no traceback from anybody."""
    bindings = ["Experiment.evaluators = ()", "Experiment.save_every = 100000", "Experiment.total_steps = 100000"]
    bindings += [f"TextData.source = '{corpus}'", "TextData.valid = 0.2", "NextToken.length = 64"]
    flags = [f"--gin_param={binding}" for binding in bindings] + [f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "launch.train", "--gin_file=runs/smoke/next_token.gin", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    shown = ""
    for line in process.stdout:
        shown += line
        if line.startswith("step "):
            process.send_signal(signal.SIGTERM)
            break
    shown += process.communicate(timeout=120)[0]
    assert process.returncode == 0, shown
    stopped = re.search(r"stopped at step (\d+) of 100000, saved in .*; the same command goes on from there\n$", shown)
    assert stopped and "Traceback" not in shown, shown
    assert Checkpoints(tmp_path / "run" / "checkpoints").find() == int(stopped[1])
