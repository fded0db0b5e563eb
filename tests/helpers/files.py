"""Images and folders of images, and what the checks print of them."""

import io
import json

import numpy as np
from PIL import Image
from rich.console import Console


def save(path, array=None, mode=None):
  """Writes an image, 4 x 6 and black unless given."""
  path.parent.mkdir(parents=True, exist_ok=True)
  array = np.zeros((4, 6, 3), np.uint8) if array is None else np.asarray(array, np.uint8)
  image = Image.fromarray(array, mode)
  if mode == "P":
    image.putpalette(list(range(256)) * 3)
  image.save(path)


def add_pair(folder, name, mask=None):
  save(folder / "images" / f"{name}.jpg")
  save(folder / "masks" / f"{name}.png", np.zeros((4, 6)) if mask is None else mask)


def add_classes(root, **content):
  root.mkdir(parents=True, exist_ok=True)
  (root / "classes.json").write_text(json.dumps({"classes": ["a", "b"], **content}))


def printed(report):
  console = Console(file=io.StringIO(), width=200)
  console.print(report.table())
  return console.file.getvalue()
