"""Masks in the colors of their classes, over images and in legends."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch
from PIL import Image

from jseg.arithmetic import strips
from jseg.metrics.numbers import percent
from jseg.report.figure import make_figure, plain
from jseg.types import IGNORE

VOID_COLOR = (224, 224, 224)


def colorize(mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Turns class indices into colors.

  Args:
    mask: uint8 [h w], class indices; IGNORE is light gray.
    palette: uint8 [k 3], the color of each class.

  Returns:
    uint8 [h w 3].
  """
  table = np.full((256, 3), VOID_COLOR, np.uint8)
  table[: len(palette)] = palette
  table[IGNORE] = VOID_COLOR
  return table[mask]


def overlay(
  image: np.ndarray, mask: np.ndarray, palette: np.ndarray, alpha: float = 0.55
) -> np.ndarray:
  """The image under the colors of its classes.

  Args:
    image: uint8 [h w 3] or [h w 1].
    mask: uint8 [h w], class indices or IGNORE (left uncolored).
    palette: uint8 [k 3].
    alpha: opacity of the colors, in [0, 1].

  Returns:
    uint8 [h w 3].
  """
  result = np.empty((*mask.shape, 3), np.uint8)
  for rows in strips(mask.shape):
    opacity = np.where(mask[rows] == IGNORE, 0.0, alpha)[..., None]
    colors = colorize(mask[rows], palette)
    result[rows] = (image[rows] * (1 - opacity) + colors * opacity).round()
  return result


def legend(shares: Mapping[str, float], palette: np.ndarray) -> Image.Image:
  """A picture of class colors, names and shares of one image, the largest first."""
  entries = sorted(
    ((share, name, color) for (name, share), color in zip(shares.items(), palette, strict=True)),
    key=lambda entry: -entry[0],
  )
  entries = [entry for entry in entries if entry[0] > 0]
  figure = make_figure(3.4, 0.4 + 0.28 * len(entries))
  figure.legend(
    patches([color for _, _, color in entries]),
    [f"{plain(name)}  {percent(share)}" for share, name, _ in entries],
    loc="center left",
    frameon=False,
  )
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def patches(palette: Iterable[Sequence[int] | np.ndarray]) -> list[Patch]:
  """Returns a patch of each color, for legends."""
  return [Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="gray") for r, g, b in palette]
