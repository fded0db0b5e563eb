"""Kills a training again and again, and compares where it ends with one that was left alone.

  PYTHONPATH=tests python benchmarks/chaos.py --kills 50 [--processes 2]

Of three kills, two are at a write that is drawn at random among all (`tests/helpers/chaos.py`), and
one is at a moment drawn at random; now and then the disk is full from a write on instead, and two
are started at once. Of several processes that train one run, one is killed or all are; the others
must end by themselves within a minute, and say which was lost. Whenever a run has come to its end,
its parameters and metrics must be, bit for bit, those of the run that was left alone, and the next
one begins. Exits with 1 where they aren't. At the end it tells how many kills of each kind there
were, how many runs ended as they must, and how long the others lived on after a loss.
"""

import argparse
import contextlib
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from jseg import hosts
from jseg.commands.common import run_or_exit
from jseg.loop import train
from jseg.run import load_model

STEPS = 12
LONGEST = 60.0
"""Seconds for which the others of a run may live on after a loss; see `LivedOn`."""

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
  # Drawing would take a third of the time; pictures are still written.
  FigureCanvasAgg.print_png = lambda _, file: Image.new("L", (1, 1)).save(file, "PNG")
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


class LivedOn:
  """How long processes live on after another one of their run was lost.

  Args:
    processes: their ids.
  """

  def __init__(self, processes: Sequence[int]):
    self._start, self._before = time.monotonic(), {p: waited(p) for p in processes}

  def seconds(self, process: int) -> tuple[float, float]:
    """(seconds, the same without those for which one of its threads waited for a processor).

    A machine that is busy with other things makes everything longer, and no process is to blame.
    """
    passed, before = time.monotonic() - self._start, self._before[process]
    delays = (delay - before.get(thread, 0.0) for thread, delay in waited(process).items())
    return passed, passed - max(delays, default=0.0)


def waited(process: int) -> dict[str, float]:
  """Seconds for which each thread of a process was ready and waited for a processor (Linux)."""
  found = {}
  for file in pathlib.Path(f"/proc/{process}/task").glob("*/schedstat"):
    with contextlib.suppress(OSError):  # it has just ended
      found[file.parent.name] = int(file.read_text().split()[1]) / 1e9
  return found


def wait(processes: Sequence[int], *, together: bool = False) -> tuple[list[int], float]:
  """Waits for the processes of a run.

  Args:
    processes: their ids. One that lives on for `LONGEST` seconds after a loss hangs.
    together: whether the others are killed as soon as one has ended.

  Returns:
    (exit statuses; of one that was killed, minus the signal, seconds that one lived on after a
    loss at most).
  """
  statuses: dict[int, int] = {}
  lived_on, longest = None, 0.0
  while len(statuses) < len(processes):
    for process in set(processes) - set(statuses):
      ended, status = os.waitpid(process, os.WNOHANG)
      if ended:
        statuses[process] = os.waitstatus_to_exitcode(status)
        continue
      seconds, own = lived_on.seconds(process) if lived_on else (0.0, 0.0)
      longest = max(longest, seconds)
      if own > LONGEST or (together and statuses):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        statuses[process] = -signal.SIGKILL if together else HANGS
    # One that has come to its end isn't lost.
    if lived_on is None and any(statuses.values()):
      lived_on = LivedOn(list(set(processes) - set(statuses)))
    time.sleep(0.05)
  return [statuses[process] for process in processes], longest


def result(run: pathlib.Path) -> tuple[list, object]:
  """Metrics without timings, and variables; in a process of its own, to keep this one small."""
  return logged(run), jax.device_get(load_model(run, "latest")[1])


def check(run: pathlib.Path, reference: pathlib.Path) -> int:
  """Returns the exit status of a process that compares two runs."""
  process = os.fork()
  if process:
    return wait([process])[0][0]
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
  run: pathlib.Path, data_dir: pathlib.Path, number: int, count: int, rng: random.Random
) -> tuple[str, str, float]:
  """Starts a training to which something happens, at a write of this number or otherwise.

  Returns:
    (what did, what it came to, seconds that a process lived on after a loss).
  """
  kind = rng.choices(("write", "time", "full", "two", "none"), (8, 4, 2, 1, 1))[0]
  together = count > 1 and kind in ("write", "time") and rng.random() < 0.5
  if kind in ("write", "full"):
    what = "full" if kind == "full" else "kill"
    processes = start_all(run, data_dir, count, what, number)
  else:
    processes = start_all(run, data_dir, count)
  if kind == "time":
    time.sleep(rng.uniform(1, 12 * count))
    os.kill(rng.choice(processes), signal.SIGKILL)
  others = start_all(run, data_dir, count) if kind == "two" else []
  # One by one: a run that goes on after the other was refused doesn't hang.
  statuses, lived_on = wait(processes, together=together)
  statuses += wait(others)[0]
  named = f"{kind}, all" if together else kind
  return named, outcome(run, statuses, one=kind == "two"), lived_on


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
  if not set(statuses) <= {0, 1, -signal.SIGABRT, -signal.SIGKILL}:
    return f"status {statuses}"
  # JAX ends a process whose run has lost another one; what it says then is ours.
  for index, status in enumerate(statuses):
    if status == -signal.SIGABRT and not says_who_was_lost(log_of(run, index)):
      return f"process {index} says nothing"
  if -signal.SIGKILL in statuses:
    return "killed"
  return "ended" if not any(statuses) or (one and 0 in statuses) else "message"


def says_who_was_lost(log: pathlib.Path) -> bool:
  """Whether a log ends so; another process writes it, and may do so when this one has ended."""
  until = time.monotonic() + LONGEST
  while not (found := "error: process " in log.read_text()[-2000:]) and time.monotonic() < until:
    time.sleep(0.2)
  return found


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
  # Several processes can't share an accelerator, and looking for one takes time at each start.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  data_dir, reference = folder / "data", folder / "reference"
  assert not any(wait(start_all(reference, data_dir, count))[0]), log_of(reference, 0).read_text()
  writes = int(reference.with_suffix(".writes").read_text())
  print(f"{writes} writes; runs in {folder}", flush=True)

  killed: Counter[str] = Counter()
  seen: Counter[str] = Counter()
  finished = wrong = different = 0
  longest = 0.0
  run, left = folder / "0", writes
  while killed.total() < arguments.kills:
    number = rng.randint(1, left)
    what, came_to, lived_on = attempt(run, data_dir, number, count, rng)
    if came_to == "killed":
      killed[what] += 1
      # A run that goes on has fewer writes before it, and most numbers would be beyond them.
      left = max(writes // 4, left - number) if what.startswith("write") else left
    else:
      seen[f"{what}: {came_to}"] += 1
    longest = max(longest, lived_on)
    after = f", the others lived on for {lived_on:.0f} s" if lived_on > 1 else ""
    print(f"{killed.total()} kills, {finished} ends: {what}: {came_to}{after}", flush=True)
    if came_to not in ("killed", "ended", "message"):
      wrong += 1
      # The next start writes its own over it.
      for index in range(count):
        shutil.copy(log_of(run, index), folder / f"wrong_{wrong}.{index}.txt")
    if came_to == "ended":
      finished += 1
      different += check(run, reference)
      shutil.rmtree(run)
      run, left = folder / str(finished), writes
  if run.exists():
    assert not any(wait(start_all(run, data_dir, count))[0]), log_of(run, 0).read_text()
    finished += 1
    different += check(run, reference)
  print(f"{killed.total()} kills: {listed(killed)}; beside them {listed(seen)}")
  print(
    f"{finished} runs came to their end, {finished - different} of them bit-equal; {wrong} wrong"
  )
  if count > 1:
    print(f"the others lived on for {longest:.1f} s at most after a loss")
  sys.exit(1 if wrong or different else 0)


def listed(counts: Counter[str]) -> str:
  """Counts as text, the largest first."""
  return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


if __name__ == "__main__":
  main()
