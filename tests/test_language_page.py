"""The comparison of text objectives: all of them are in it, and its command makes the page, at a toy's size."""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from benchmarks import language

REPO = pathlib.Path(__file__).parent.parent


def test_each_run_file_has_its_row():
    files = {path.stem for path in (REPO / "gin_configs" / "runs" / "small").glob("text_*.gin")}
    assert files == {f"text_{run.name}" for run in language.RUNS}


@pytest.mark.slow
def test_the_command_makes_the_page_and_goes_on(tmp_path):
    sources = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        for i, path in enumerate(sources):
            split = {0: "valid", 1: "test"}.get(i, "train")
            archive.writestr(f"{split}/{path.stem}.txt", path.read_text("utf-8", "replace"))
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        for name in ("agreement", "order"):
            pair = json.dumps({"sentence_good": "def f(x): return x", "sentence_bad": "def f(x) return: x"})
            archive.writestr(f"{name}.jsonl", pair)
    texts = [[f"import {a}", a] for a in ("os", "re", "sys") for _ in range(4)]
    (tmp_path / "data_full.json").write_text(json.dumps({"train": texts, "test": texts}))
    small = ("width = 16", "Experiment.batch_size = 8", "Experiment.eval_batches = 1")
    small += ("Experiment.total_steps = 4", "Experiment.eval_every = 2", "Cosine.warmup_steps = 1")
    line = [sys.executable, "-m", "benchmarks.language", f"--text={tmp_path / 'text.zip'}", f"--clinc={tmp_path}"]
    line += [f"--blimp={tmp_path / 'pairs.zip'}", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    line += [f"--gin_param={binding}" for binding in small]

    def run(*flags):
        done = subprocess.run([*line, *flags], cwd=REPO, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, (tmp_path / "out" / "language.md").read_text()

    said, page = run("--part=objectives", "--objectives=antlm,rts")
    assert "antlm · seed 0" in said and "rts · seed 0" in said
    assert "| `antlm` |" in page and "| `rts` |" in page
    assert (tmp_path / "out" / "language.png").stat().st_size > 1000

    said, page = run("--part=objectives", "--objectives=antlm,mntp,next_token", "--seeds=2")
    assert "antlm · seed 0" not in said and "next_token · seed 1" in said, "what is there is not run again"
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    rows = {name.strip("`"): row for name, *row in lines}
    assert {name: row[1] for name, row in rows.items()} == {"next_token": "2", "antlm": "1", "mntp": "1", "rts": "1"}
    assert "±" in rows["next_token"][6] and "±" not in rows["mntp"][6]
    assert "## Causal and masked by turns" in page
    before = page
    said, page = run("--part=none", "--seeds=2")
    assert "seed" not in said and page == before, "the page alone, of what there is"
