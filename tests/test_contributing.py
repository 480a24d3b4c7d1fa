"""docs/contributing.md: its objective from outside the repository trains as pasted and passes the contract."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from paradigm import testing
from paradigm.dataset import Dataset
from paradigm.optim import AdamW
from tests.t5like.vocabularies import t5_like

REPO = pathlib.Path(__file__).parent.parent
TEXT = (REPO / "docs" / "contributing.md").read_text()
CODE, GIN, COMMAND = (re.search(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)[1] for kind in ("python", "gin", "bash"))


@pytest.fixture
def masked(tmp_path):
    """The module of the page, in a folder with its run file."""
    (tmp_path / "masked.py").write_text(CODE)
    (tmp_path / "masked.gin").write_text(GIN)
    spec = importlib.util.spec_from_file_location("masked", tmp_path / "masked.py")
    module = sys.modules["masked"] = importlib.util.module_from_spec(spec)  # dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["masked"]


def test_it_is_short_and_stands_on_public_names():
    lines = [line for line in (CODE + GIN).splitlines() if line.strip()]
    assert len(lines) < 90
    for module, names in re.findall(r"^from (\S+) import (.*)$", CODE, re.MULTILINE):
        assert module.split(".")[0] in ("paradigm", "t5like", "typing") and not re.search(r"\b_", names)
    assert "launch" not in CODE


class Windows:
    fingerprint = "windows"

    def __len__(self):
        return 40

    def __getitem__(self, i):
        tokens = np.random.default_rng(i).integers(3, 259, 32).astype(np.int32)
        return {"tokens": tokens, "segments": np.ones(32, np.int32), "byte_lengths": np.ones(384, np.float32)}


def test_it_passes_the_contract(masked):
    small = masked.Encoder(vocab_size=None, positions="relative", d_model=16, heads=4, d_ff=32, layers=1)
    objective = masked.MaskedTokens(small, length=32).bind(t5_like(359, extra_ids=100))
    batch_of = Dataset(Windows(), objective.preprocess, 8, seed=1).batch
    batch = batch_of(0)
    hidden = batch["inputs"] != batch["targets"]
    assert hidden.any() and not (hidden & (batch["weights"] == 0)).any()
    assert 0.05 < batch["weights"].mean() < 0.25 and (batch["inputs"][hidden] == 358).mean() > 0.6
    testing.check_resume(objective, AdamW(1e-3), batch_of)
    testing.check_microbatches(objective, batch_of)
    testing.check_sharding(objective, batch_of)


def test_it_trains_as_pasted(masked, tmp_path):
    corpus = tmp_path / "text"
    corpus.mkdir()
    for i in range(20):
        (corpus / f"{i}.txt").write_text(f"The {i}th small cat sat on the mat and looked at the dog. " * 40)
    toy = {"total_steps": 2, "batch_size": 8, "eval_batches": 1}
    short = [f"--gin_param=Experiment.{name} = {value}" for name, value in toy.items()]
    short += [f"--gin_param=TextData.source = '{corpus}'", "--gin_param=TextData.valid = 0.2"]
    words = COMMAND.split()
    assert words[:3] == ["PYTHONPATH=.", "python", "-m"] and words[-1].startswith("--workdir=")
    command = [sys.executable, "-m", *words[3:-1], f"--workdir={tmp_path / 'run'}", *short]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and rows[-1]["valid/unigram/bits_per_byte"] > 1
