"""Every notebook runs from top to bottom in a small setting, and is committed as it should be."""

import ast
import pathlib
import re
import runpy
import types

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
tools = types.SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "notebooks.py")))

SMALL = {
  "course.ipynb": {"SECONDS": 1000, "MAX_STEPS": 2, "IMAGES": 24},
  "crf.ipynb": {"SIZE": 32, "IMAGES": 2, "STEPS": 1},
  "mask_rcnn.ipynb": {"STEPS": 2, "IMAGES": 16, "WIDTH": 0.125},
  "own_loop.ipynb": {"STEPS": 12, "BATCH": 4, "SIZE": 32, "WIDTHS": (4, 8)},
  "pretrained.ipynb": {"STEPS": 2, "IMAGES": 16, "MASKS": 8, "WIDTH": 0.125},
  "quickstart.ipynb": {"STEPS": 4, "OWN_STEPS": 2, "IMAGES": 80, "WIDTHS": (4, 8)},
  "tpu.ipynb": {
    "STEPS": 4,
    "BATCH_PER_CHIP": 2,
    "SIZE": 32,
    "IMAGES": 40,
    "WIDTHS": (4, 8),
    "MEASURED": 2,
  },
  "volumes.ipynb": {"STEPS": 2, "SCANS": 3, "WIDTHS": (2, 4)},
}
PICTURES = {
  "course.ipynb": 14,
  "crf.ipynb": 6,
  "mask_rcnn.ipynb": 7,
  "own_loop.ipynb": 3,
  "pretrained.ipynb": 2,
  "quickstart.ipynb": 7,
  "tpu.ipynb": 2,
  "volumes.ipynb": 4,
}
each_notebook = pytest.mark.parametrize("path", tools.NOTEBOOKS, ids=lambda p: p.stem)


def read(path):
  return nbformat.read(path, as_version=4)


@pytest.mark.filterwarnings("ignore")  # of the machinery that runs notebooks
@each_notebook
def test_notebook_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  notebook = read(path)
  tools.set_values(notebook, "parameters", **SMALL[path.name])
  tools.execute(notebook, tmp_path)
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  assert sum("image/png" in o.get("data", {}) for o in outputs) == PICTURES[path.name]
  said = "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)
  text = re.sub(r"\x1b\[[\d;]*m", "", said)  # without colors
  assert "jseg is installed already" in text
  if path.name == "own_loop.ipynb":
    assert "largest difference after resuming: 0.0\n" in text
  if path.name == "tpu.ipynb":  # the signal came after step 2, and the run went on from there
    assert "saved at step 3" in text
    assert "resuming at step 3" in text


@each_notebook
def test_what_a_notebook_imports_is_there(path):
  cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
  code = "\n".join(re.sub(r"^\s*[%!].*$", "", source, flags=re.M) for source in cells)
  imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import | ast.ImportFrom)]
  ours = [line for line in map(ast.unparse, imports) if re.match(r"(from|import) jseg\b", line)]
  assert ours
  for line in ours:
    exec(line, {})


@each_notebook
def test_what_notebooks_share_comes_from_one_place(path):
  notebook = read(path)
  for tag, source in tools.shared_cells(path.name).items():
    assert tools.tagged(notebook, tag).source == source, "run python tools/notebooks.py"


@each_notebook
def test_notebooks_name_one_repository(path):
  text = path.read_text() + (ROOT / "colab" / "install.py").read_text()
  links = [link for link in text.split("https://github.com/")[1:] if "jseg" in link[:40]]
  assert links
  owner = tools.repository().removeprefix("https://github.com/")
  assert all(link.startswith(owner) for link in links)


@each_notebook
def test_notebooks_are_committed_without_outputs(path):
  cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
  assert not any(cell.outputs or cell.execution_count for cell in cells)
