"""Every notebook runs from top to bottom, on a small run made here."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from tests.launch.test_run import SPANS, make_run

REPO = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    make_run(workdir, SPANS)
    return workdir


@pytest.mark.parametrize("path", sorted((REPO / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, run, monkeypatch):
    monkeypatch.setenv("PARADIGM_WORKDIR", str(run))
    monkeypatch.setenv("PYTHONPATH", str(REPO), prepend=os.pathsep)
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs: they would go stale"
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    printed = "".join(o.get("text", "") or str(o.get("data", {})) for c in notebook.cells for o in c.get("outputs", []))
    assert "The cat sat on the mat" in printed  # the last cell: what the model alone learnt by heart
