"""The console: what is printed, and progress bars."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

CONSOLE = Console()

_T = TypeVar("_T")


def progress(items: Iterable[_T], description: str, total: int) -> Iterable[_T]:
  """Yields `items` behind a transient progress bar with ETA.

  Args:
    items: items to pass on.
    description: text before the bar.
    total: number of items.
  """
  return track(items, description, total=total, transient=True, console=CONSOLE)
