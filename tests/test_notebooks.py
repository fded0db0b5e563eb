"""Every notebook runs from top to bottom, in a small setting."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "colab").glob("*.ipynb"))
SMALL = "STEPS = 4\nFOLDER_STEPS = 2\nRUNS = {runs!r}"


@pytest.mark.filterwarnings("ignore")  # of the machinery that runs notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
  notebook = nbformat.read(path, as_version=4)
  parameters = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
  assert len(parameters) == 1
  parameters[0].source = SMALL.format(runs=str(tmp_path))
  client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
  client.execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  pictures = [o for o in outputs if "image/png" in o.get("data", {})]
  assert len(pictures) >= 6
