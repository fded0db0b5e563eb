"""What is printed: text as it is, on any terminal, and progress bars.

Names of classes and files are anything. All that is printed goes through here, so that none of
their characters is taken for markup, commands the terminal, or ends the program.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
  BarColumn,
  Progress,
  ProgressColumn,
  TaskID,
  TaskProgressColumn,
  TextColumn,
  TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from jseg.types import harmless

_T = TypeVar("_T")


def printable(text: str, encoding: str = "utf-8") -> str:
  """Returns text without what commands a terminal, or can't be encoded.

  Args:
    text: any text.
    encoding: the encoding it is going to be printed in.

  Returns:
    The text as `jseg.types.harmless` has it, and a question mark for each character that the
    encoding lacks.
  """
  return harmless(text).encode(encoding, "replace").decode(encoding)


def one_line(text: str) -> str:
  """Returns printable text without ends of lines, to be drawn in a picture."""
  return " ".join(printable(text).split())


class PlainConsole(Console):
  """Rich's console, but a string is printed as it is: style comes from arguments and `Text`.

  Args:
    stderr: whether it prints to the standard error.
  """

  def __init__(self, *, stderr: bool = False):
    super().__init__(stderr=stderr, markup=False, emoji=False)

  def render_str(self, text: str, **options: Any) -> Text:
    """Makes a `Text` of a string: of what the terminal can show, so that its width is right."""
    return super().render_str(printable(text, self.encoding), **options)

  def render(
    self, renderable: RenderableType, options: ConsoleOptions | None = None
  ) -> Iterable[Segment]:
    """Renders to segments whose text the terminal can show."""
    for segment in super().render(renderable, options):
      text = segment.text if segment.control else printable(segment.text, self.encoding)
      yield segment._replace(text=text)


CONSOLE = PlainConsole()
"""Results, on the standard output."""

ERRORS = PlainConsole(stderr=True)
"""What isn't a result, on the standard error."""


class _Bars(Progress):
  """Bars that are drawn as they move, and not by a thread of their own.

  Bars whose loop was left by an error end whenever garbage is collected. In such a thread that
  could be while it draws, and two sets of bars then waited for each other's locks for ever.
  """

  def __init__(self, *columns: ProgressColumn, **options: Any):
    super().__init__(*columns, auto_refresh=False, **options)
    self._drawn = -math.inf

  def move(self, task: TaskID, **changes: Any) -> None:
    """Takes a bar a step further, and draws all if that wasn't done a moment ago."""
    self.update(task, advance=1, **changes)
    if (now := time.monotonic()) - self._drawn >= _MOMENT:
      self._drawn = now
      self.refresh()


_shown: list[_Bars] = []  # bars on display, the last one on top
_PATIENCE = 2  # seconds without a sign
_MOMENT = 0.1  # seconds


def progress(
  items: Iterable[_T],
  description: str,
  total: int,
  console: Console = CONSOLE,
  *,
  transient: bool = True,
) -> Iterator[_T]:
  """Yields `items` behind a progress bar with ETA.

  Args:
    items: items to pass on.
    description: text before the bar.
    total: number of items.
    console: where the bar is shown.
    transient: whether it disappears at the end.
  """
  # A notebook without ipywidgets can't move a bar: Rich would warn instead, once for each.
  still = console.is_jupyter and importlib.util.find_spec("ipywidgets") is None
  columns = (
    TextColumn("[progress.description]{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TimeRemainingColumn(elapsed_when_finished=True),
  )
  with _Bars(*columns, console=console, transient=transient, disable=still) as bars:
    _shown.append(bars)
    try:
      task = bars.add_task(escape(description), total=total)
      for item in items:
        yield item
        bars.move(task)
    finally:
      _shown.remove(bars)


def part_progress(items: Iterable[_T], description: str, total: int) -> Generator[_T, None, None]:
  """Yields the parts of one item of `progress`, behind a second bar if they take long.

  Where no bar is shown, as in a call from Python, there is no second one either.

  Args:
    items: parts to pass on.
    description: text before the bar.
    total: number of parts.
  """
  if not _shown:
    yield from items
    return
  bars, started = _shown[-1], time.monotonic()
  task = bars.add_task(escape(description), total=total, visible=False)
  try:
    for item in items:
      yield item
      bars.move(task, visible=time.monotonic() - started >= _PATIENCE)
  finally:
    bars.remove_task(task)


def end(message: str) -> NoReturn:
  """Ends the program with exit status 1 and a message on the standard error."""
  sys.exit(f"error: {printable(message)}")
