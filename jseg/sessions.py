"""`run.json`: what trained a run, session by session: versions, devices, code, data, durations."""

import contextlib
import datetime
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from types import TracebackType

import jax

from jseg import hosts, json_files
from jseg.install import versions
from jseg.outputs import WriteError
from jseg.run import Run
from jseg.types import InputError, Json

RUNNING = "running"
"""Outcome of a session that goes on, or was killed."""

_REMEDY = "move it away: the run goes on without it"
_LIBRARIES = ("jseg", "python", "jax", "jaxlib", "flax", "optax")


class Session:
  """One session of a training, from its start or resumption to its end; a context manager.

  Process 0 writes it, when it begins, whenever `save` is called, and when it ends.

  Args:
    run: the run.
    fingerprint: fingerprint of the data set.
    first: finished steps.

  Raises:
    InputError: the run's file is damaged; or, from any method, it can't be written.
  """

  def __init__(self, run: Run, fingerprint: str, first: int):
    self._path = run.files.sessions
    self._before = _earlier(run) if hosts.is_first() else []
    self._started = time.perf_counter()
    self._seconds = dict.fromkeys(("compile", "train", "evaluate", "save"), 0.0)
    self._about = {
      "started": _now(),
      "ended": None,
      "outcome": RUNNING,
      "steps": [first, first],
      "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
      # Of our own version, not where it lies.
      "versions": {name: versions()[name].partition(",")[0] for name in _LIBRARIES},
      "devices": _devices(),
      # Ours too (`jseg.xla_flags`), which go by the CPU.
      "xla_flags": shlex.split(os.environ.get("XLA_FLAGS", "")),
      "processes": jax.process_count(),
      "data": {"name": run.config.data.name, "fingerprint": fingerprint},
    }
    if git := revision(pathlib.Path.cwd()):
      self._about["git"] = git

  def __enter__(self) -> "Session":
    self._write()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._about["outcome"] == RUNNING:
      self._about["outcome"] = "finished" if error is None else "failed"
    self._about["ended"] = _now()
    with contextlib.suppress(*([] if error is None else [WriteError])):  # the error says more
      self._write()

  @contextlib.contextmanager
  def timing(self, what: str) -> Iterator[None]:
    """Adds the time of a block to `seconds`: compile, evaluate or save; all else is training."""
    started = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[what] += time.perf_counter() - started

  def compiling(self, step: int) -> contextlib.AbstractContextManager[None]:
    """Takes the call of a training step: the first one of a session compiles."""
    first = self._about["steps"][0]
    return self.timing("compile") if step == first + 1 else contextlib.nullcontext()

  def save(self, step: int) -> None:
    """Writes the session as it is after a step."""
    self._about["steps"][1] = step
    self._write()

  def end(self, outcome: str) -> None:
    """Says how it ends, where it isn't "finished" or "failed"."""
    self._about["outcome"] = outcome

  def _write(self) -> None:
    if not hosts.is_first():
      return
    total = time.perf_counter() - self._started
    others = sum(value for name, value in self._seconds.items() if name != "train")
    self._seconds["train"] = total - others
    seconds = {name: round(value, 3) for name, value in self._seconds.items()}
    session = {**self._about, "seconds": seconds}
    json_files.write(self._path, {"sessions": [*self._before, session]})


def _earlier(run: Run) -> list[Json]:
  """The sessions before this one; what didn't end was killed."""
  path = run.files.sessions
  if not path.exists():
    return []
  sessions = json_files.read(path, _REMEDY).get("sessions")
  if not isinstance(sessions, list) or not all(isinstance(each, dict) for each in sessions):
    raise InputError(f"{path} is damaged ('sessions' is no list of objects); {_REMEDY}")
  return [
    {**each, "outcome": "killed"} if each.get("outcome") == RUNNING else each for each in sessions
  ]


def _devices() -> Json:
  first = jax.devices()[0]
  return {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def revision(folder: pathlib.Path) -> Json | None:
  """Returns the git `revision` of a working folder, and whether tracked files differ (`dirty`).

  None where there is no git, no repository or no commit.
  """
  head = _git(folder, "rev-parse", "HEAD")
  changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
  if head is None or changed is None:
    return None
  return {"revision": head.strip(), "dirty": bool(changed)}


def _git(folder: pathlib.Path, *words: str) -> str | None:
  """What git answers; None if it can't."""
  environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # it only looks
  try:
    done = subprocess.run(
      ["git", *words],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      errors="replace",
      timeout=10,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout if done.returncode == 0 else None
