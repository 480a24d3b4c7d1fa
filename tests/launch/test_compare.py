"""launch.compare: one row for runs that differ in their seed alone, and nothing averaged that should not be."""

import csv
import io
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest

from launch import compare
from launch.results import picture, table
from launch.results.runs import find
from launch.run import loop
from launch.run.measures import UNITS
from paradigm.errors import UserError
from tests.launch import small
from tests.launch.storage.emulator import Emulator

ROOT = pathlib.Path(__file__).parents[2]


def write(workdir, *, steps=40, loss=lambda step: 1 / step, speed=None, parameters=None, rows=None, **settings):
    """A run directory as launch.train leaves it, of 40 steps, of which `steps` were taken."""
    settings = {
        "Experiment.total_steps": 40,
        "Experiment.seed": 0,
        "Experiment.objective": "@Classify()",
        "Classify.adapt": None,
        "AdamW.learning_rate": "%rate",
        "rate": 0.1,
        "Experiment.best_metric": "'valid/accuracy'",
        "Experiment.best_mode": "'max'",
    } | {name.replace("__", "."): value for name, value in settings.items()}
    workdir.mkdir(parents=True)
    (workdir / "config.gin").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    if rows is None:
        rows = []
        for step in range(10, steps + 1, 10):
            rows.append({"step": step, "train/loss": loss(step), "speed": speed or {}})
            if step % 20 == 0:
                score = 0.9 if step == 20 else 0.5
                rows.append({"step": step, "valid/loss": loss(step), "valid/accuracy": score + loss(step), "speed": {}})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "cut')
    (workdir / "environment.json").write_text(json.dumps({"parameters": parameters}))
    return workdir


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods of three seeds each, one of which has not ended; a folder that is no run."""
    root = tmp_path_factory.mktemp("sweep")
    for name, adapt in (("full", "None"), ("lora", "@LoRA()")):
        for seed in range(3):
            write(
                root / f"{name},seed={seed}",
                steps=20 if (name, seed) == ("lora", 2) else 40,
                loss=lambda step, seed=seed: (seed + 1) / step,
                speed={"seconds_per_step": 0.1 + seed, "peak_memory": (seed + 1) * 2**20},
                parameters={"all": 1000, "trained": 1000 if name == "full" else 25},
                Experiment__seed=seed,
                Classify__adapt=adapt,
                **({"LoRA__rank": 4} if name == "lora" else {}),
            )
    (root / "notes").mkdir()
    return root


def cells(text):
    """[{title: cell}] of a table in markdown."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], map(str.strip, line))) for line in lines[2:]]


def test_seeds_are_one_row_and_what_has_not_ended_is_apart(sweep):
    runs, left_out = find([f"{sweep}/*"])
    assert left_out == [f"left out of {sweep}/*, no runs: notes"]
    found = table.compare(runs)
    rows = cells(table.markdown(found))
    assert [row["run"] for row in rows] == ["full,seed=*", "lora,seed=*", "lora,seed=2"]
    assert [row["n"] for row in rows] == ["3", "2", "1"]
    assert [row["state"] for row in rows] == ["", "", "not ended: step 20 of 40"]
    assert [row["adaptation"] for row in rows] == ["", "LoRA", "LoRA"]
    assert [row["trained [%]"] for row in rows] == ["100", "2.5", "2.5"]
    losses = [1 / 40, 2 / 40, 3 / 40]
    assert rows[0]["valid/loss"] == f"{statistics.fmean(losses):.4g} ± {statistics.stdev(losses):.2g}"
    assert rows[0]["step time [s]"] == "1.1 ± 1" and rows[0]["memory [MiB]"] == "2 ± 1"
    best = statistics.fmean(0.9 + x / 20 for x in (1, 2, 3))  # at step 20, and not at the last
    assert rows[0]["valid/accuracy (best)"].startswith(f"{best:.4g} ±")
    assert rows[2]["valid/loss"] == "0.15"
    assert "LoRA.rank: (not set) | 4 | 4" in table.console(found)


def test_what_one_row_alone_sets_is_counted_and_not_listed(tmp_path):
    write(tmp_path / "a", Classify__adapt="@LoRA()", LoRA__rank=4, LoRA__alpha=8)
    write(tmp_path / "b", Classify__adapt="@PrefixTuning()", PrefixTuning__length=7)
    found = table.compare(find([tmp_path / "a", tmp_path / "b"])[0])
    assert "(not set)" not in table.console(found) + table.markdown(found)
    assert "3 settings that one row alone has are not listed: compare.csv has them (--out)" in table.console(found)
    assert "PrefixTuning.length" in table.as_csv(found)


def test_a_csv_has_every_number_as_it_is(sweep):
    rows = list(csv.DictReader(io.StringIO(table.as_csv(table.compare(find([f"{sweep}/full*"])[0])))))
    assert len(rows) == 1 and rows[0]["n"] == "3" and rows[0]["ended"] == "True"
    assert float(rows[0]["valid/loss"]) == statistics.fmean([1 / 40, 2 / 40, 3 / 40])
    assert float(rows[0]["valid/loss sd"]) == statistics.stdev([1 / 40, 2 / 40, 3 / 40])
    assert rows[0]["paths"].split() == [f"{sweep}/full,seed={seed}" for seed in range(3)]


def test_settings_that_differ_have_a_column_and_order_the_rows(tmp_path):
    for name, rate in (("a", "0.1"), ("b", "0.02"), ("c", "0.003")):
        write(tmp_path / name, rate=rate)
    runs, _ = find([tmp_path / "a", f"{tmp_path}/b/", tmp_path / "c", tmp_path / "a"])
    rows = cells(table.markdown(table.compare(runs)))
    assert [row["AdamW.learning_rate"] for row in rows] == ["0.1", "0.02", "0.003"]  # of the macro
    assert "rate" not in rows[0] and "state" not in rows[0] and "adaptation" not in rows[0]
    by = table.compare(runs, by=("learning_rate",))
    assert [row["run"] for row in cells(table.markdown(by))] == ["c", "b", "a"]
    assert [row.label for row in by.rows] == ["learning_rate=0.003", "learning_rate=0.02", "learning_rate=0.1"]
    rows = cells(table.markdown(table.compare(runs, by=("objective",))))
    assert [row["run"] for row in rows] == ["a", "b", "c"] and list(rows[0])[:2] == ["run", "objective"]


def test_a_number_that_is_not_finite_makes_the_mean_so(tmp_path):
    for seed, loss in enumerate((1.0, None)):
        write(tmp_path / f"{seed}", rows=[{"step": 40, "valid/loss": loss, "speed": {}}], Experiment__seed=seed)
    (row,) = cells(table.markdown(table.compare(find([f"{tmp_path}/*"])[0])))
    assert (row["n"], row["valid/loss"]) == ("2", "nan")


def test_the_same_run_twice_is_not_two_seeds(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    found = table.compare(find([f"{tmp_path}/*"])[0])
    assert [len(row.runs) for row in found.rows] == [1, 1]
    assert found.notes == (f"{tmp_path}/b has the settings and the seed of {tmp_path}/a: it has a row of its own",)


def test_metrics_are_chosen(sweep, tmp_path):
    write(tmp_path / "other", rate=0.3, rows=[{"step": 40, "valid/loss": 1.0, "valid/knn": 0.25, "speed": {}}])
    runs, _ = find([f"{sweep}/full*", tmp_path / "other"])
    found = table.compare(runs, metrics=("knn", "train/loss"))
    rows = cells(table.markdown(found))
    assert list(rows[0])[-2:] == ["valid/knn", "train/loss"]
    assert [row["valid/knn"] for row in rows] == ["", "0.25"]
    assert [line.split(" is not in ")[0] for line in found.notes] == ["valid/knn", "train/loss"]
    found = table.compare(runs)
    assert [score.name for score in found.scores] == ["valid/loss"]
    assert found.notes == ("not in every run, --metric shows them: valid/accuracy, valid/knn",)


def test_refusals(sweep, tmp_path):
    runs, _ = find([f"{sweep}/full*"])
    for metric, hint in (("valid/acuracy", "did you mean 'valid/accuracy'"), ("zzz", "there are: train/loss, valid/")):
        with pytest.raises(UserError, match=f"--metric={metric}: no run has it[,;] {hint}"):
            table.compare(runs, metrics=(metric,))
    with pytest.raises(UserError, match="--by=learning_rates: no run has such a setting, did you mean 'AdamW.learn"):
        table.compare(runs, by=("learning_rates",))
    write(tmp_path / "two", Muon__learning_rate="0.1")
    with pytest.raises(UserError, match="--by=learning_rate may be AdamW.learning_rate or Muon.learning_rate: write w"):
        table.compare(find([tmp_path / "two"])[0], by=("learning_rate",))
    with pytest.raises(UserError, match=re.escape(f"{sweep}: no run, it has no config.gin: give {sweep}/* for the 6")):
        find([sweep])
    with pytest.raises(UserError, match="absent: no such directory; a run directory is the --workdir of launch.train"):
        find([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"none\*: no run: nothing matches; a run directory is"):
        find([tmp_path / "none*"])
    with pytest.raises(UserError, match="no run: none of the 1 that match is one; a run directory is"):
        find([sweep / "n?tes"])
    write(tmp_path / "a", rows=[{"step": 40, "valid/knn": 1.0, "speed": {}}])
    write(tmp_path / "b", rows=[{"step": 40, "valid/loss": 1.0, "speed": {}}])
    which = re.escape(f"{tmp_path}/a has valid/knn; {tmp_path}/b has valid/loss")
    with pytest.raises(UserError, match=f"the runs have no metric in common, choose with --metric: {which}"):
        table.compare(find([f"{tmp_path}/[ab]"])[0])
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        compare.compared([tmp_path / "a"], out=tmp_path / "a" / "config.gin" / "out")


@pytest.mark.parametrize(
    "rows, settings, told",
    [
        ([{"step": "2", "valid/loss": 1.0}], {}, "metrics.jsonl: step = '2' is no number"),
        ([{"step": 2.5}], {}, "metrics.jsonl: step = 2.5 is no number of steps"),
        ([{"step": 2, "valid/loss": [1]}], {}, r"metrics.jsonl: valid/loss = \[1\] is no number"),
        ([{"step": 2, "speed": "fast"}], {}, "metrics.jsonl: speed = 'fast' is no number"),
        ([], {"Experiment__total_steps": "1e3"}, "config.gin: total_steps = 1e3 is no number of steps"),
        ([], {"rate": "%rate"}, "config.gin: a macro is set to itself"),
    ],
)
def test_directories_of_others_are_one_line(rows, settings, told, tmp_path):
    path = write(tmp_path / "a", rows=rows, **settings)
    with pytest.raises(UserError, match=f"{tmp_path}/a/{told}"):
        find([path])


def test_a_run_that_was_only_begun(tmp_path):
    (run,), _ = find([write(tmp_path / "a", rows=[])])
    found = table.compare([run])
    assert found.notes == ("no run has been evaluated yet",) and not found.scores
    assert cells(table.markdown(found))[0]["state"] == "not ended: step 0 of 40"
    assert picture.draw(found).startswith(b"\x89PNG")


def test_a_long_label_stands_in_lines_and_loses_nothing():
    label = "first=1 · " + "a-name-without-spaces" * 4 + " · last=2"
    lines = picture.in_lines(label).split("\n")
    assert "".join("".join(lines).split()) == "".join(label.split()) and max(map(len, lines)) <= picture.LENGTH


def test_the_spread_is_over_the_steps_that_all_have():
    steps, means, low, high = picture.spread([[(1, 1.0), (2, 2.0), (3, math.nan)], [(2, 4.0), (3, 1.0), (4, 1.0)]])
    assert steps == [2, 3] and means[0] == 3 and math.isnan(means[1])
    assert (low[0], high[0]) == (3 - math.sqrt(2), 3 + math.sqrt(2))


def test_the_command_writes_table_and_picture(sweep, tmp_path):
    flags = [f"{sweep}/*", "--by=adaptation", "--metric=accuracy,valid/loss", f"--out={tmp_path}/out"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.compare", *flags], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"left out of {sweep}/*, no runs: notes\n"
    assert done.stdout.splitlines()[-1] == f"compare.md, compare.csv, compare.png: in {tmp_path}/out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.md", "compare.csv", "compare.png"}
    rows = cells((tmp_path / "out" / "compare.md").read_text())
    assert list(rows[0])[-2:] == ["valid/accuracy", "valid/loss"] and [row["n"] for row in rows] == ["3", "2", "1"]
    from matplotlib import image

    drawn = image.imread(tmp_path / "out" / "compare.png")
    assert min(drawn.shape[:2]) > 600 and len(np.unique(drawn.reshape(-1, drawn.shape[-1]), axis=0)) > 20
    done = subprocess.run([sys.executable, "-m", "launch.compare"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: which runs? Give directories, as in python -m")


def test_runs_of_the_loop_are_read(tmp_path):
    """What a notebook's run writes, which is no gin."""
    for seed in range(2):
        loop.train(small.experiment(seed=seed, freeze=(("/in/", True),), log_every=2), tmp_path / f"seed{seed}")
    found = table.compare(find([f"{tmp_path}/*"])[0])
    (row,) = cells(table.markdown(found))
    assert (row["run"], row["objective"], row["n"], row["trained [%]"]) == ("seed*", "TwoTerms", "2", "66.67")
    last = [small.rows(tmp_path / f"seed{seed}")[-1]["valid/loss"] for seed in range(2)]
    assert found.rows[0].number(found.scores[1])[0] == statistics.fmean(last)
    assert float(row["memory [MiB]"]) > 0 and "±" in row["step time [s]"]


def test_runs_in_a_bucket(sweep, tmp_path, monkeypatch):
    with Emulator("bucket") as emulator:
        for name, value in {**emulator.environment, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        for path in sweep.rglob("*.*"):
            key = f"sweep/{path.relative_to(sweep).as_posix()}"
            emulator.buckets["bucket"][key] = (next(emulator.generations), path.read_bytes())
        text = compare.compared(["gs://bucket/sweep/*", f"{sweep}/full,seed=0"], out="gs://bucket/out")
        assert emulator.names("out/") == ["out/compare.csv", "out/compare.md", "out/compare.png"]
        with pytest.raises(
            UserError, match=r"gs://bucket/sweep: no run, it has no config.gin: give gs://bucket/sweep/\*"
        ):
            find(["gs://bucket/sweep"])
    assert "full,seed=*" in text and "not ended: step 20 of 40" in text
    assert f"{sweep}/full,seed=0 has the settings and the seed of gs://bucket/sweep/full,seed=0" in text


def test_units_are_those_of_the_page_on_metrics():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for end, unit, _ in UNITS:
        (line,) = re.findall(rf"^\|[^|]*`valid/{end}`[^|]*\| ([^|]*) \|", page, re.MULTILINE)
        assert line == unit, end
