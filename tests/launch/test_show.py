"""launch.show: what it prints of a run directory, from outside, and what it refuses."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from launch import show
from launch.evaluate import evaluate
from launch.results import runs
from launch.storage import checkpoint
from launch.storage.workdir import check
from paradigm.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
META = {"next_index": 96, "objective": "NextToken", "phase": "main", "versions": {"jax": "0.10.2"}, "config": ""}


def state(value):
    params = {"embed": jnp.full((16, 8), value), "dense": {"kernel": jnp.full((8, 4), value), "bias": jnp.zeros((4,))}}
    return {"step": jnp.int32(value), "params": params, "opt_state": {"mu": params}, "extra": {}}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with checkpoint.Checkpoints(workdir / "checkpoints", best_metric="valid/loss") as checkpoints:
        for step, loss in ((10, 2.5), (20, 3.5)):
            checkpoints.save(step, state(step), META | {"next_index": step * 8}, {"valid/loss": loss})
    return workdir


def run(*args):
    return subprocess.run([sys.executable, "-m", "launch.show", *args], cwd=ROOT, capture_output=True, text=True)


def test_the_last_line_is_json(workdir):
    done = run(f"--workdir={workdir}")
    assert done.returncode == 0 and done.stderr == ""
    trees = state(20)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "step": 20,
        "next_index": 160,
        "parameter_count": 16 * 8 + 8 * 4 + 4,
        "objective": "NextToken",
        "phase": "main",
        "sha256": {name: checkpoint.tree_sha256(trees[name]) for name in ("params", "opt_state", "extra")},
    }
    assert f"{workdir}: step 20, NextToken, next example 160" in done.stdout
    assert "checkpoint 10  valid/loss 2.5  (best)\ncheckpoint 20  valid/loss 3.5  (shown)\n" in done.stdout
    assert "written by jax 0.10.2" in done.stdout


def test_a_chosen_step(workdir):
    for step in ("10", 10, "best"):
        assert show.show(workdir, step)[1]["step"] == 10
    assert show.show(workdir)[1]["sha256"]["params"] != show.show(workdir, 10)[1]["sha256"]["params"]


def test_refusals(workdir, tmp_path):
    done = run(f"--workdir={tmp_path}/absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}/absent: no such run directory\n"
    done = run()
    assert (done.returncode, done.stderr) == (2, "error: --workdir is required, as in --workdir=/tmp/demo\n")
    with pytest.raises(UserError, match=f"{tmp_path}/checkpoints: no checkpoint there yet"):
        show.show(tmp_path)
    with pytest.raises(UserError, match=r"none of the checkpoints \[10, 20\] is of step 15"):
        show.show(workdir, "15")
    with pytest.raises(UserError, match="step='newest': write a number or 'best'"):
        show.show(workdir, "newest")
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoint 5 is damaged: it has no manifest.json"):
        show.show(tmp_path)


def test_two_runs_are_told_apart_by_their_settings(tmp_path):
    common = "Experiment.seed = 0\nExperiment.evaluators = \\\n    (@A(),\n     @B())\n"
    for name, more in {
        "one": "AdamW.b1 = 0.9\nA.x = 1\n",
        "other": "AdamW.b1 = 0.95\nB.y = 'z'\n",
        "same": "A.x = 1\nAdamW.b1 = 0.9\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.gin").write_text(common + more)
    done = run("--diff", str(tmp_path / "one"), str(tmp_path / "other"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "A.x: 1 -> (not set)\nAdamW.b1: 0.9 -> 0.95\nB.y: (not set) -> 'z'\n"
    assert show.diff(tmp_path / "one", tmp_path / "same") == ["no setting differs"]
    same = tmp_path / "same"
    (same / "config.gin").write_bytes((tmp_path / "one" / "config.gin").read_bytes().replace(b"\n", b"\r\n"))
    assert show.diff(tmp_path / "one", same) == ["no setting differs"]
    (same / "config.gin").write_bytes(b"\xff\xfea")
    (same / "metrics.jsonl").touch()  # a run that has begun
    for read in (lambda path: show.diff(tmp_path / "one", path), evaluate, runs.read, lambda path: check(path, "")):
        with pytest.raises(UserError, match="same/config.gin is not as the run wrote it .byte 0 is no UTF-8.: put it"):
            read(same)
    done = run(f"--diff={tmp_path}/one")
    assert (done.returncode, done.stderr) == (2, "error: --diff takes two runs, as in --diff /tmp/one /tmp/other\n")
    with pytest.raises(UserError, match="nowhere: no run directory, it has no config.gin"):
        show.diff(tmp_path / "one", tmp_path / "nowhere")
