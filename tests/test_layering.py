"""A module imports only from lower ranks (CONTRIBUTING.md, "Layers")."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "jseg"
RANKS = {
  "types": 0,
  "allocator": 0,
  "xla_flags": 0,
  "arithmetic": 0,
  "barrier": 0,
  "install": 0,
  "console": 1,
  "owner": 0,
  "outputs": 1,
  "lock": 2,
  "json_files": 2,
  "download": 2,
  "remote": 3,
  "record": 4,
  "collection": 5,
  "parameters": 0,
  "lost": 0,
  "hosts": 2,
  "checksums": 1,
  "compilation_cache": 0,
  "lookup": 1,
  "config_values": 1,
  "images": 1,
  "nn": 1,
  "crf": 1,
  "augment": 3,
  "data": 3,
  "backbones": 3,
  "models": 4,
  "datasets": 4,
  "losses": 4,
  "metrics": 4,
  "report": 5,
  "scaling": 4,
  "weights": 5,
  "groups": 1,
  "loss_scale": 1,
  "optim": 5,
  "state": 6,
  "step": 7,
  "tasks": 8,
  "config": 9,
  "checkpoint": 9,
  "recipes": 10,
  "config_help": 10,
  "run": 10,
  "comparison": 11,
  "profile": 3,
  "sessions": 11,
  "suspects": 11,
  "log": 11,
  "predict": 11,
  "evaluation": 11,
  "export": 11,
  "import_weights": 11,
  "tuning": 12,
  "preview": 10,
  "memory": 10,
  "loop": 12,
  "length": 10,
  "lr_finder": 13,
  "commands": 14,
  "cli": 15,
}
# Folders whose files may import one another.
SIBLINGS = {
  "augment",
  "backbones",
  "commands",
  "crf",
  "data",
  "datasets",
  "losses",
  "metrics",
  "nn",
  "report",
  "tasks",
  "weights",
}
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
    ("data/pipeline.py", "from jseg.data.files.classes import ClassInfo", []),
    ("metrics/rand.py", "import jseg.losses", ["jseg.losses"]),
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


def test_networks_and_weights_import_without_the_data_stack():
  script = (
    "import sys, jseg.augment, jseg.images, jseg.models, jseg.weights\n"
    'print([name for name in ("tensorflow_datasets", "grain", "cv2") if name in sys.modules])'
  )
  command = [sys.executable, "-c", script]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"
