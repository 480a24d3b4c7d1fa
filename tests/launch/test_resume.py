"""A run that was interrupted equals one that was not, through the real loop: state bit for bit, and every row."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from launch import loop
from launch.checkpoint import Checkpoints
from paradigm.combine import Stages
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
        if now == step and self._signal is None:
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
    _, same = finish(shorter, tmp_path / "parts")  # nothing is left to do, and nothing is lost
    assert sorted(map(json.dumps, same)) == sorted(map(json.dumps, before))
    state, again = finish(dataclasses.replace(shorter, total_steps=STEPS), tmp_path / "parts")
    contract.assert_trees_equal(state, whole)
    assert [row for row in again if "valid/loss" not in row] == [row for row in rows if "valid/loss" not in row]


def test_on_another_mesh_the_next_losses_agree(tmp_path):
    """Same examples and keys; sums are added in another order."""
    experiment = small.experiment(total_steps=6, log_every=1)
    whole, rows = finish(experiment, tmp_path / "whole")
    finish(dataclasses.replace(experiment, total_steps=3), tmp_path / "moved")
    _, moved = finish(dataclasses.replace(experiment, mesh="data:2,fsdp:2,tensor:2"), tmp_path / "moved")
    pick = lambda rows: [row["train/loss"] for row in rows if "train/loss" in row]
    np.testing.assert_allclose(pick(moved), pick(rows), rtol=1e-5)
    assert len(pick(moved)) == 6
