"""Several processes that train one run: how they meet, and who reads and writes what.

Process 0 alone looks at the run directory and writes it. What it finds wrong is raised by all, so
that none waits for another that has ended.
"""

import collections
import contextlib
import inspect
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jseg import lost
from jseg.console import ERRORS
from jseg.types import InputError

_Result = TypeVar("_Result")

HEARTBEAT_SECONDS = 30
"""Seconds without a sign of life after which a process counts as lost, and the others end."""

_MESSAGE_BYTES = 1 << 15  # all processes must send arrays of one shape
_VARIABLES = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}


def connect(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  run: str | os.PathLike[str] | None = None,
  timeout: int = 300,
) -> None:
  """Joins the other processes of a run; call it before JAX looks for devices.

  What isn't given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
  else from SLURM, MPI, Kubernetes or a TPU slice, as `jax.distributed.initialize` finds them.

  From then on the loss of a process ends the others within a minute, with a message that says which
  it was and how to go on. So does a process that doesn't come.

  Args:
    coordinator: "host:port" of process 0, which the others can reach.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    run: run directory, whose last checkpoint such a message names.
    timeout: seconds to wait for the others.

  Raises:
    InputError: something is missing or impossible, or the others don't answer.
  """
  coordinator = coordinator or os.environ.get(_VARIABLES["coordinator"])
  num_processes = _number("num_processes", num_processes)
  process_id = _number("process_id", process_id)
  if coordinator and not coordinator.rpartition(":")[2].isdigit():
    raise InputError(f"coordinator: {coordinator!r} must be HOST:PORT, as 10.0.0.1:8476")
  if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
    raise InputError(
      f"process_id: {process_id} must be from 0 to {num_processes - 1}, one per process"
    )
  # At the end they wait for one another; JAX before 0.9 does not take how long.
  limits = ("heartbeat_timeout_seconds", "shutdown_timeout_seconds")
  known = inspect.signature(jax.distributed.initialize).parameters
  timeouts: dict[str, Any] = {limit: HEARTBEAT_SECONDS for limit in limits if limit in known}
  lost.watch(run)
  ERRORS.print(f"joining the other processes of the run; waits up to {timeout} s for them")
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, initialization_timeout=timeout, **timeouts
    )
  except Exception as error:  # each launcher's own: of its variables, its server, its library
    raise InputError(
      f"the processes of the run can't be joined: {_reason(error)}. Start every process with "
      "--coordinator=HOST:PORT of process 0, --num-processes=N and --process-id=0, 1, ... "
      "(SLURM, MPI, Kubernetes and TPU slices are recognized without)"
    ) from error


def _reason(error: Exception) -> str:
  """The first paragraph of an error, and its kind where that alone says what it is."""
  text = " ".join(re.split(r"\n\s*\n|```", str(error).strip())[0].split()).rstrip(".:")
  told = text and not isinstance(error, LookupError)
  return text if told else f"{type(error).__name__} {text}".strip()


def _number(name: str, given: int | None) -> int | None:
  """A number that was given, or the one in its variable of the environment."""
  text = os.environ.get(_VARIABLES[name])
  if given is not None or text is None:
    return given
  if not text.isdigit():
    raise InputError(f"{_VARIABLES[name]}: {text!r} must be a whole number")
  return int(text)


def is_first() -> bool:
  """Whether this is process 0, which looks at the run directory and writes it."""
  return jax.process_index() == 0


def first_then_others(action: Callable[[], _Result]) -> _Result:
  """Calls a function in process 0, and then in the others.

  What process 0 has made is then there for the others, or is made by each where they share no
  files.

  Raises:
    InputError: process 0 raised it, which all do then; or this one did.
  """
  made: list[_Result] = []
  on_first(lambda: made.append(action()))
  return made[0] if made else action()


def on_first(action: Callable[[], None]) -> None:
  """Calls a function in process 0 while the others wait.

  Raises:
    InputError: process 0 raised it, which all do then.
  """
  if jax.process_count() == 1:
    action()
    return
  error: BaseException | None = None
  if is_first():
    try:
      action()
    except BaseException as raised:  # whatever it is, the others must not wait
      error = raised
  message = _broadcast("" if error is None else str(error) or type(error).__name__)
  if error is not None:
    raise error
  if message:
    raise InputError(message)


def everywhere(condition: bool) -> bool:
  """Whether a condition holds in all processes, each of which must ask."""
  if jax.process_count() == 1:
    return condition
  with lost_processes():
    return bool(multihost_utils.process_allgather(np.array(condition)).all())


def agree(facts: Mapping[str, object]) -> None:
  """Checks that all processes were started alike.

  Args:
    facts: by name, what must be the same in all processes; values are compared as text.

  Raises:
    InputError: a process has other facts than process 0, or another number of devices; all raise
      the same.
  """
  count = jax.process_count()
  if count == 1:
    return
  devices = collections.Counter(device.process_index for device in jax.devices())
  numbers = [devices[process] for process in range(count)]
  if len(set(numbers)) > 1:
    raise InputError(
      f"the processes have {', '.join(map(str, numbers))} devices; start each with as many"
    )
  mine = [" ".join(f"{name}: {value}".split()) for name, value in facts.items()]
  first = _broadcast("\n".join(mine)).split("\n")
  differing = [
    f"{theirs} in process 0, {ours.partition(': ')[2]} in process {jax.process_index()}"
    for theirs, ours in zip(first, mine, strict=False)
    if theirs != ours
  ]
  if len(first) != len(mine):
    differing.append(f"{len(first)} settings in process 0, {len(mine)} in {jax.process_index()}")
  told = next(filter(None, _gather("; ".join(differing[:3]))), "")
  if told:
    raise InputError(f"the processes were started differently: {told}. Start all alike")


def from_first(tree: _Result) -> _Result:
  """Returns the arrays that process 0 has, in all processes, on the host."""
  if jax.process_count() == 1:
    return tree
  with lost_processes():
    return multihost_utils.broadcast_one_to_all(tree)


def refuse(what: str) -> None:
  """Raises InputError if there are several processes, for what must be done in one."""
  if jax.process_count() > 1:
    raise InputError(f"{what} works in one process; start it in one, without the others")


def stopped_before(first: int) -> bool:
  """Whether the processes were told to stop before they train; all must ask, once.

  JAX lets them agree on the next of a row of numbers from 1, those of the steps. A run that goes on
  begins in the middle, where what was agreed on before would be passed over.

  Args:
    first: finished steps.
  """
  return jax.process_count() > 1 and any(
    multihost_utils.reached_preemption_sync_point(step) for step in range(1, first + 1)
  )


def add_up(counts: np.ndarray) -> np.ndarray:
  """The sum of an integer array over all processes, each of which must ask."""
  if jax.process_count() == 1:
    return counts
  # int64 would become int32 on the way.
  halves = np.stack([counts >> 31, counts & (2**31 - 1)]).astype(np.int32)
  high, low = np.asarray(multihost_utils.process_allgather(halves)).astype(np.int64).sum(0)
  return (high << 31) + low


def gather(data: bytes) -> list[bytes]:
  """What each process gives, in all processes, each of which must ask."""
  if jax.process_count() == 1:
    return [data]
  lengths = multihost_utils.process_allgather(np.array([len(data)])).ravel().tolist()
  padded = np.frombuffer(data.ljust(max(lengths), b"\0"), np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
  """Leaves it to JAX to end this process where a step failed because another one was lost.

  JAX knows which, when it has had no sign of life from it for `HEARTBEAT_SECONDS`. Within another
  such block, only this one waits for that.
  """
  try:
    yield
  except Exception as error:
    waited = getattr(error, "jseg_waited", False)
    if jax.process_count() > 1 and not waited and _is_of_others(error):
      time.sleep(2 * HEARTBEAT_SECONDS)
      setattr(error, "jseg_waited", True)  # noqa: B010, no error has it by its type
    raise


def _is_of_others(error: Exception) -> bool:
  """Whether an error may mean that another process was lost."""
  if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
    return True
  return any(word in str(error) for word in ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE", "arrier"))


def _broadcast(text: str) -> str:
  """Returns the text of process 0 in all processes."""
  with lost_processes():
    return _text(multihost_utils.broadcast_one_to_all(_bytes(text)))


def _gather(text: str) -> list[str]:
  """Returns the texts of all processes in all processes."""
  with lost_processes():
    return [_text(row) for row in multihost_utils.process_allgather(_bytes(text))]


def _bytes(text: str) -> np.ndarray:
  encoded = text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
  return np.frombuffer(encoded, np.uint8)


def _text(sent: object) -> str:
  return np.asarray(sent).tobytes().rstrip(b"\0").decode(errors="replace")
