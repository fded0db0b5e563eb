"""Metrics of classes that may overlap: each class is counted by itself."""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jseg.metrics.images import LEVEL, RESAMPLES, ImageScores, bootstrap_miou, image_scores
from jseg.metrics.numbers import mean_of_present, none_if_nan, percent, plain
from jseg.types import Array, Json

_MEANS = ("miou", "mdice", "macc", "mprecision")


def overlap_counts(prediction: Array | np.ndarray, truth: Array | np.ndarray) -> Array:
  """Counts pixels that are right, wrongly found, and missed, class by class.

  Args:
    prediction: bool [... k].
    truth: int [... k], 1 where a pixel is of a class, 0 where it isn't; all else isn't counted.

  Returns:
    int32 [3 k]: true positives, false positives, false negatives.
  """
  axes = tuple(range(truth.ndim - 1))
  found = prediction & (truth == 1), prediction & (truth == 0), ~prediction & (truth == 1)
  return jnp.stack([pixels.sum(axes, dtype=jnp.int32) for pixels in found])


@dataclasses.dataclass(frozen=True)
class OverlapScores:
  """Metrics of one split whose classes may overlap, from what was counted in each image.

  All are over the pixels of the split, and NaN where there is nothing to divide by: `iou` and
  `dice` of a class that is neither there nor predicted, `accuracy` of one that isn't there,
  `precision` of one that isn't predicted. The means leave such classes out.

  Attributes:
    counts: int64 [n 3 k], `overlap_counts` of each image.
  """

  counts: np.ndarray

  @functools.cached_property
  def _sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, wrong, missed = self.counts.sum(0).astype(np.float64)
    return right, wrong, missed

  @property
  def iou(self) -> np.ndarray:
    """Intersection / union of each class, float64 [k]."""
    right, wrong, missed = self._sums
    return _ratio(right, right + wrong + missed)

  @property
  def dice(self) -> np.ndarray:
    """2 intersection / (true pixels + predicted pixels) of each class, float64 [k]."""
    right, wrong, missed = self._sums
    return _ratio(2 * right, 2 * right + wrong + missed)

  @property
  def accuracy(self) -> np.ndarray:
    """Share of each class's true pixels that were found, its recall, float64 [k]."""
    return _ratio(self._sums[0], self._sums[0] + self._sums[2])

  @property
  def precision(self) -> np.ndarray:
    """Share of each class's predicted pixels that are right, float64 [k]."""
    return _ratio(self._sums[0], self._sums[0] + self._sums[1])

  @property
  def pixels(self) -> np.ndarray:
    """True pixels of each class, int64 [k]."""
    return np.asarray(self.counts[:, 0].sum(0) + self.counts[:, 2].sum(0))

  @property
  def primary(self) -> float:
    """Mean IoU, which selects the best checkpoint."""
    return mean_of_present(self.iou)

  @property
  def images(self) -> ImageScores:
    """The images one by one."""
    return image_scores(self.counts)

  @functools.cached_property
  def interval(self) -> tuple[float, float] | None:
    """Bounds of the mean IoU over images of the same kind; see `bootstrap_miou`."""
    return bootstrap_miou(self.counts)

  def summary(self) -> dict[str, float]:
    """Returns the means over the classes by name."""
    columns = (self.iou, self.dice, self.accuracy, self.precision)
    return dict(zip(_MEANS, map(mean_of_present, columns), strict=True))

  def to_dict(self, names: Sequence[str]) -> Json:
    """Plain numbers for JSON: the means and `per_class`, with None for absent classes."""
    columns = {
      "iou": self.iou,
      "dice": self.dice,
      "accuracy": self.accuracy,
      "precision": self.precision,
    }
    per_class = {
      name: {
        **{key: none_if_nan(column[i]) for key, column in columns.items()},
        "pixels": int(self.pixels[i]),
      }
      for i, name in enumerate(names)
    }
    result: Json = {**plain(self.summary()), "per_class": per_class}
    if self.interval is not None:
      bounds = {"low": self.interval[0], "high": self.interval[1]}
      result["miou_interval"] = bounds | {"level": LEVEL, "resamples": RESAMPLES}
    return result

  def table(self, names: Sequence[str], title: str) -> Table:
    """Returns IoU, Dice, recall and precision per class, with the means below.

    Args:
      names: names of the classes.
      title: heading.
    """
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("class", "mean")
    columns = (self.iou, self.dice, self.accuracy, self.precision)
    heads = zip(("IoU", "Dice", "recall", "precision"), columns, strict=True)
    for head, column in heads:
      table.add_column(head, percent(mean_of_present(column)), justify="right")
    table.add_column("pixels", "", justify="right")
    for i, name in enumerate(names):
      table.add_row(name, *(percent(column[i]) for column in columns), f"{self.pixels[i]:,}")
    if self.interval is not None:
      low, high = map(percent, self.interval)
      table.caption = f"mIoU over other images of the kind {low} to {high} ({100 * LEVEL:.0f} %)"
    return table


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  with np.errstate(invalid="ignore"):
    return part / whole
