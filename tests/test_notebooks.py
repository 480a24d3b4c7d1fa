"""Every notebook runs from top to bottom: on a small run made here, or training a few steps itself."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

from launch.run import loop, registry
from tests.launch.test_load import SPANS, make_run

REPO = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


def short(run, *bindings):
    """A function that trains two steps of a smoke run in a directory."""

    def make(workdir):
        small = ["total_steps = 2", "eval_batches = 1", "evaluators = ()"]
        experiment = registry.parse([f"runs/smoke/{run}.gin"], [*bindings, *(f"Experiment.{line}" for line in small)])
        loop.train(experiment, workdir, config=registry.operative_config())

    return make


# notebook -> (what trains its run, {what it says: what is shorter}, what it prints)
RUNS = {
    "t5_infill": (lambda workdir: make_run(workdir, SPANS), {}, "The cat sat on the mat"),  # learnt by heart
    "mae_reconstruct": (short("mae", "vit.layers = 1"), {}, "['decoder'] stays behind"),
    "clip_zero_shot": (short("clip", "clip_vit.layers = 1", "Experiment.batch_size = 16"), {}, "5 found"),
    "adapt": (None, {"total_steps = 400": "total_steps = 2", "total_steps = 80": "total_steps = 2"}, "LinearProbe"),
    "text_three_ways": (None, {"steps = 300": "steps = 2"}, "fill-mask"),
    "own_data": (None, {"steps = 100": "steps = 4"}, "find the train now!"),
}
# What they call is tested elsewhere; one shows that a notebook finds it.
SLOW = set(RUNS) - {"t5_infill"}


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS} == set(RUNS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_anywhere_and_shows_what_it_gave(path):
    """A badge, an installation that is the same in all, and the outputs of one run from top to bottom."""
    notebook, first = (nbformat.read(p, as_version=4) for p in (path, NOTEBOOKS[0]))
    (where,) = re.findall(
        rf"\[!\[.*\]\(.*badge.svg\)\]\(https://colab.research.google.com/github/(\S+)/blob/main/notebooks/{path.name}\)",
        notebook.cells[0].source,
    )
    install = code_of(notebook)[0].source
    assert install == code_of(first)[0].source and f"https://github.com/{where}" in install
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)], "execute it from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert RUNS[path.stem][2] in printed(notebook)
    assert str(REPO) not in nbformat.writes(notebook) and "/tmp/" not in nbformat.writes(notebook)


def run_first_cell(place, monkeypatch, **environment):
    """What the first cell of the notebooks calls where Paradigm is not installed."""
    called = []
    monkeypatch.chdir(place)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exec(code_of(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source, {})
    return called


def test_the_first_cell_installs_the_checkout_that_it_is_in(monkeypatch):
    (install,) = run_first_cell(REPO / "notebooks", monkeypatch)
    assert install[1:-1] == ["-m", "pip", "install", "-q", "-e"] and install[-1].startswith(f"{REPO}[")


def test_the_first_cell_says_what_to_set_elsewhere(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="set REPOSITORY above to the address or path of one"):
        run_first_cell(tmp_path, monkeypatch)
    clone, install = run_first_cell(tmp_path, monkeypatch, PARADIGM_REPOSITORY=str(REPO))
    assert clone[-2:] == [str(REPO), str(tmp_path / "paradigm")] and install[-1].startswith(f"{tmp_path}/paradigm[")


def printed(notebook):
    return "".join(o.get("text", "") or str(o.get("data", {})) for c in code_of(notebook) for o in c.outputs)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in RUNS])
def test_notebook(name, tmp_path, monkeypatch):
    make, shorter, expected = RUNS[name]
    if make:
        make(tmp_path)
    monkeypatch.setenv("PARADIGM_WORKDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPO), prepend=os.pathsep)
    path = REPO / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for long, few in shorter.items():
        assert any(long in cell.source for cell in code_of(notebook)), long
        for cell in code_of(notebook):
            cell.source = cell.source.replace(long, few)
    for cell in code_of(notebook):
        cell.outputs = []
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert expected in printed(notebook)
