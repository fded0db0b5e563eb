"""Kills a training again and again, and compares where it ends with one that was left alone.

  PYTHONPATH=tests python benchmarks/chaos.py --kills 50

Of three kills, two are at a write that is drawn at random among all (`tests/helpers/chaos.py`), and
one is at a moment drawn at random; now and then the disk is full from a write on instead, and two
are started at once. Whenever a run has come to its end, its parameters and metrics must be, bit for
bit, those of the run that was left alone, and the next one begins. Exits with 1 where they aren't.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter

import jax
import numpy as np
from helpers.chaos import Writes
from helpers.tiny import tiny_config

from jseg.commands.common import run_or_exit
from jseg.loop import train
from jseg.run import load_model

STEPS = 12
TIMINGS = {
  "images_per_second",
  "seconds",
  "waiting_for_input",
  "host_peak_gib",
  "device_peak_gib",
}


def start(run: pathlib.Path, data_dir: pathlib.Path, what: str = "kill", number: int = 0) -> int:
  """Starts a training in a process of its own, which needn't import anything; returns its id."""
  process = os.fork()
  if process:
    return process
  try:
    output = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    writes = Writes(run, what, number)
    run_or_exit(lambda: train(tiny_config(data_dir, steps=STEPS), run))
    run.with_suffix(".writes").write_text(str(writes.count))
    status = 0
  except SystemExit as error:
    print(error.code, flush=True)
    status = 1
  except BaseException as error:  # what a user would see a traceback of
    print("TRACEBACK", repr(error), flush=True)
    status = 2
  os._exit(status)


def wait(process: int) -> int:
  """Returns the exit status of a process; of one that was killed, minus the signal."""
  return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def result(run: pathlib.Path) -> tuple[list, object]:
  """Metrics without timings, and variables; in a process of its own, to keep this one small."""
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  lines = [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]
  return lines, jax.device_get(load_model(run, "latest")[1])


def check(run: pathlib.Path, reference: pathlib.Path) -> int:
  """Returns the exit status of a process that compares two runs."""
  process = os.fork()
  if process:
    return wait(process)
  try:
    (lines, variables), (expected, others) = result(run), result(reference)
    assert lines == expected, "metrics differ"
    jax.tree.map(np.testing.assert_array_equal, variables, others)
    left = [p.name for p in run.rglob("*") if "tmp" in p.name or p.name == "lock"]
    assert not left, left
  except BaseException as error:
    print(f"{run}: {error!r}", flush=True)
    os._exit(1)
  os._exit(0)


def attempt(run: pathlib.Path, data_dir: pathlib.Path, writes: int, rng: random.Random) -> str:
  """Starts a training to which something happens; returns what did."""
  kind = rng.choices(("write", "time", "full", "two", "none"), (8, 4, 2, 1, 1))[0]
  if kind in ("write", "full"):
    status = wait(
      start(run, data_dir, "full" if kind == "full" else "kill", rng.randint(1, writes))
    )
  elif kind == "time":
    process = start(run, data_dir)
    time.sleep(rng.uniform(1, 12))
    os.kill(process, signal.SIGKILL)
    status = wait(process)
  elif kind == "two":
    first, second = start(run, data_dir), start(run, data_dir)
    statuses = {wait(first), wait(second)}
    status = 0 if 0 in statuses and 2 not in statuses else 2
  else:
    status = wait(start(run, data_dir))
  outcome = {0: "ended", 1: "message", 2: "TRACEBACK", -signal.SIGKILL: "killed"}
  return f"{kind}: {outcome.get(status, f'status {status}')}"


def main() -> None:
  """Kills and compares."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path, default=None)
  arguments = parser.parse_args()
  rng, folder = random.Random(arguments.seed), arguments.folder
  folder = pathlib.Path(tempfile.mkdtemp(prefix="jseg-chaos-")) if folder is None else folder
  folder.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  data_dir, reference = folder / "data", folder / "reference"
  assert wait(start(reference, data_dir)) == 0, reference.with_suffix(".log").read_text()
  writes = int(reference.with_suffix(".writes").read_text())
  print(f"{writes} writes; runs in {folder}", flush=True)

  seen: Counter[str] = Counter()
  kills = finished = wrong = 0
  run = folder / "0"
  while kills < arguments.kills:
    what = attempt(run, data_dir, writes, rng)
    seen[what] += 1
    kills += "killed" in what
    print(f"{kills} kills, {finished} ends: {what}", flush=True)
    if "TRACEBACK" in what or "status" in what:
      wrong += 1
      # The next start writes its own over it.
      shutil.copy(run.with_suffix(".log"), folder / f"wrong_{wrong}.txt")
    if "ended" in what:
      finished += 1
      wrong += check(run, reference)
      shutil.rmtree(run)
      run = folder / str(finished)
  if run.exists():
    assert wait(start(run, data_dir)) == 0, run.with_suffix(".log").read_text()
    finished += 1
    wrong += check(run, reference)
  print(f"{kills} kills, {finished} ends, {wrong} of them wrong; {dict(seen)}")
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  main()
