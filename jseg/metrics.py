"""Measures of semantic segmentation, all from one confusion matrix over the whole split.

Matrices are counted on the device in int32, one batch at a time, and added up on the host in int64:
float32 stops counting at 2^24 pixels, which is 100 images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jseg.types import IGNORE, Array

_EXACT = 1 << 24  # the integers that float32 holds exactly end here


def confusion(prediction: Array, label: Array, num_classes: int) -> Array:
  """Counts (truth, prediction) pairs over the valid pixels.

  Args:
    prediction: int [...], each in [0, k).
    label: int [...] of the same shape, each in [0, k) or IGNORE.
    num_classes: k.

  Returns:
    int32 [k k], rows are the truth, columns the prediction. Exact whatever the number of pixels.
  """
  label, prediction = label.reshape(-1), prediction.reshape(-1)
  classes = jnp.arange(num_classes)

  def count(label, prediction):
    # A product of one-hot matrices: an accelerator has no fast histogram, and IGNORE is no class.
    truth = (label[:, None] == classes[None]).astype(jnp.float32)
    guess = (prediction[:, None] == classes[None]).astype(jnp.float32)
    pairs = jnp.matmul(truth.T, guess, precision=jax.lax.Precision.HIGHEST)
    return pairs.astype(jnp.int32)

  chunks = max(1, -(-label.size // (_EXACT // 64)))
  padding = (0, -label.size % chunks)
  label = jnp.pad(label, padding, constant_values=IGNORE).reshape(chunks, -1)
  prediction = jnp.pad(prediction, padding).reshape(chunks, -1)
  if chunks == 1:
    return count(label[0], prediction[0])
  return jax.lax.map(lambda pair: count(*pair), (label, prediction)).sum(0)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Measures of one split; all but `pixels` and `matrix` are fractions in [0, 1].

  `iou` and `accuracy` are NaN for a class that is absent: for `iou` neither in the truth nor
  predicted anywhere in the split, for `accuracy` not in the truth. The means leave absent classes
  out, as the field does (Long et al. 2015 section 5; mmsegmentation; torchmetrics); a class that is
  predicted but never true counts as IoU 0.

  Attributes:
    miou: mean over the classes of intersection / union.
    macc: mean over the classes of the share of its true pixels that were found.
    pixel_accuracy: share of the valid pixels that are right.
    fwiou: IoU weighted by each class's share of the true pixels.
    iou: float64 [k].
    accuracy: float64 [k].
    pixels: int64 [k], true pixels of each class.
    matrix: int64 [k k], rows are the truth, columns the prediction.
  """

  miou: float
  macc: float
  pixel_accuracy: float
  fwiou: float
  iou: np.ndarray
  accuracy: np.ndarray
  pixels: np.ndarray
  matrix: np.ndarray

  def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
    """Plain numbers for JSON: the four means and `per_class`, with None for absent classes."""

    def plain(value: float) -> float | None:
      return None if np.isnan(value) else float(value)

    per_class = {
      name: {"iou": plain(iou), "accuracy": plain(accuracy), "pixels": int(pixels)}
      for name, iou, accuracy, pixels in zip(
        names, self.iou, self.accuracy, self.pixels, strict=True
      )
    }
    means = {key: plain(getattr(self, key)) for key in ("miou", "macc", "pixel_accuracy", "fwiou")}
    return {**means, "per_class": per_class}


@dataclasses.dataclass(frozen=True)
class ConfusionState:
  """A running confusion matrix: `empty`, `update`, `merge`, `compute`. Never changed in place."""

  matrix: np.ndarray

  @classmethod
  def empty(cls, num_classes: int) -> "ConfusionState":
    """Nothing counted yet."""
    return cls(np.zeros((num_classes, num_classes), np.int64))

  def update(self, counts: np.ndarray | Array) -> "ConfusionState":
    """Adds the int [k k] counts of one batch."""
    return ConfusionState(self.matrix + np.asarray(counts, np.int64))

  def merge(self, other: "ConfusionState") -> "ConfusionState":
    """Adds what another state has counted."""
    return ConfusionState(self.matrix + other.matrix)

  def compute(self) -> Scores:
    """The measures. NaN where nothing was counted."""
    hits = np.diag(self.matrix).astype(np.float64)
    truth = self.matrix.sum(1).astype(np.float64)
    union = truth + self.matrix.sum(0) - hits
    with np.errstate(invalid="ignore"):
      iou, accuracy = hits / union, hits / truth
      share, right = truth / truth.sum(), hits.sum() / truth.sum()
    present = union > 0
    return Scores(
      miou=_mean(iou),
      macc=_mean(accuracy),
      pixel_accuracy=float(right),
      fwiou=float((share[present] * iou[present]).sum()) if truth.sum() else float("nan"),
      iou=iou,
      accuracy=accuracy,
      pixels=self.matrix.sum(1),
      matrix=self.matrix,
    )


def _mean(values: np.ndarray) -> float:
  present = values[~np.isnan(values)]
  return float(present.mean()) if present.size else float("nan")
