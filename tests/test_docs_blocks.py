"""README and docs: every block of Python runs, but for those that say why they don't.

A page's blocks run one after the other, as its reader would run them, from the names that
`names_of_the_reader` gives and in a folder with a trained run, `runs/mine`. A block that can't run
has a comment above it: `<!-- not run: REASON -->`, or `<!-- example -->` if another test runs it.
One that is a file has `<!-- file: NAME.py -->`: it is written, for the later blocks to import.
"""

import pathlib
import re
import shutil
import textwrap
import typing

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.pages import PAGES
from helpers.untrained import make_run

import jseg
import jseg.config
from jseg import models

BLOCK = re.compile(
  r"^(?:<!-- (.+) -->\n)?( *)```python\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE
)


def blocks(page):
  """Blocks of Python of a page: lines they begin at, file names of those that are files, code."""
  text = page.read_text()
  for match in BLOCK.finditer(text):
    comment = match[1] or ""
    if not comment.startswith(("not run: ", "example")):
      file = comment.removeprefix("file: ") if comment.startswith("file: ") else ""
      yield text.count("\n", 0, match.start(3)), file, textwrap.dedent(match[3])


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
  """Where a reader is: a folder with a trained run, and names that the pages' blocks start from."""
  folder = tmp_path_factory.mktemp("reader")
  make_run(folder / "runs/mine")
  yield folder
  shutil.rmtree(folder)


def names_of_the_reader():
  """Values of the names that blocks use without saying where they come from."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
  return {
    "jseg": jseg,
    "jax": jax,
    "jnp": jnp,
    "np": np,
    "nn": flax.linen,
    "image": image,
    "images": image[None],
    "labels": rng.integers(0, 4, image.shape[:2]),
    "config": jseg.config.default("unet", backbone="resnet18", width=0.125),
    **{name: getattr(jseg.types, name) for name in ("Arguments", "Array", "Outputs")},
    **{name: getattr(typing, name) for name in ("Any", "ClassVar")},
    "Network": models.Network,
  }


@pytest.mark.parametrize(
  "page", [page for page in PAGES if any(blocks(page))], ids=lambda p: p.name
)
def test_blocks_of_python_run(page, reader, monkeypatch):
  monkeypatch.chdir(reader)
  monkeypatch.syspath_prepend(reader)
  names = {**names_of_the_reader(), "__name__": page.stem}
  for line, file, block in blocks(page):
    if file:
      pathlib.Path(file).write_text(block)
      continue
    exec(compile("\n" * line + block, str(page), "exec"), names)
