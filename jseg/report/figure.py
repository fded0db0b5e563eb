"""Figures of matplotlib without its global state."""

from matplotlib.figure import Figure

DPI = 120


def make_figure(width: float, height: float) -> Figure:
  """Returns a figure of this size in inches."""
  # Not through pyplot, which keeps every figure in a global list.
  return Figure(figsize=(width, height), dpi=DPI, layout="constrained")
