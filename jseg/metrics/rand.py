"""The Rand score of the objects that a class's connected parts are."""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from jseg.types import IGNORE, InputError, Json


@dataclasses.dataclass(frozen=True)
class RandState:
  """Running mean of `rand_score` over the images that have any foreground. Never changed in place.

  Attributes:
    foreground: class whose connected parts are objects.
    scores: score of each image, NaN where the truth has no foreground.
  """

  foreground: int
  scores: tuple[float, ...] = ()

  @classmethod
  def empty(cls, names: Sequence[str], argument: str) -> "RandState":
    """Returns a state that has seen nothing.

    Args:
      names: names of the classes.
      argument: name of the foreground class.

    Raises:
      InputError: there is no such class.
    """
    if argument not in names:
      raise InputError(f"rand: there is no class {argument!r}; choose from {', '.join(names)}")
    return cls(list(names).index(argument))

  def update(self, prediction: np.ndarray, label: np.ndarray) -> "RandState":
    """Adds one image.

    Args:
      prediction: int [h w], each in [0, k).
      label: int [h w], each in [0, k) or IGNORE.
    """
    score = rand_score(prediction, label, self.foreground)
    return dataclasses.replace(self, scores=(*self.scores, score))

  def merge(self, other: "RandState") -> "RandState":
    """Adds what another state has seen."""
    return dataclasses.replace(self, scores=self.scores + other.scores)

  def compute(self, names: Sequence[str]) -> Json:
    """Returns `rand`, the mean over the images; None if none has any foreground."""
    del names
    known = [score for score in self.scores if not math.isnan(score)]
    return {"rand": sum(known) / len(known) if known else None}


def rand_score(
  prediction: np.ndarray, label: np.ndarray, foreground: int, *, alpha: float = 0.5
) -> float:
  """Foreground-restricted Rand score V^Rand of one image, 1 at best.

  Arganda-Carreras et al. 2015 (doi:10.3389/fnana.2015.00142, equation 3), the metric of ISBI 2012:
  sum p_ij^2 / (alpha sum s_i^2 + (1 - alpha) sum t_j^2), where p_ij is the share of pixels in
  segment i of the prediction and segment j of the truth, s and t its sums. Only the truth's
  foreground counts. Segments are connected components, by 4 neighbors as in the organizers' code:
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
  truth, predicted = (
    cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1][inside].astype(np.int64)
    for mask in (inside, (prediction == foreground) & (label != IGNORE))
  )
  predicted = np.where(predicted == 0, predicted.max() + 1 + np.arange(predicted.size), predicted)
  together = _pairs(truth * (predicted.max() + 1) + predicted)
  return together / (alpha * _pairs(predicted) + (1 - alpha) * _pairs(truth))


def _pairs(segments: np.ndarray) -> int:
  """Number of ordered pairs of pixels, each with itself too, that share a segment."""
  return int(np.square(np.unique(segments, return_counts=True)[1].astype(np.int64)).sum())
