"""Runs the notebooks as a Colab would: from a wheel, beside an older JAX that must stay.

python tools/try_notebooks.py --python=python3.13 --out=tried

A new environment gets the packages of --runtime, then each notebook runs in it from top to bottom
with the wheel as its SOURCE. JAX, what belongs to it, and the devices must be the same before and
after. --out gets the notebooks with their outputs.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import nbformat
from notebooks import NOTEBOOKS, ROOT, set_values

SMALL = {
  "course.ipynb": {"SECONDS": 5, "MAX_STEPS": 20, "IMAGES": 100},
  "crf.ipynb": {"SIZE": 48, "IMAGES": 4, "STEPS": 2},
  "mask_rcnn.ipynb": {"STEPS": 20, "IMAGES": 80, "WIDTH": 0.125},
  "own_loop.ipynb": {"STEPS": 40},
  "pretrained.ipynb": {"STEPS": 10, "IMAGES": 80, "WIDTH": 0.125},
  "quickstart.ipynb": {"STEPS": 40, "OWN_STEPS": 20, "IMAGES": 100, "WIDTHS": (8, 16)},
  "volumes.ipynb": {"STEPS": 20, "SCANS": 6, "WIDTHS": (4, 8)},
  "tpu.ipynb": {"STEPS": 20, "BATCH_PER_CHIP": 4, "SIZE": 32, "IMAGES": 100, "WIDTHS": (8, 16)},
}
RUN = "import pathlib, sys, nbclient, nbformat as f; n = f.read(sys.argv[1], 4); " + (
  "c = nbclient.NotebookClient(n, timeout=900, kernel_name='python3')\n"
  "try: c.execute(cwd=sys.argv[2])\n"
  "finally: f.write(n, sys.argv[1])"
)


def say(command: list[str], **options: object) -> str:
  """Runs a command and returns what it prints."""
  return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def state(python: str, folder: pathlib.Path) -> str:
  """Versions of what must stay, and devices."""
  frozen = say([python, "-m", "pip", "list", "--format=freeze"], cwd=folder)
  kept = re.findall(r"^(?:jax|jaxlib|jax[_-].+|libtpu.*|numpy|nvidia-.+)==.+$", frozen, re.M)
  devices = "import jax; print(jax.__version__, jax.devices())"
  return ", ".join(kept) + "; " + say([python, "-c", devices], cwd=folder).strip()


def try_notebook(
  path: pathlib.Path, folder: pathlib.Path, arguments: argparse.Namespace, wheel: str
) -> None:
  """Runs one notebook in a new environment in `folder`; raises where something didn't stay."""
  say([arguments.python, "-m", "venv", str(folder / "runtime")])
  python = str(folder / "runtime" / "bin" / "python")
  say([python, "-m", "pip", "install", "-q", "-r", arguments.runtime, "nbclient", "ipykernel"])
  before = state(python, folder)
  notebook = nbformat.read(path, as_version=4)
  set_values(notebook, "install", SOURCE=wheel)
  if not arguments.full:
    set_values(notebook, "parameters", **SMALL[path.name])
  result = arguments.out.absolute() / path.name
  nbformat.write(notebook, result)
  settings = {**os.environ, "TFDS_DATA_DIR": str(folder / "data")}
  settings.pop("PYTHONPATH", None)
  started = time.perf_counter()
  say([python, "-c", RUN, str(result), str(folder)], env=settings, cwd=folder)
  minutes = (time.perf_counter() - started) / 60
  after = state(python, folder)
  print(f"{path.name}: {minutes:.1f} min\n  before: {before}\n  after:  {after}", flush=True)
  if before != after:
    raise SystemExit(f"{path.name} changed the runtime")


def main() -> None:
  """Builds the wheel and tries every notebook."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("notebooks", nargs="*", type=pathlib.Path, default=NOTEBOOKS)
  parser.add_argument("--python", default=sys.executable, help="interpreter of the runtime")
  parser.add_argument("--runtime", default=str(ROOT / "tools" / "colab.txt"))
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tried"))
  parser.add_argument("--full", action="store_true", help="with the notebooks' own settings")
  arguments = parser.parse_args()
  arguments.out.mkdir(parents=True, exist_ok=True)
  wheels = tempfile.mkdtemp(prefix="jseg-wheel-")
  say([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, str(ROOT)])
  (wheel,) = pathlib.Path(wheels).glob("*.whl")
  for path in arguments.notebooks:
    with tempfile.TemporaryDirectory(prefix="jseg-notebook-") as folder:
      try_notebook(path, pathlib.Path(folder), arguments, str(wheel))


if __name__ == "__main__":
  main()
