"""What `jseg predict` of a folder of photos takes, with one version of this library or more.

  git worktree add before REVISION
  python benchmarks/photos.py RUN PHOTOS before .

RUN is a run that every version reads: one of the oldest. Each version predicts all photos anew,
from a copy of it, in a process of its own. Seconds of CPU can be compared on a machine that has
other work too; seconds on the clock can't.
"""

import argparse
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

PREDICT = "import sys; from jseg.cli import main; sys.exit(main(sys.argv[1:]))"


def measure(tree: pathlib.Path, run: pathlib.Path, photos: pathlib.Path) -> tuple[float, float]:
  """Predicts the photos with the library in a folder: seconds of CPU, and on the clock."""
  with tempfile.TemporaryDirectory() as folder:
    copy, out = pathlib.Path(folder, "run"), pathlib.Path(folder, "out")
    shutil.copytree(run, copy)
    command = [sys.executable, "-c", PREDICT, "predict", str(copy), str(photos), "--out", str(out)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
      command,
      check=True,
      cwd=folder,
      stdout=subprocess.DEVNULL,
      env={**os.environ, "PYTHONPATH": str(tree.resolve())},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.monotonic() - started


def main() -> None:
  """Prints a line for each version."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("run", type=pathlib.Path)
  parser.add_argument("photos", type=pathlib.Path)
  parser.add_argument("trees", nargs="+", type=pathlib.Path, help="folders that hold `jseg`")
  arguments = parser.parse_args()
  first = None
  for tree in arguments.trees:
    cpu, wall = measure(tree, arguments.run, arguments.photos.resolve())
    first = first or cpu
    print(f"{tree}: {cpu:.1f} s of CPU ({first / cpu:.2f}), {wall:.1f} s on the clock", flush=True)


if __name__ == "__main__":
  main()
