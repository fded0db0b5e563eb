"""The images of a split one by one: which fail, and how far the mean depends on which they are."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

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


def mean_iou(counts: np.ndarray) -> np.ndarray:
  """Mean IoU over the classes that are there, or were predicted; NaN where none is.

  Args:
    counts: int or float [... 3 k], as `outcomes` returns them, or sums of such.

  Returns:
    float64 [...].
  """
  hits, union = counts[..., 0, :], counts.sum(-2)
  present = union > 0
  total = np.where(present, hits / np.maximum(union, 1), 0).sum(-1)
  with np.errstate(invalid="ignore"):
    return total / present.sum(-1)


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
  n = len(counts)
  if n < 2 or not counts.any():
    return None
  rng, flat = np.random.default_rng(seed), counts.reshape(n, -1).astype(np.float64)
  drawn = []
  for first in range(0, resamples, _CHUNK):
    times = rng.multinomial(n, np.full(n, 1 / n), min(_CHUNK, resamples - first))
    drawn.append(mean_iou((times @ flat).reshape(-1, *counts.shape[1:])))
  tails = (1 - level) / 2
  low, high = np.nanquantile(np.concatenate(drawn), (tails, 1 - tails)).tolist()
  return low, high
