"""Masks in the colors of their classes, over images and in legends."""

import functools
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from jseg.arithmetic import strips
from jseg.console import one_line
from jseg.metrics.numbers import percent
from jseg.types import IGNORE, Arguments

VOID_COLOR = (224, 224, 224)

ALPHA = 0.55
"""Opacity of classes' colors over an image."""

PNG: Arguments = {"compress_level": 1, "compress_type": zlib.Z_RLE}
"""Pillow's settings for what is drawn: a third of the time of its own, and no larger."""

_LEGEND_WIDTH, _LINE, _TEXT_LEFT = 408, 34, 58  # pixels


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
  return table.take(mask, 0, mode="clip")  # an index of bytes needs no check, which takes longest


def overlay(
  image: np.ndarray, mask: np.ndarray, palette: np.ndarray, alpha: float = ALPHA
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
    shown = np.ascontiguousarray(np.broadcast_to(image[rows], result[rows].shape))
    cv2.addWeighted(shown, 1 - alpha, colorize(mask[rows], palette), alpha, 0, result[rows])
    void = mask[rows] == IGNORE
    result[rows][void] = shown[void]
  return result


def legend(shares: Mapping[str, float], palette: np.ndarray) -> Image.Image:
  """A picture of class colors, names and shares of one image, the largest first."""
  entries = sorted(
    ((share, name, color) for (name, share), color in zip(shares.items(), palette, strict=True)),
    key=lambda entry: -entry[0],
  )
  # Drawn by hand: Matplotlib takes longer for it than a small network for the image.
  lines = [
    (f"{one_line(name)}  {percent(share)}", tuple(color.tolist()))
    for share, name, color in entries
    if share > 0
  ]
  font = _font()
  width = max([_LEGEND_WIDTH, *(_TEXT_LEFT + round(font.getlength(t)) + 12 for t, _ in lines)])
  picture = Image.new("RGB", (width, _LINE * len(lines) + 24), "white")
  pen = ImageDraw.Draw(picture)
  for number, (text, color) in enumerate(lines):
    middle = 12 + _LINE * number + _LINE // 2
    pen.rectangle((12, middle - 7, 46, middle + 7), color, "gray")
    pen.text((_TEXT_LEFT, middle), text, "black", font, anchor="lm")
  return picture


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
  """Matplotlib's font, which has more of the world's letters than Pillow's."""
  return ImageFont.truetype(
    pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 17
  )


def patches(palette: Iterable[Sequence[int] | np.ndarray]) -> list[Patch]:
  """Returns a patch of each color, for legends."""
  return [Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="gray") for r, g, b in palette]
