"""Every notebook runs from the first cell to the last, on small data, with the Python that runs the tests."""

import sys
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder, told by SHORTLIST_NOTEBOOK_FAST=1 to keep its data and training small."""
    write_kernel_spec(tmp_path / "jupyter/kernels/this-python")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("SHORTLIST_NOTEBOOK_FAST", "1")
    (tmp_path / "work").mkdir()

    def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
        where = {"metadata": {"path": str(tmp_path / "work")}}
        return NotebookClient(notebook, timeout=300, kernel_name="this-python", resources=where).execute()

    return execute


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, run):
    run(nbformat.read(path, as_version=4))


def test_a_notebook_sees_this_python_and_the_fast_switch_and_its_errors_count(run):
    def notebook(*cells: str) -> nbformat.NotebookNode:
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])

    seen = run(notebook("import os, sys, shortlist", "print(sys.executable, os.environ['SHORTLIST_NOTEBOOK_FAST'])"))
    assert seen.cells[1].outputs[0].text == f"{sys.executable} 1\n"
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(notebook("x = 1 / 0"))
