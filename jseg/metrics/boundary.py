"""Boundary IoU: how well outlines are met."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from jseg.metrics.numbers import mean_of_present, none_if_nan
from jseg.types import IGNORE, InputError, Json


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
    ratio: d over the diagonal of the image.
  """

  intersection: np.ndarray
  union: np.ndarray
  ratio: float

  @classmethod
  def empty(cls, num_classes: int, ratio: float = 0.02) -> "BoundaryState":
    """Nothing counted yet."""
    return cls(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), ratio)

  @classmethod
  def create(cls, names: Sequence[str], argument: str) -> "BoundaryState":
    """Returns a state that has seen nothing.

    Args:
      names: names of the classes.
      argument: must be empty.

    Raises:
      InputError: there is an argument.
    """
    if argument:
      raise InputError(f"boundary: it takes no argument, but got {argument!r}; leave it out")
    return cls.empty(len(names))

  def update(self, prediction: np.ndarray, label: np.ndarray) -> "BoundaryState":
    """Adds one image.

    Args:
      prediction: int [h w], each in [0, k).
      label: int [h w], each in [0, k) or IGNORE.
    """
    reach = max(1, round(self.ratio * float(np.hypot(*label.shape))))
    truth = label.astype(np.uint8)
    predicted = np.where(truth == IGNORE, IGNORE, prediction).astype(np.uint8)
    in_truth, in_predicted = _band(truth, reach), _band(predicted, reach)
    both, one, other = (
      np.bincount(pixels, minlength=len(self.union))
      for pixels in (
        truth[in_truth & in_predicted & (truth == predicted)],
        truth[in_truth],
        predicted[in_predicted],
      )
    )
    return BoundaryState(self.intersection + both, self.union + one + other - both, self.ratio)

  def merge(self, other: "BoundaryState") -> "BoundaryState":
    """Adds what another state of the same ratio has counted."""
    return BoundaryState(
      self.intersection + other.intersection, self.union + other.union, self.ratio
    )

  def iou(self) -> np.ndarray:
    """Returns float64 [k], NaN for a class that is neither true nor predicted anywhere."""
    with np.errstate(invalid="ignore"):
      return self.intersection / self.union

  def compute(self, names: Sequence[str]) -> Json:
    """Returns `boundary_miou`, the mean over the classes that aren't absent, and `boundary_iou`.

    Args:
      names: names of the classes, the keys of `boundary_iou`.
    """
    iou = self.iou()
    by_class = dict(zip(names, map(none_if_nan, iou), strict=True))
    return {"boundary_miou": none_if_nan(mean_of_present(iou)), "boundary_iou": by_class}


def _band(classes: np.ndarray, reach: int) -> np.ndarray:
  """Bool [h w]: not void, and another class, void or the image's border within `reach` pixels."""
  # A pixel survives the erosion of its class's mask where its whole window is of one class: one
  # minimum and one maximum serve all classes.
  window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
  padded = np.pad(classes, 1, constant_values=IGNORE)
  mixed = cv2.erode(padded, window) != cv2.dilate(padded, window)
  return mixed[1:-1, 1:-1] & (classes != IGNORE)
