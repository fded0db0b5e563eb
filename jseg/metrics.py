"""Measures of semantic segmentation over a whole split: exact counts first, one division last.

Most come from one confusion matrix. It is counted on the device in int32, one batch at a time, and
added up on the host in int64: float32 stops counting at 2^24 pixels, which is 100 images. Boundary
IoU and the Rand score need whole images at their own size and are counted on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
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


def host_confusion(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
  """`confusion`, int64 [k k], of one image on the host: no program for each size."""
  valid = label != IGNORE
  pairs = label[valid].astype(np.int64) * num_classes + prediction[valid]
  return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Measures of one split; all but `pixels` and `matrix` are fractions in [0, 1].

  `iou`, `dice` and `accuracy` are NaN for a class that is absent: for `iou` and `dice` neither in
  the truth nor predicted anywhere in the split, for `accuracy` not in the truth. The means leave
  absent classes out, as the field does (Long et al. 2015 section 5; mmsegmentation; torchmetrics);
  a class that is predicted but never true counts as IoU and Dice 0.

  Attributes:
    miou: mean over the classes of intersection / union.
    mdice: mean over the classes of 2 intersection / (true pixels + predicted pixels); as everything
      here over the split, not the mean over images that some papers report.
    macc: mean over the classes of the share of its true pixels that were found.
    pixel_accuracy: share of the valid pixels that are right.
    fwiou: IoU weighted by each class's share of the true pixels.
    iou: float64 [k].
    dice: float64 [k].
    accuracy: float64 [k].
    pixels: int64 [k], true pixels of each class.
    matrix: int64 [k k], rows are the truth, columns the prediction.
  """

  miou: float
  mdice: float
  macc: float
  pixel_accuracy: float
  fwiou: float
  iou: np.ndarray
  dice: np.ndarray
  accuracy: np.ndarray
  pixels: np.ndarray
  matrix: np.ndarray

  def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
    """Plain numbers for JSON: the five means and `per_class`, with None for absent classes."""
    columns = (names, self.iou, self.dice, self.accuracy, self.pixels)
    per_class = {
      name: {
        "iou": none_if_nan(iou),
        "dice": none_if_nan(dice),
        "accuracy": none_if_nan(accuracy),
        "pixels": int(pixels),
      }
      for name, iou, dice, accuracy, pixels in zip(*columns, strict=True)
    }
    keys = ("miou", "mdice", "macc", "pixel_accuracy", "fwiou")
    return {key: none_if_nan(getattr(self, key)) for key in keys} | {"per_class": per_class}


def none_if_nan(value: float) -> float | None:
  """JSON has no NaN."""
  return None if np.isnan(value) else float(value)


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
      iou, dice, accuracy = hits / union, 2 * hits / (union + hits), hits / truth
      share, right = truth / truth.sum(), hits.sum() / truth.sum()
    present = union > 0
    return Scores(
      miou=_mean(iou),
      mdice=_mean(dice),
      macc=_mean(accuracy),
      pixel_accuracy=float(right),
      fwiou=float((share[present] * iou[present]).sum()) if truth.sum() else float("nan"),
      iou=iou,
      dice=dice,
      accuracy=accuracy,
      pixels=self.matrix.sum(1),
      matrix=self.matrix,
    )


@dataclasses.dataclass(frozen=True)
class BoundaryScores:
  """Boundary IoU of one split, fractions in [0, 1].

  Attributes:
    miou: mean over the classes that aren't absent.
    iou: float64 [k], NaN for a class that is neither true nor predicted anywhere.
  """

  miou: float
  iou: np.ndarray


@dataclasses.dataclass(frozen=True)
class BoundaryState:
  """Running counts of Boundary IoU: `empty`, `update`, `merge`, `compute`. Never changed in place.

  Cheng et al. 2021, arXiv:2103.16562: the IoU of two bands, the pixels of the true and of the
  predicted region that are within d of their region's own contour, where d is a share of the
  image's diagonal, at least 1 pixel. As in its code, distance is to the nearest pixel outside of
  the region, the larger of rows and columns, and the image's border is a contour. Made for single
  objects; here a class's region in an image is one object, and intersections and unions are summed
  over the split.

  Void belongs to no region of either side, so that regions end there and the prediction under it
  doesn't matter.

  Attributes:
    intersection: int64 [k].
    union: int64 [k].
    ratio: d / diagonal of the image.
  """

  intersection: np.ndarray
  union: np.ndarray
  ratio: float

  @classmethod
  def empty(cls, num_classes: int, ratio: float = 0.02) -> "BoundaryState":
    """Nothing counted yet."""
    return cls(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), ratio)

  def update(self, prediction: np.ndarray, label: np.ndarray) -> "BoundaryState":
    """Adds one image.

    Args:
      prediction: int [h w], each in [0, k).
      label: int [h w], each in [0, k) or IGNORE.
    """
    reach = max(1, round(self.ratio * float(np.hypot(*label.shape))))
    truth = label.astype(np.uint8)
    guess = np.where(truth == IGNORE, IGNORE, prediction).astype(np.uint8)
    in_truth, in_guess = _band(truth, reach), _band(guess, reach)
    both, one, other = (
      np.bincount(pixels, minlength=len(self.union))
      for pixels in (
        truth[in_truth & in_guess & (truth == guess)],
        truth[in_truth],
        guess[in_guess],
      )
    )
    return BoundaryState(self.intersection + both, self.union + one + other - both, self.ratio)

  def merge(self, other: "BoundaryState") -> "BoundaryState":
    """Adds what another state of the same ratio has counted."""
    return BoundaryState(
      self.intersection + other.intersection, self.union + other.union, self.ratio
    )

  def compute(self) -> BoundaryScores:
    """The measure. NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
      iou = self.intersection / self.union
    return BoundaryScores(miou=_mean(iou), iou=iou)


def _band(classes: np.ndarray, reach: int) -> np.ndarray:
  """Bool [h w]: not void, and another class, void or the image's border within `reach` pixels."""
  # A pixel survives the erosion of its class's mask where its whole window is of one class: one
  # minimum and one maximum serve all classes.
  window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
  padded = np.pad(classes, 1, constant_values=IGNORE)
  mixed = cv2.erode(padded, window) != cv2.dilate(padded, window)
  return mixed[1:-1, 1:-1] & (classes != IGNORE)


def rand_score(
  prediction: np.ndarray, label: np.ndarray, foreground: int, *, alpha: float = 0.5
) -> float:
  """Foreground-restricted Rand score V^Rand of one image, 1 at best.

  Arganda-Carreras et al. 2015 (doi:10.3389/fnana.2015.00142, equation 3), the measure of ISBI 2012:
  sum p_ij^2 / (alpha sum s_i^2 + (1 - alpha) sum t_j^2), where p_ij is the share of pixels in
  segment i of the prediction and segment j of the truth, s and t its sums. Only the truth's
  foreground counts. Segments are connected components, by 4 neighbours as in the organisers' code:
  with 8, cells would leak into one another through a membrane one pixel wide that runs diagonally.
  Where the prediction isn't foreground inside of a true cell, each pixel is a segment of its own,
  again as in that code (Fiji's RandError; scikit-image's adapted_rand_error makes them one).

  The challenge takes the best over thresholds of the membrane's probability, and thins the
  prediction's borders first in the ranking's V^Rand(thinned); this function does neither.

  Args:
    prediction: int or bool [h w].
    label: int or bool [h w]; IGNORE is foreground for neither side.
    foreground: class of the cells.
    alpha: .5 is the F-score; 0 the split score (share of the truth's pairs of pixels that stay
      together), 1 the merge score (share of the prediction's pairs that belong together).

  Returns:
    The score; NaN if the truth has no foreground.
  """
  inside = label == foreground
  if not inside.any():
    return float("nan")
  truth, guess = (
    cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1][inside].astype(np.int64)
    for mask in (inside, (prediction == foreground) & (label != IGNORE))
  )
  guess = np.where(guess == 0, guess.max() + 1 + np.arange(guess.size), guess)
  together = _pairs(truth * (guess.max() + 1) + guess)
  return together / (alpha * _pairs(guess) + (1 - alpha) * _pairs(truth))


def _pairs(segments: np.ndarray) -> int:
  """Number of ordered pairs of pixels, each with itself too, that share a segment."""
  return int(np.square(np.unique(segments, return_counts=True)[1].astype(np.int64)).sum())


def _mean(values: np.ndarray) -> float:
  present = values[~np.isnan(values)]
  return float(present.mean()) if present.size else float("nan")
