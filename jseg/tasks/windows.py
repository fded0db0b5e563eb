"""Windows of an image or volume of any size, and how their scores become one map in strips."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jseg.arithmetic import strips

_SHARE = 1 / 8  # of a window is the deviation of its weights, as in nnU-Net


@dataclasses.dataclass(frozen=True)
class Window:
  """A part of an image that the network is shown.

  Attributes:
    index: indices of the image along each axis that it shows; fewer than the network takes where
      the image ends.
    place: part of the image that it decides, or has a share in.
    inner: the same part, within the window.
  """

  index: tuple[np.ndarray, ...]
  place: tuple[slice, ...]
  inner: tuple[slice, ...]


def overlapping(
  shape: Sequence[int], size: Sequence[int], overlap: float, grid: int
) -> list[Window]:
  """Windows that cover an image and overlap; sorted by their place.

  All begin on one grid, so that pooling and strides fall as they do on the whole image; the last
  ones reach beyond its end.

  Args:
    shape: spatial sizes of the image.
    size: spatial sizes of a window.
    overlap: share of a window that the next one shows too, in [0, 1).
    grid: pixels of the grid; windows that aren't larger than it have none.
  """
  axes = []
  for length, window in zip(shape, size, strict=True):
    step = max(1, int(window * (1 - overlap)))
    if window > grid:
      step = max(grid, step // grid * grid)
    firsts = [0]
    while firsts[-1] + window < length:
      firsts.append(firsts[-1] + step)
    axes.append([(first, min(first + window, length)) for first in firsts])
  return [
    Window(
      tuple(np.arange(first, end) for first, end in bounds),
      tuple(slice(first, end) for first, end in bounds),
      tuple(slice(0, end - first) for first, end in bounds),
    )
    for bounds in itertools.product(*axes)
  ]


def tiles(
  shape: Sequence[int], size: Sequence[int], margins: Sequence[int], grid: int
) -> list[Window]:
  """Windows that each decide their middle alone, and beyond the image show its mirror image.

  Args:
    shape: spatial sizes of the image.
    size: spatial sizes of a window.
    margins: pixels on both sides of each axis that are context alone.
    grid: pixels that tiles move by a multiple of, where they can.
  """
  axes = []
  for length, window, margin in zip(shape, size, margins, strict=True):
    step = (window - 2 * margin) // grid * grid or window - 2 * margin
    axes.append([(first, min(first + step, length)) for first in range(0, length, step)])
  return [
    Window(
      tuple(
        _mirrored(first - margin, window, length)
        for (first, _), margin, window, length in zip(bounds, margins, size, shape, strict=True)
      ),
      tuple(slice(first, end) for first, end in bounds),
      tuple(
        slice(margin, margin + end - first)
        for (first, end), margin in zip(bounds, margins, strict=True)
      ),
    )
    for bounds in itertools.product(*axes)
  ]


def gaussian_weights(size: Sequence[int]) -> np.ndarray:
  """Weights of a window's pixels: a Gaussian about its middle, above 0, float32 [...]."""
  axes = [np.exp(-0.5 * ((np.arange(n) + 0.5 - n / 2) / (n * _SHARE)) ** 2) for n in size]
  return functools.reduce(np.multiply.outer, axes).astype(np.float32)


def blend(
  scored: Iterable[tuple[Window, np.ndarray]], shape: Sequence[int], weights: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
  """Averages the scores of windows, and gives them away as soon as no further window adds to them.

  Memory is that of one row of windows, whatever the size of the image.

  Args:
    scored: windows sorted by their place, and their scores float32 [... k].
    shape: spatial sizes of the image.
    weights: float32 [...], weight of each pixel of a window.

  Yields:
    (rows of the image, scores float32 [rows ... k]), in order. The scores are the caller's.
  """
  start, sums, total = 0, np.zeros(0, np.float32), np.zeros(0, np.float32)
  for window, scores in scored:
    first, end = window.place[0].start, window.place[0].stop
    if first > start:
      done, rest = first - start, len(total) - (first - start)
      yield from _averaged(sums, total, start, done)
      # In place: a row of windows is what memory holds the most of.
      sums[:rest], total[:rest] = sums[done:], total[done:]
      sums[rest:], total[rest:] = 0, 0
      start = first
    if (missing := end - start - len(total)) > 0:
      sums = _longer(sums, (missing, *shape[1:], scores.shape[-1]))
      total = _longer(total, (missing, *shape[1:]))
    place = (slice(0, end - first), *window.place[1:])
    weight = weights[window.inner]
    sums[place] += scores[window.inner] * weight[..., None]
    total[place] += weight
  yield from _averaged(sums, total, start, shape[0] - start)


def mean_of_strips(
  streams: Sequence[Iterator[tuple[slice, np.ndarray]]],
) -> Iterator[tuple[slice, np.ndarray]]:
  """Averages images of one size that come in strips, whose rows end anywhere.

  Args:
    streams: of each image (rows, float32 [rows ...]), in order and to its end.

  Yields:
    (rows, their mean), in order.
  """
  if len(streams) == 1:
    yield from streams[0]
    return
  start, heads = 0, [next(stream) for stream in streams]
  while True:
    stop = min(rows.stop for rows, _ in heads)
    parts = [values[start - rows.start : stop - rows.start] for rows, values in heads]
    yield slice(start, stop), functools.reduce(np.add, parts) / len(parts)
    start = stop
    for i, (rows, _) in enumerate(heads):
      if rows.stop == stop:
        following = next(streams[i], None)
        if following is None:  # all end here
          return
        heads[i] = following


def _averaged(
  sums: np.ndarray, total: np.ndarray, start: int, count: int
) -> Iterator[tuple[slice, np.ndarray]]:
  """The first rows of what was added up, divided by their weights, in strips."""
  for rows in strips((count, *total.shape[1:])):
    yield slice(start + rows.start, start + rows.stop), sums[rows] / total[rows][..., None]


def _longer(array: np.ndarray, more: Sequence[int]) -> np.ndarray:
  new = np.zeros(more, np.float32)
  return np.concatenate([array, new]) if len(array) else new


def _mirrored(first: int, count: int, length: int) -> np.ndarray:
  """Indices of an axis from `first`, which beyond its ends run back as in a mirror."""
  period = max(1, 2 * (length - 1))
  index = np.arange(first, first + count) % period
  return np.minimum(index, period - index) if length > 1 else index
