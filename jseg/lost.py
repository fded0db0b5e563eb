"""What is said when JAX ends a process because another one of the run was lost, or never came.

JAX ends it by a signal, in the middle of whatever it does, after a dump of its own; no code of the
process can come between. So a second process, which runs this file as a program, passes on what is
logged below Python, and says in our words what the dump means. It imports the standard library
alone, as one starts beside every process that trains.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator

_FATAL = b"Terminating process because the JAX distributed service detected fatal errors"
# Lines that lead to a dump; our message says what they do.
_LEADS = re.compile(rb"coordination_service|preemption_sync_manager|distributed.client\.h")
# As JAX 0.7 to 0.10 word it. A process is a number, or /job:jax_worker/replica:0/task:NUMBER.
_LOST = (
  re.compile(r"stopped sending heartbeats\):(.*?)The tasks have crashed", re.DOTALL),
  re.compile(r"[Tt]ask (\S+) heartbeat timeout"),
)
_ENDED = re.compile(r"first task at the barrier: (\S+)\. ")
_COORDINATOR = re.compile(r"Failed to send RPC to coordination|Deadline Exceeded")


def watch(run: str | os.PathLike[str] | None) -> None:
  """Starts the program for this process, which logs through it from now on, below Python.

  Args:
    run: run directory, whose last checkpoint is to be named; None if there is none.
  """
  reader, writer = os.pipe()
  sys.stderr.flush()
  python = os.dup(2)  # what Python writes goes its own way, unchanged
  subprocess.Popen(
    # Isolated: the modules beside this file have names of the standard library's.
    [sys.executable, "-I", "-S", __file__, "" if run is None else os.fspath(run)],
    stdin=reader,
    stderr=python,
    start_new_session=True,  # Ctrl-C is for the training
  )
  os.dup2(writer, 2)
  os.close(reader)
  os.close(writer)
  sys.stderr = os.fdopen(python, "w", buffering=1)


def translate(dump: str, run: str) -> str | None:
  """Returns what a dump of JAX means, and what to do; None if that isn't clear yet.

  Args:
    dump: the dump, or its beginning.
    run: run directory, or "".
  """
  if "RegisterTask" in dump:
    if "ALREADY_EXISTS" in dump:
      return "another process of the run has the same --process-id; give each its own, from 0"
    return (
      "the processes of the run didn't meet: not all were started in time, they don't agree on "
      "--coordinator, --num-processes or who is --process-id=0, or its port can't be reached"
    )
  was_lost = "was lost (killed, hangs, or no network)"
  lost = next(filter(None, (pattern.search(dump) for pattern in _LOST)), None)
  ended = _ENDED.search(dump)
  if lost:
    numbers, what = re.findall(r"\d+(?=[\s,]|$)", lost[1]), was_lost
  elif ended:
    numbers, what = re.findall(r"\d+$", ended[1]), "has ended, as it says itself"
  elif _COORDINATOR.search(dump):
    # It keeps the list of those that live: nobody else can name it.
    numbers, what = ["0"], was_lost
  else:
    return None
  who = ", ".join(f"process {number}" for number in sorted(set(numbers), key=int))
  return f"{who} of the run {what}, and the others can't go on without. {advice(run)}"


def advice(run: str) -> str:
  """Returns how to go on: with all processes, from the last checkpoint of a run directory."""
  try:
    steps = [int(p.name) for p in pathlib.Path(run, "checkpoints").iterdir() if p.name.isdigit()]
  except OSError:
    steps = []
  go_on = "goes on from its last checkpoint"
  if run:
    go_on = f"goes on from step {max(steps)}" if steps else "begins anew, as nothing was saved"
  return f"Start the same command with the same --workdir on all hosts again: the run {go_on}"


def relay(chunks: Iterable[bytes], run: str) -> Iterator[bytes]:
  """Yields what is to be printed of what is logged, as soon as it is known.

  Args:
    chunks: what is logged, as it comes.
    run: run directory, or "".
  """
  held = b""
  for chunk in chunks:
    held += chunk
    _, fatal, dump = held.partition(_FATAL)
    # At once: where the dying process is the first of a container, all others die with it.
    message = translate(dump.decode(errors="replace"), run) if fatal else None
    if message:
      yield f"error: {message}\n".encode()
      return
    if not fatal and not _LEADS.search(held):
      yield held
      held = b""
  yield held  # nothing that we know


def _chunks() -> Iterator[bytes]:
  while chunk := os.read(0, 1 << 16):
    yield chunk


def main(run: str) -> None:
  """Passes on and translates what comes in, until the process that writes it has ended."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # it is to outlive what it speaks for
  chunks = _chunks()
  for part in relay(chunks, run):
    os.write(2, part)
  for _ in chunks:  # the rest of the dump
    pass


if __name__ == "__main__":
  main(sys.argv[1])
