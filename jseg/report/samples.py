"""Samples: image, truth and prediction side by side, as a PNG and in a terminal."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

from jseg.arithmetic import cdiv
from jseg.report.figure import DPI, make_figure, plain, save_figure
from jseg.report.overlay import patches

_CELL = (240, 384)  # pixels, bounds of the longest side of a picture


def save_samples(
  rows: Sequence[Sequence[np.ndarray]],
  legend: Sequence[tuple[str, Sequence[int]]],
  path: pathlib.Path,
  title: str,
  captions: Sequence[str] = (),
) -> None:
  """Draws image | truth | prediction, one sample per row, with a legend.

  Args:
    rows: pictures uint8 [h w 3], three per sample; the first one's height and width shape the grid.
    legend: name and color of each class; empty: there is none.
    path: PNG to write.
    title: heading.
    captions: text below the image of each sample; empty: there is none.
  """
  cell = min(max(_CELL[0], *rows[0][0].shape[:2]), _CELL[1])
  figure = _triples(rows, title, captions, cell=cell / DPI)
  _add_legend(figure, legend)
  save_figure(figure, path)


def save_previews(
  pictures: Sequence[np.ndarray], legend: Sequence[tuple[str, Sequence[int]]], path: pathlib.Path
) -> None:
  """Draws pictures in a grid, with a legend.

  Args:
    pictures: uint8 [h w 3], at least one; the first one's height and width shape the grid.
    legend: name and color of each class; empty: there is none.
    path: picture to write.
  """
  columns = math.ceil(math.sqrt(len(pictures)))
  lines = cdiv(len(pictures), columns)
  height, width = pictures[0].shape[:2]
  cell = min(max(_CELL[0], height, width), _CELL[1]) / DPI / max(height, width)
  figure = make_figure(cell * columns * width, cell * lines * height + 0.6)
  for axes in figure.subplots(lines, columns, squeeze=False).flat:
    axes.set_axis_off()
  for axes, picture in zip(figure.axes, pictures, strict=False):
    axes.imshow(picture, interpolation="nearest")
  _add_legend(figure, legend)
  save_figure(figure, path)


def _add_legend(figure: Figure, legend: Sequence[tuple[str, Sequence[int]]]) -> None:
  if legend:
    figure.legend(
      patches([color for _, color in legend]),
      [plain(name) for name, _ in legend],
      loc="outside lower center",
      ncols=min(len(legend), 8),
      fontsize=9,
      frameon=False,
    )


def _triples(
  rows: Sequence[Sequence[np.ndarray]], title: str, captions: Sequence[str], cell: float
) -> Figure:
  """A grid of image | truth | prediction, in two columns where there are many.

  Args:
    rows: the pictures, uint8 [h w 3]; the first one's height and width shape the grid.
    title: heading.
    captions: text below the image of each row, or none.
    cell: longest side of a picture in inches.
  """
  lines = cdiv(len(rows), 2) if len(rows) > 3 else len(rows)
  columns = 3 * cdiv(len(rows), max(lines, 1))
  height, width = rows[0][0].shape[:2]
  longest = max(height, width)
  tall = cell * lines * height / longest + 1.0 + (0.2 * lines if captions else 0)
  figure = make_figure(cell * columns * width / longest, tall)
  grid = figure.subplots(lines, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for number, pictures in enumerate(rows):
    row, column = number % lines, 3 * (number // lines)
    for offset, (picture, heading) in enumerate(
      zip(pictures, ("image", "truth", "prediction"), strict=True)
    ):
      axes = grid[row, column + offset]
      axes.imshow(picture, interpolation="nearest")
      if row == 0:
        axes.set_title(heading, fontsize=10)
    if captions:
      first = grid[row, column]
      first.text(0, -0.02, captions[number], transform=first.transAxes, va="top", fontsize=8)
  figure.suptitle(title, fontsize=11)
  return figure


def terminal_pictures(rows: Sequence[Sequence[np.ndarray]], width: int) -> Text:
  """Rows of three pictures as text: two pixels per character, one above the other.

  Args:
    rows: pictures uint8 [h w 3] or [h w 1].
    width: characters in a line.
  """
  strips = []
  for image, *others in rows:
    parts = (np.broadcast_to(image, (*image.shape[:2], 3)), *others)
    side = width // 3 - 1
    height = max(2, round(side * image.shape[0] / image.shape[1]) // 2 * 2)
    small = [Image.fromarray(part).resize((side, height), Image.Resampling.BOX) for part in parts]
    strips.append(np.concatenate([np.asarray(part) for part in small], 1))
  text = Text()
  for strip in strips:
    for top, bottom in zip(strip[::2], strip[1::2], strict=True):
      for upper, lower in zip(top, bottom, strict=True):
        text.append("\u2580", Style(color=_color(upper), bgcolor=_color(lower)))
      text.append("\n")
  return text


def _color(rgb: np.ndarray) -> Color:
  return Color.from_rgb(*(int(value) for value in rgb))
