"""Kills a training again and again, and compares where it ends with one that was left alone.

  PYTHONPATH=tests python benchmarks/chaos.py --kills 50 [--processes 2]

Of three kills, two are at a write that is drawn at random among all (`tests/helpers/chaos.py`), and
one is at a moment drawn at random; now and then the disk is full from a write on instead, and two
are started at once. Of several processes that train one run, one is killed or all are; the others
must end by themselves within a minute, and say which was lost. Whenever a run has come to its end,
its parameters and metrics must be, bit for bit, those of the run that was left alone, and the next
one begins. Exits with 1 where they aren't.
"""

import argparse
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from helpers.chaos import Writes
from helpers.tiny import logged, tiny_config

from jseg import hosts
from jseg.commands.common import run_or_exit
from jseg.loop import train
from jseg.run import load_model

STEPS = 12
LONGEST = 60.0
"""Seconds that the processes of a run may live on without one that was lost."""

HANGS, TRACEBACK = 1000, 2  # beside the statuses of processes


@dataclasses.dataclass(frozen=True)
class Place:
  """Which process of how many, and the port on which they meet."""

  index: int
  count: int
  port: int


def start(
  run: pathlib.Path, data_dir: pathlib.Path, place: Place, what: str = "kill", number: int = 0
) -> int:
  """Starts a training in a process of its own, which needn't import anything; returns its id."""
  process = os.fork()
  if process:
    return process
  try:
    output = os.open(log_of(run, place.index), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    writes = Writes(run, what, number)
    run_or_exit(lambda: train_at(place, run, data_dir))
    if place.index == 0:
      run.with_suffix(".writes").write_text(str(writes.count))
    status = 0
  except SystemExit as error:
    print(error.code, flush=True)
    status = 1
  except BaseException as error:  # what a user would see a traceback of
    print("TRACEBACK", repr(error), flush=True)
    status = TRACEBACK
  os._exit(status)


def train_at(place: Place, run: pathlib.Path, data_dir: pathlib.Path) -> None:
  """Trains, as one of several processes where there are."""
  if place.count > 1:
    hosts.connect(f"localhost:{place.port}", place.count, place.index, run=run)
  # Tracing is what a start costs, so the network has two levels.
  train(tiny_config(data_dir, knobs={"widths": (4, 8)}, steps=STEPS), run)
  if place.count > 1:
    jax.distributed.shutdown()  # `os._exit` leaves out what JAX does at the end


def log_of(run: pathlib.Path, index: int) -> pathlib.Path:
  """What a process of a run prints."""
  return run.with_suffix(f".{index}.log" if index else ".log")


def start_all(
  run: pathlib.Path, data_dir: pathlib.Path, count: int, what: str = "kill", number: int = 0
) -> list[int]:
  """Starts the processes of a run; what happens at a write does in process 0, which writes."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    start(run, data_dir, Place(index, count, port), what, 0 if index else number)
    for index in range(count)
  ]


def wait(processes: Sequence[int], *, together: bool = False) -> list[int]:
  """Returns the exit statuses of processes; of one that was killed, minus the signal.

  Args:
    processes: their ids. One that lives on for `LONGEST` seconds without another hangs.
    together: whether the others are killed as soon as one has ended.
  """
  statuses: dict[int, int] = {}
  first = None
  while len(statuses) < len(processes):
    for process in set(processes) - set(statuses):
      ended, status = os.waitpid(process, os.WNOHANG)
      if ended:
        statuses[process] = os.waitstatus_to_exitcode(status)
      elif first is not None and (together or time.monotonic() - first > LONGEST):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        statuses[process] = -signal.SIGKILL if together else HANGS
    if statuses and first is None:
      first = time.monotonic()
    time.sleep(0.05)
  return [statuses[process] for process in processes]


def result(run: pathlib.Path) -> tuple[list, object]:
  """Metrics without timings, and variables; in a process of its own, to keep this one small."""
  return logged(run), jax.device_get(load_model(run, "latest")[1])


def check(run: pathlib.Path, reference: pathlib.Path) -> int:
  """Returns the exit status of a process that compares two runs."""
  process = os.fork()
  if process:
    return wait([process])[0]
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


def attempt(
  run: pathlib.Path, data_dir: pathlib.Path, writes: int, count: int, rng: random.Random
) -> str:
  """Starts a training to which something happens; returns what did."""
  kind = rng.choices(("write", "time", "full", "two", "none"), (8, 4, 2, 1, 1))[0]
  together = count > 1 and kind in ("write", "time") and rng.random() < 0.5
  if kind in ("write", "full"):
    what = "full" if kind == "full" else "kill"
    processes = start_all(run, data_dir, count, what, rng.randint(1, writes))
  else:
    processes = start_all(run, data_dir, count)
  if kind == "time":
    time.sleep(rng.uniform(1, 12 * count))
    os.kill(rng.choice(processes), signal.SIGKILL)
  others = start_all(run, data_dir, count) if kind == "two" else []
  # One by one: a run that goes on after the other was refused doesn't hang.
  statuses = wait(processes, together=together) + wait(others)
  named = f"{kind}, all" if together else kind
  return f"{named}: {outcome(run, statuses, one=kind == 'two')}"


def outcome(run: pathlib.Path, statuses: Sequence[int], *, one: bool) -> str:
  """What the exit statuses of the processes of a run mean.

  Args:
    run: the run.
    statuses: the statuses.
    one: whether it was started twice, so that one of the two is to come to its end.
  """
  if HANGS in statuses:
    return "hangs"
  if TRACEBACK in statuses:
    return "traceback"
  # JAX ends a process whose run has lost another one; what it says then is ours.
  time.sleep(1.0 if -signal.SIGABRT in statuses else 0.0)
  for index, status in enumerate(statuses):
    said = log_of(run, index).read_text() if status == -signal.SIGABRT else "error: process 0 of"
    if "error: process " not in said[-2000:]:
      return f"process {index} says nothing"
  if -signal.SIGKILL in statuses:
    return "killed"
  if not any(statuses) or (one and 0 in statuses):
    return "ended"
  known = set(statuses) <= {0, 1, -signal.SIGABRT}
  return "message" if known else f"status {statuses}"


def main() -> None:
  """Kills and compares."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path, default=None)
  arguments = parser.parse_args()
  rng, folder, count = random.Random(arguments.seed), arguments.folder, arguments.processes
  folder = pathlib.Path(tempfile.mkdtemp(prefix="jseg-chaos-")) if folder is None else folder
  folder.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  data_dir, reference = folder / "data", folder / "reference"
  assert not any(wait(start_all(reference, data_dir, count))), log_of(reference, 0).read_text()
  writes = int(reference.with_suffix(".writes").read_text())
  print(f"{writes} writes; runs in {folder}", flush=True)

  seen: Counter[str] = Counter()
  kills = finished = wrong = 0
  run = folder / "0"
  while kills < arguments.kills:
    what = attempt(run, data_dir, writes, count, rng)
    seen[what] += 1
    kills += "killed" in what
    print(f"{kills} kills, {finished} ends: {what}", flush=True)
    if not what.endswith(("killed", "ended", "message")):
      wrong += 1
      # The next start writes its own over it.
      for index in range(count):
        shutil.copy(log_of(run, index), folder / f"wrong_{wrong}.{index}.txt")
    if "ended" in what:
      finished += 1
      wrong += check(run, reference)
      shutil.rmtree(run)
      run = folder / str(finished)
  if run.exists():
    assert not any(wait(start_all(run, data_dir, count))), log_of(run, 0).read_text()
    finished += 1
    wrong += check(run, reference)
  print(f"{kills} kills, {finished} ends, {wrong} of them wrong; {dict(seen)}")
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  main()
