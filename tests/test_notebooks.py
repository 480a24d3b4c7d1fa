"""Every notebook runs from top to bottom, on a small run made here."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from launch.run import loop, registry
from tests.launch.test_load import SPANS, make_run

REPO = pathlib.Path(__file__).parent.parent


def short(run, *bindings):
    """A function that trains two steps of a smoke run in a directory."""

    def make(workdir):
        small = ["total_steps = 2", "eval_batches = 1", "evaluators = ()"]
        experiment = registry.parse([f"runs/smoke/{run}.gin"], [*bindings, *(f"Experiment.{line}" for line in small)])
        loop.train(experiment, workdir, config=registry.operative_config())

    return make


# notebook -> (what trains its run, what its last cell prints)
RUNS = {
    "t5_infill": (lambda workdir: make_run(workdir, SPANS), "The cat sat on the mat"),  # learnt by heart
    "mae_reconstruct": (short("mae", "vit.layers = 1"), "['decoder'] stays behind"),
    "clip_zero_shot": (short("clip", "clip_vit.layers = 1", "Experiment.batch_size = 16"), "5 found"),
}


def test_every_notebook_is_run():
    assert {path.stem for path in (REPO / "notebooks").glob("*.ipynb")} == set(RUNS)


SLOW = {"mae_reconstruct": pytest.mark.slow}  # as long as the others, and its parts are tested elsewhere


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in RUNS])
def test_notebook(name, tmp_path, monkeypatch):
    make, expected = RUNS[name]
    make(tmp_path)
    monkeypatch.setenv("PARADIGM_WORKDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPO), prepend=os.pathsep)
    path = REPO / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs: they would go stale"
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    printed = "".join(o.get("text", "") or str(o.get("data", {})) for c in notebook.cells for o in c.get("outputs", []))
    assert expected in printed
