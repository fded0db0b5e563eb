"""The images of a split one by one: which fail, and how far the mean depends on which they are."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 50  # resamples that are drawn at a time
# What spreadsheets take for the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclasses.dataclass(frozen=True)
class ImageScores:
  """Numbers of each image of a split.

  Attributes:
    index: int64 [n], positions of the images in the split, ascending.
    columns: numbers by name, int64 or float64 [n]; NaN where there is none.
    key: name of the column that tells good images from bad ones; higher is better.
  """

  index: np.ndarray
  columns: Mapping[str, np.ndarray]
  key: str

  def worst(self, count: int) -> list[tuple[int, float]]:
    """Returns (position in the split, score) of the worst images, the worst first.

    Images without a score, in which nothing is to be found or was found, are none of them.
    """
    scores = self.columns[self.key]
    known = np.flatnonzero(~np.isnan(scores))
    order = known[np.argsort(scores[known], kind="stable")][:count]
    return [(int(self.index[i]), float(scores[i])) for i in order]

  def to_csv(self, names: Sequence[str]) -> str:
    """Returns a table of comma-separated values: `name` and the columns, a line for each image.

    Args:
      names: names of all images of the split, by their position. One that a spreadsheet would
        take for a formula gets an apostrophe in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *self.columns])
    for row, index in enumerate(self.index.tolist()):
      values = (column[row].item() for column in self.columns.values())
      writer.writerow([harmless_cell(names[index]), *map(_cell, values)])
    return text.getvalue()


def harmless_cell(text: str) -> str:
  """Returns text that no spreadsheet takes for a formula: if need be with an apostrophe before."""
  return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(value: float) -> str:
  if isinstance(value, int):
    return str(value)
  return "" if np.isnan(value) else f"{value:.6g}"


def outcomes(matrix: np.ndarray) -> np.ndarray:
  """Pixels of each class that are right, wrongly of it, and missed.

  Args:
    matrix: confusion matrix, int [k k], rows are the truth.

  Returns:
    int64 [3 k]: true positives, false positives, false negatives.
  """
  hits = np.diag(matrix)
  return np.stack([hits, matrix.sum(0) - hits, matrix.sum(1) - hits]).astype(np.int64)


def class_iou(counts: np.ndarray) -> np.ndarray:
  """IoU of each class; NaN where it is neither there nor predicted.

  Args:
    counts: int or float [... 3 k], as `outcomes` returns them, or sums of such.

  Returns:
    float64 [... k].
  """
  with np.errstate(invalid="ignore"):
    return counts[..., 0, :] / counts.sum(-2)


def mean_iou(counts: np.ndarray) -> np.ndarray:
  """Mean of `class_iou` over the classes that are there, or were predicted; NaN where none is.

  Args:
    counts: int or float [... 3 k], as `outcomes` returns them, or sums of such.

  Returns:
    float64 [...].
  """
  iou = class_iou(counts)
  present = ~np.isnan(iou)
  with np.errstate(invalid="ignore"):
    means: np.ndarray = np.where(present, iou, 0).sum(-1) / present.sum(-1)
  return means


def image_scores(counts: np.ndarray) -> ImageScores:
  """The numbers of each image of a split whose pixels have classes.

  Args:
    counts: int64 [n 3 k], `outcomes` of every image.

  Returns:
    Columns `pixels` (those that are not void), `miou` and, for each class i, `tp_i`, `fp_i` and
    `fn_i`.
  """
  columns = {"pixels": counts[:, 0].sum(-1) + counts[:, 2].sum(-1), "miou": mean_iou(counts)}
  for i in range(counts.shape[-1]):
    columns |= {f"{kind}_{i}": counts[:, j, i] for j, kind in enumerate(("tp", "fp", "fn"))}
  return ImageScores(np.arange(len(counts)), columns, "miou")


def bootstrap_miou(
  counts: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float] | None:
  """Interval of a split's mean IoU, by the bootstrap's percentiles (Efron 1979; 1981).

  Images are drawn with replacement, as many as there are, and their counts added up anew. It tells
  what other images of the same kind might have given; not what another training would.

  Args:
    counts: int64 [n 3 k], `outcomes` of every image.
    resamples: how many times they are drawn.
    level: share of the resamples that lies within.
    seed: seed of the draws.

  Returns:
    (low, high), or None of fewer than two images or where nothing was counted.
  """
  if len(counts) < 2 or not counts.any():
    return None
  drawn = np.concatenate([mean_iou(some) for some in _resampled(counts, resamples, seed)])
  return _middle(drawn, level)


def paired_intervals(
  first: np.ndarray,
  other: np.ndarray,
  resamples: int = RESAMPLES,
  level: float = LEVEL,
  seed: int = 0,
) -> list[tuple[float, float]]:
  """Intervals of the differences of IoU between two networks, by the same bootstrap.

  The same images are drawn for both, so that what makes an image hard for either cancels out.

  Args:
    first: int64 [n 3 k], `outcomes` of every image.
    other: those of another network on the same images, in the same order.
    resamples: how many times they are drawn.
    level: share of the resamples that lies within.
    seed: seed of the draws.

  Returns:
    (low, high) of each class, and of the mean IoU last; NaN where a class is absent, or of fewer
    than two images.
  """
  if len(first) < 2:
    return [(np.nan, np.nan)] * (first.shape[-1] + 1)
  drawn = []
  for some in _resampled(np.stack([first, other], 1), resamples, seed):
    both = np.concatenate([class_iou(some), mean_iou(some)[..., None]], -1)
    drawn.append(both[:, 1] - both[:, 0])
  return [_middle(column, level) for column in np.concatenate(drawn).T]


def _resampled(counts: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
  """Sums of counts [n ...] over images drawn with replacement, some resamples [r ...] at a time."""
  n, rng = len(counts), np.random.default_rng(seed)
  flat = counts.reshape(n, -1).astype(np.float64)
  for first in range(0, resamples, _CHUNK):
    times = rng.multinomial(n, np.full(n, 1 / n), min(_CHUNK, resamples - first))
    yield (times @ flat).reshape(-1, *counts.shape[1:])


def _middle(values: np.ndarray, level: float) -> tuple[float, float]:
  """Bounds of the middle share of the values that are numbers; NaN of none."""
  values, tails = values[~np.isnan(values)], (1 - level) / 2
  if not values.size:
    return np.nan, np.nan
  low, high = np.quantile(values, (tails, 1 - tails)).tolist()
  return low, high
