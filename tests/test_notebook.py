"""The notebook of the documentation runs, in a project of 200 tiny images."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from repository import CHECKOUT, environment

NOTEBOOK = CHECKOUT / "docs" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_from_its_first_cell_to_its_last(project, monkeypatch):
    variables = environment(PYTHONPATH=str(CHECKOUT))
    for name in os.environ.keys() - variables.keys():  # such as the tracking store that `make` names
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(shutil.copy(NOTEBOOK, project.root), as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(project.root)}}).execute()
    outputs = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    said = "".join(outputs)
    assert "registered: visionpipe version 1" in said
    assert "validation_accuracy" in said
    assert "→ (None, 4)" in said
    assert any("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))
    assert (Path(project.root) / "mlflow.db").exists()
