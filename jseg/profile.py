"""Traces of a few training steps, for XProf, TensorBoard and Perfetto."""

import contextlib
import pathlib
from collections.abc import Iterator
from types import TracebackType

import jax

from jseg import hosts
from jseg.console import CONSOLE
from jseg.outputs import GO_ON, unwritable
from jseg.types import Tree

STEPS = 5
"""Steps that are traced unless another number is asked for."""

_SKIPPED = 2  # the first step compiles, the second meets what the first has left


class Trace:
  """A trace of some training steps; a context manager around the loop.

  Process 0 alone has one, of its own devices.

  Args:
    folder: where it is written.
    first: finished steps.
    count: steps to trace, from the third of the session on; 0 is none.

  Raises:
    WriteError: from any method, it can't be written.
  """

  def __init__(self, folder: pathlib.Path, first: int, count: int):
    self._folder = folder
    begin = first + _SKIPPED + 1
    self._steps = range(begin, begin + count if hosts.is_first() else begin)
    self._running = self._told = False
    self._number = first

  def __enter__(self) -> "Trace":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._running:
      self._stop()
    elif self._steps and error is None and not self._told:
      CONSOLE.print(
        f"! nothing is traced: the session ended before step {self._steps[0]}", style="yellow"
      )

  @contextlib.contextmanager
  def step(self, number: int) -> Iterator[None]:
    """Names what happens inside as a step, and begins the trace where it is the first."""
    self._number = number
    if self._steps and number == self._steps[0]:
      self._start()
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield

  def ends(self, number: int, results: Tree) -> None:
    """Ends the trace where a step is the last: waits for its results, and says where it is."""
    if self._running and number == self._steps[-1]:
      jax.block_until_ready(results)
      self._stop()

  def _start(self) -> None:
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
    except OSError as error:
      raise unwritable(self._folder, error, GO_ON) from None
    self._running = True

  def _stop(self) -> None:
    self._running, self._told = False, True
    try:
      jax.profiler.stop_trace()
    except OSError as error:
      raise unwritable(self._folder, error, GO_ON) from None
    newest = max(self._folder.glob("plugins/profile/*"), key=lambda path: path.name)
    CONSOLE.print(
      f"traced steps {self._steps[0]} to {self._number}. To open the trace:\n"
      f"  pip install xprof && xprof --logdir {self._folder}\n"
      f"  or https://ui.perfetto.dev with {newest / 'perfetto_trace.json.gz'}",
      soft_wrap=True,
      highlight=False,
    )
