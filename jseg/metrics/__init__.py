"""Metrics of a whole split, at the images' own size.

The confusion matrix and average precision come with a task. Metrics of whole images are asked for
by name; to add one: a file here, and a line in the table below.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np

from jseg.lookup import lookup
from jseg.metrics.average_precision import (
  AveragePrecisionState,
  InstanceScores,
  Precisions,
  coco_annotations,
  coco_results,
)
from jseg.metrics.boundary import BoundaryState
from jseg.metrics.calibration import Calibration, binned, host_binned
from jseg.metrics.confusion_matrix import ConfusionState, SemanticScores, confusion, host_confusion
from jseg.metrics.images import ImageScores, outcomes
from jseg.metrics.numbers import none_if_nan, percent
from jseg.metrics.rand import RandState, rand_score

__all__ = [
  "IMAGE_METRICS",
  "AveragePrecisionState",
  "BoundaryState",
  "Calibration",
  "ConfusionState",
  "ImageMetric",
  "ImageScores",
  "InstanceScores",
  "Precisions",
  "RandState",
  "SemanticScores",
  "binned",
  "coco_annotations",
  "coco_results",
  "confusion",
  "create",
  "host_binned",
  "host_confusion",
  "none_if_nan",
  "outcomes",
  "percent",
  "rand_score",
]


class ImageMetric(Protocol):
  """A metric of whole images, as a running state that is never changed in place."""

  def update(self, prediction: np.ndarray, label: np.ndarray) -> "ImageMetric":
    """Adds one image.

    Args:
      prediction: int [h w], each in [0, k).
      label: int [h w], each in [0, k) or IGNORE.
    """

  def merge(self, other: Self) -> "ImageMetric":
    """Adds what another state of the same metric has seen."""

  def compute(self, names: Sequence[str]) -> dict[str, Any]:
    """Returns plain values by name, given the names of the classes."""


IMAGE_METRICS: dict[str, str] = {
  "boundary": "jseg.metrics.boundary:BoundaryState.create",
  "rand": "jseg.metrics.rand:RandState.empty",
}
"""`(names of the classes, argument) -> ImageMetric` by name, as "module:function"."""


def create(spec: str, names: Sequence[str]) -> ImageMetric:
  """Makes a metric of whole images.

  Args:
    spec: a name in `IMAGE_METRICS`, or "package.module:name" of your own function
      `(names, argument) -> metric`; with an argument as in "rand=cell", the class whose connected
      parts are objects.
    names: names of the classes.

  Raises:
    InputError: there is no such metric, or its argument is impossible.
  """
  name, _, argument = spec.partition("=")
  return lookup("metrics:", name, IMAGE_METRICS)(names, argument)
