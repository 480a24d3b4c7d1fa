"""launch.sweep: points and their names, who runs which, and that each ends like a run of launch.train alone."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from launch import sweep
from launch.run import loop, registry
from paradigm.errors import UserError
from tests.launch import small

ROOT = pathlib.Path(__file__).parents[2]
MODULES = ["tests.miniatures"]
TOY = """
Experiment.objective = @TwoTerms()
Experiment.data = @NumbersData()
Experiment.optimizer = @AdamW()
AdamW.learning_rate = 0.01
Experiment.total_steps = 12
Experiment.batch_size = 16
Experiment.log_every = 4
Experiment.eval_every = 6
Experiment.save_every = 3
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.gin"
    path.write_text(TOY)
    return path


def start(toy, workdir, *flags):
    known = [*(f"--import={module}" for module in MODULES), f"--gin_file={toy}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.sweep", *known, *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(*args):
    process = start(*args)
    out, err = process.communicate()
    return process.returncode, out, err


def test_points_are_named_by_what_they_have_of_their_own():
    points = sweep.grid(["Experiment.seed=0, 1", "NextToken.adapt=None,@LoRA()", "gin_file=runs/smoke/mae.gin"])
    assert [point.name for point in points] == [
        "seed=0,adapt=None,gin_file=runs-smoke-mae",
        "seed=0,adapt=LoRA,gin_file=runs-smoke-mae",
        "seed=1,adapt=None,gin_file=runs-smoke-mae",
        "seed=1,adapt=LoRA,gin_file=runs-smoke-mae",
    ]
    assert points[1].bindings == ("Experiment.seed = 0", "NextToken.adapt = @LoRA()")
    assert points[1].files == ("runs/smoke/mae.gin",)
    names = [point.name for point in sweep.grid(["A.rate=0.1", "B.rate=1,2"])]
    assert names == ["A.rate=0.1,B.rate=1", "A.rate=0.1,B.rate=2"]


def test_commas_within_brackets_and_quotes_belong_to_a_value():
    points = sweep.grid(["A.x=(1, 2),[],(('a,b]', True),),'c,d',\"e'f\""])
    values = ["(1, 2)", "[]", "(('a,b]', True),)", "'c,d'", '"e\'f"']
    assert [point.bindings for point in points] == [(f"A.x = {value}",) for value in values]
    assert [point.name for point in points] == ["x=1-2", "x=empty", "x=a-b-True", "x=c-d", "x=e-f"]
    one, other = (point.name for point in sweep.grid(["A.x='/a/b','a-b'"]))
    assert one != other and one.startswith("x=a-b-") and other.startswith("x=a-b-")
    (long,) = sweep.grid([f"A.x='{'a' * 300}'"])
    assert len(long.name) < 60


@pytest.mark.parametrize(
    "texts,message",
    [
        ([], "--grid is required, as in --grid='Experiment.seed=0,1,2'"),
        (["Experiment.seed"], "--grid=Experiment.seed: write NAME=VALUE,VALUE, as in --grid='Experiment.seed=0,1,2'"),
        (["A.x=(1,2"], "--grid=A.x=(1,2: a bracket or a quote is left open, or closed twice"),
        (["A.x=1,,2"], "--grid=A.x=1,,2: a value is missing: commas stand between values"),
        (["A.x=1,2,1"], "--grid=A.x=1,2,1: 1 is there twice: a point would be run twice"),
        (["A.x=0.1,2,1e-1"], "--grid=A.x=0.1,2,1e-1: 0.1 is there twice: a point would be run twice"),
        (["A.x=1", "A.x=2"], "--grid: A.x is given twice: write all its values into one"),
    ],
)
def test_a_grid_that_is_none(texts, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sweep.grid(texts)


def test_every_machine_has_its_part():
    parts = [list(sweep.part(7, index, 3, {})[0]) for index in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]
    assert sweep.part(7, environment={}) == (range(7), "")
    slurm = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_STEP": "2"}
    slurm["SLURM_ARRAY_TASK_COUNT"] = "3"
    assert sweep.part(7, environment=slurm) == (range(2, 7, 3), " (part 2 of 3, by SLURM_ARRAY_TASK_ID)")
    assert sweep.part(7, of=4, environment={"JOB_COMPLETION_INDEX": "1"})[0] == range(1, 7, 4)
    assert sweep.part(7, 0, 1, slurm)[0] == range(7)  # the flags count
    for given, message in [
        ((7, 1, None, {}), "--index is given and --of is not"),
        ((7, None, 2, {}), "--of is given and --index is not"),
        ((7, None, None, {"JOB_COMPLETION_INDEX": "1"}), "JOB_COMPLETION_INDEX is given and --of is not"),
        ((7, None, None, slurm | {"SLURM_ARRAY_TASK_ID": ""}), "SLURM_ARRAY_TASK_ID='' is no number: set or unset it"),
        ((7, None, 3, {"JOB_COMPLETION_INDEX": "x"}), "JOB_COMPLETION_INDEX='x' is no number"),
        ((7, 3, 3, {}), "--index is 3, and --of=3 parts have the indices 0 to 2"),
    ]:
        with pytest.raises(UserError, match=message):
            sweep.part(*given)


def test_one_ends_one_fails_one_goes_on(toy, tmp_path):
    """And the same command does again what failed, and nothing else."""
    half = registry.parse([toy], ["AdamW.learning_rate = 0.02", "Experiment.total_steps = 6"], MODULES)
    loop.train(half, tmp_path / "learning_rate=0.02", config=registry.operative_config())
    flags = ["--grid=AdamW.learning_rate=1e30,0.02"]
    code, out, err = run(toy, tmp_path, *flags)
    assert code == 1
    assert out.splitlines()[0] == "2 points, 2 to look after, 0 of them ended already"
    assert "--- 1 of 2 · learning_rate=1e30" in out and "resumed from step 6" in out
    first, second = err.splitlines()[-2:]
    assert first == "1 of 2 points failed"
    assert second.startswith("  learning_rate=1e30: exit code 2: error: loss or gradient was not finite in 10 steps")
    table = out[out.index("\nrun ") :]
    assert re.search(r"^learning_rate=0.02 .* 0.02 ", table, re.MULTILINE)
    assert re.search(r"^learning_rate=1e30 .* not ended: step \d+ of 12 ", table, re.MULTILINE)

    alone = registry.parse([toy], ["AdamW.learning_rate = 0.02"], MODULES)
    loop.train(alone, tmp_path / "alone", config=registry.operative_config())
    assert small.rows(tmp_path / "learning_rate=0.02") == small.rows(tmp_path / "alone")

    before = (tmp_path / "learning_rate=0.02" / "environment.json").read_bytes()
    code, out, err = run(toy, tmp_path, *flags)
    assert code == 1 and out.splitlines()[:2] == [
        "2 points, 2 to look after, 1 of them ended already",
        "--- 1 of 2 · learning_rate=1e30",
    ]
    assert (tmp_path / "learning_rate=0.02" / "environment.json").read_bytes() == before  # it was not even started

    code, out, err = run(toy, tmp_path, "--grid=AdamW.learning_rate=0.02,0.03", "--gin_param=Experiment.seed = 7")
    assert code == 2 and "learning_rate=0.02 holds the run of another experiment, which differs in: - Exper" in err
    assert not (tmp_path / "learning_rate=0.03").exists()


def test_a_dry_run_prints_what_a_part_would_run(toy, tmp_path):
    flags = ["--grid=Experiment.seed=0,1,2", "--gin_param=AdamW.b1 = 0.8", "--index=1", "--of=2", "--dry_run"]
    code, out, err = run(toy, tmp_path, *flags)
    assert (code, err) == (0, "")
    first, line = out.splitlines()
    assert first == "3 points (part 1 of 2, by --index), 1 to look after, 0 of them ended already"
    assert line.startswith("python -m launch.train ") and line.endswith(f" --workdir={tmp_path}/seed=1")
    for word in ("--import=tests.miniatures", f"--gin_file={toy}", "'--gin_param=AdamW.b1 = 0.8'"):
        assert word in line
    assert "'--gin_param=Experiment.seed = 1'" in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--grid=AdamW.learning_rats=1,2"], "AdamW has no parameter 'learning_rats', did you mean 'learning_rate'?"),
        (["--grid=Experiment.seed=0,'1'"], "Experiment.seed = '1' is a text where a whole number is wanted"),
        (["--grid=Experiment.batch_size=8,0"], "batch_size=0: Experiment.batch_size=0 must be at least 1"),
        (["--grid=Experiment.data=@NumbersData(),'x'"], "data=x: Experiment.data = 'x' is no data: write @NAME()"),
        (["--grid=Experiment.seed=0,1", "--coordinator=a:1"], "--coordinator is for launch.train; launch.sweep starts"),
    ],
)
def test_a_point_that_cannot_work_is_refused_before_the_first_one_runs(toy, tmp_path, flags, message):
    code, out, err = run(toy, tmp_path, *flags)
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_saves_the_point_and_ends_the_sweep(toy, tmp_path):
    flags = ["--grid=Experiment.seed=0,1", "--gin_param=Experiment.total_steps = 10000000", "--interrupted_code=75"]
    process = start(toy, tmp_path, *flags)
    rows = tmp_path / "seed=0" / "metrics.jsonl"
    for _ in range(600):
        if rows.exists() and rows.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "interrupted in seed=0; the same command goes on from there" in out
    stopped = int(re.search(r"stopped at step (\d+) of 10000000, saved in", out)[1])
    assert (tmp_path / "seed=0" / "checkpoints" / str(stopped)).is_dir() and not (tmp_path / "seed=1").exists()
    assert json.loads(rows.read_text().splitlines()[-1])["step"] <= stopped
