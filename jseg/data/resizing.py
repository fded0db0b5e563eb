"""Resizing row by row: images larger than memory, and scores that come in strips."""

import math
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from jseg.arithmetic import strips
from jseg.data.files.rows import LastRows, StoredImage


def resized(image: np.ndarray | StoredImage, size: Sequence[int]) -> np.ndarray | StoredImage:
  """An image at another size, whose rows are made when they are asked for.

  Means over areas where it becomes smaller, else linear between pixels: what `jseg.data.resize`
  gives, but for rounding (of integers, by one at the most).

  Args:
    image: uint8 or float32 [h w c].
    size: (h', w').
  """
  height, width, channels = image.shape
  if (height, width) == tuple(size):
    return image
  area = size[0] < height
  lines = _Lines(height, size[0], area=area)

  def read(first: int, stop: int) -> np.ndarray:
    made = np.empty((stop - first, size[1], channels), image.dtype)
    for part in strips((stop - first, max(width, size[1]))):
      low, high = lines.taken(rows := slice(first + part.start, first + part.stop))
      values = lines.mixed(_as_wide(image[low:high], size[1], area=area), low, rows)
      made[part] = values if made.dtype == np.float32 else np.floor(values + 0.5)
    return made

  return StoredImage((*size, channels), image.dtype, LastRows(read, size[0]))


def resize_strips(
  parts: Iterable[tuple[slice, np.ndarray]], shape: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[slice, np.ndarray]]:
  """Brings an image that comes in strips to another size, linearly.

  Args:
    parts: (rows of the image, float32 [rows w c]), in order.
    shape: (h, w) of the image.
    size: (h', w').

  Yields:
    (rows of the result, float32 [rows w' c]), in order, as soon as what they are made of is there.
  """
  if tuple(shape) == tuple(size):
    yield from parts
    return
  lines, start, done = _Lines(shape[0], size[0], area=False), 0, 0
  held: np.ndarray | None = None  # the rows from `start` on
  for rows, values in parts:
    wide = _as_wide(values, size[1], area=False)
    held = wide if held is None else np.concatenate([held, wide])
    ready = lines.made_of(rows.stop)
    for part in strips((ready - done, size[1])):
      made = slice(done + part.start, done + part.stop)
      yield made, lines.mixed(held, start, made)
    done = ready
    if done < size[0]:
      first = min(lines.taken(slice(done, done + 1))[0], rows.stop)
      start, held = first, held[first - start :]


class _Lines:
  """How the rows of an image are made of those of the same image at another height.

  Args:
    height: rows that there are.
    new: rows that are made.
    area: each is the mean of those that it covers; otherwise the nearest two are interpolated.
  """

  def __init__(self, height: int, new: int, *, area: bool):
    scale, place = height / new, np.arange(new)[:, None]
    if area:
      first = np.floor(place * scale)
      edges = first + np.arange(math.ceil(scale) + 2)
      covered = np.minimum(edges[:, 1:], (place + 1) * scale) - np.maximum(
        edges[:, :-1], place * scale
      )
      weights = covered.clip(0) / scale
    else:
      middle = (place + 0.5) * scale - 0.5
      first = np.floor(middle)
      weights = np.concatenate([first + 1 - middle, middle - first], 1)
    taps = np.arange(weights.shape[1])
    self._rows = (first.astype(int) + taps).clip(0, height - 1)
    self._weights = weights.astype(np.float32)

  def taken(self, made: slice) -> tuple[int, int]:
    """First and end of the rows that new ones are made of."""
    return int(self._rows[made].min()), int(self._rows[made].max()) + 1

  def made_of(self, count: int) -> int:
    """How many new rows are made of the first so many."""
    return int(np.searchsorted(self._rows[:, -1], count))

  def mixed(self, rows: np.ndarray, start: int, made: slice) -> np.ndarray:
    """New rows [n w c] of rows that begin at `start`."""
    shape = (-1, *[1] * (rows.ndim - 1))
    total: np.ndarray | None = None
    for index, weight in zip(self._rows[made].T, self._weights[made].T, strict=True):
      part = rows[index - start] * weight.reshape(shape)
      total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def _as_wide(rows: np.ndarray, width: int, *, area: bool) -> np.ndarray:
  """Rows [n w c] at another width, float32; as many as they were."""
  method = cv2.INTER_AREA if area else cv2.INTER_LINEAR
  # OpenCV drops the axis of a single channel.
  wide = cv2.resize(rows.astype(np.float32), (width, len(rows)), interpolation=method)
  return wide.reshape(len(rows), width, rows.shape[2])
