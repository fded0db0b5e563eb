"""A module imports only from lower ranks (CONTRIBUTING.md, "Layers")."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "jseg"
RANKS = {
  "types": 0,
  "data": 1,
  "nn": 1,
  "crf": 1,
  "backbones": 2,
  "models": 3,
  "losses": 3,
  "metrics": 3,
  "average_precision": 3,
  "weights": 4,
  "optim": 4,
  "state": 5,
  "config": 5,
  "step": 6,
  "checkpoint": 6,
  "imports": 7,
  "report": 7,
  "predict": 8,
  "export": 8,
  "tasks": 9,
  "evaluate": 10,
  "tune_crf": 10,
  "loop": 11,
  "cli": 12,
}
SIBLINGS = {"data", "nn", "crf", "weights", "tasks"}  # folders whose files may import one another
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def imports(source: str) -> set[str]:
  """Dotted names of what a source imports from jseg, from anywhere in it."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports hide the layer"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return {name for name in found if name.split(".")[0] == "jseg"}


def forbidden(path: pathlib.Path, source: str) -> list[str]:
  """Imports of a file that its layer doesn't allow."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  here = parts[0]
  wrong = []
  for name in imports(source):
    there = name.split(".")[1]
    if there == here and (here in SIBLINGS or parts[-1] == "__init__"):
      continue
    if name.startswith("jseg.models.base.") and here == "models":
      continue  # the base class; networks never import one another
    if there not in RANKS or RANKS[there] >= RANKS[here]:
      wrong.append(name)
  return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
  assert forbidden(path, path.read_text()) == []


@pytest.mark.parametrize(
  ("file", "source", "wrong"),
  [
    ("nn/conv.py", "from jseg.models import unet", ["jseg.models.unet"]),
    ("models/unet.py", "import jseg.models.fcn", ["jseg.models.fcn"]),
    ("models/unet.py", "def f():\n  from jseg import loop", ["jseg.loop"]),
    ("models/unet.py", "from jseg import nn\nfrom jseg.types import IGNORE", []),
    ("data/pipeline.py", "from jseg.data.classes import ClassInfo", []),
    ("metrics.py", "import jseg.losses", ["jseg.losses"]),
  ],
)
def test_the_check_sees_a_wrong_import(file, source, wrong):
  assert forbidden(ROOT / file, source) == wrong


def test_jseg_never_imports_the_configs():
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text())):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
      names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
      assert not any(name.split(".")[0] == "configs" for name in names), path
