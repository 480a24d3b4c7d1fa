"""The README's commands for a run of one's own, as they are written: a person pastes them."""

import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from launch import load

REPO = pathlib.Path(__file__).parent.parent


def corpus(path, size=1_500_000):
    """A zip of text files: enough words of Python's standard library to learn 8192 ids from."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for i, source in enumerate(sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))):
            file.writestr(f"corpus/{i}.txt", source.read_text("utf-8", "replace"))
            size -= source.stat().st_size
            if size < 0:
                return
    raise AssertionError("the standard library is smaller than it was")


def test_your_own_run_works_as_pasted(tmp_path):
    """Only the corpus, the places and the number of steps are other ones."""
    (block,) = re.findall(r"## Your own run\n\n```bash\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    corpus(tmp_path / "corpus.zip")
    for written, here, times in [
        ("corpus.zip", f"{tmp_path}/corpus.zip", 1),
        ("data/corpus", f"{tmp_path}/data", 2),
        ("workdirs/mine", f"{tmp_path}/mine", 3),
        ("total_steps=2000", "total_steps=3", 1),
        ("python -m", f"{sys.executable} -m", 4),
    ]:
        assert block.count(written) == times, written
        block = block.replace(written, here)
    done = subprocess.run(["bash", "-e", "-c", block], cwd=REPO, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8,192 ids" in done.stdout + done.stderr and "done: 3 steps" in done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 3
    config = (tmp_path / "mine" / "config.gin").read_text()
    assert "vocab_size = None" in config  # the data's: the table has the 8,192 rows of its ids
    run = load(tmp_path / "mine")
    assert run.params["model"]["embed"]["embedding"].shape[0] == run.tokenizer.vocabulary.size == 8192


@pytest.mark.slow
def test_adapting_works_as_pasted(tmp_path):
    """Only the places and the number of steps are other ones."""
    (block,) = re.findall(r"## Adapt it\n\n```bash\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert block.count("--workdir=") == 3 and block.count("launch.compare") == 1
    block = block.replace("--workdir=", "--gin_param=Experiment.total_steps=4 --workdir=")
    block = block.replace("workdirs/", f"{tmp_path}/").replace("python -m", f"{sys.executable} -m")
    done = subprocess.run(["bash", "-e", "-c", block], cwd=REPO, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table" / "compare.md").read_text()
    assert "LoRA" in table and "LinearProbe" in table
