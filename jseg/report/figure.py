"""Figures of matplotlib without its global state."""

import io
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jseg.console import one_line
from jseg.outputs import write_bytes

DPI = 120


def plain(name: str) -> str:
  """Returns a name as Matplotlib is to be given it: without mathematics between dollars."""
  return one_line(name).replace("$", r"\$")


def make_figure(width: float, height: float) -> Figure:
  """Returns a figure of this size in inches."""
  # Not through pyplot, which keeps every figure in a global list.
  return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_figure(figure: Figure, path: pathlib.Path) -> None:
  """Writes a figure as PNG, as a whole or not at all. Raises `jseg.outputs.WriteError`."""
  png = io.BytesIO()
  # Figure.savefig draws everything twice to find the layout, which drawing once finds as well.
  FigureCanvasAgg(figure).print_png(png)
  write_bytes(path, png.getvalue())
