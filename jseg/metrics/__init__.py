"""Metrics of a whole split, at the images' own size.

The confusion matrix and average precision come with a task. Metrics of whole images are asked for
by name; to add one: a file here, and a line in the table below.
"""

from collections.abc import Sequence
from typing import Protocol, Self

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
from jseg.metrics.overlaps import OverlapScores, overlap_counts
from jseg.metrics.rand import RandState, rand_score
from jseg.types import InputError, Json

__all__ = [
  "IMAGE_METRICS",
  "VOLUME_METRICS",
  "AveragePrecisionState",
  "BoundaryState",
  "Calibration",
  "ConfusionState",
  "ImageMetric",
  "ImageScores",
  "InstanceScores",
  "OverlapScores",
  "Precisions",
  "RandState",
  "SemanticScores",
  "VolumeMetric",
  "binned",
  "coco_annotations",
  "coco_results",
  "confusion",
  "create",
  "host_binned",
  "host_confusion",
  "none_if_nan",
  "outcomes",
  "overlap_counts",
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

  def compute(self, names: Sequence[str]) -> Json:
    """Returns plain values by name, given the names of the classes."""


class VolumeMetric(Protocol):
  """A metric of whole volumes, as a running state that is never changed in place."""

  def update(
    self, prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float]
  ) -> "VolumeMetric":
    """Adds one volume.

    Args:
      prediction: int [d h w], each in [0, k).
      label: int [d h w], each in [0, k) or IGNORE.
      spacing: millimeters between voxels along d, h and w.
    """

  def merge(self, other: Self) -> "VolumeMetric":
    """Adds what another state of the same metric has seen."""

  def compute(self, names: Sequence[str]) -> Json:
    """Returns plain values by name, given the names of the classes."""


IMAGE_METRICS: dict[str, str] = {
  "boundary": "jseg.metrics.boundary:BoundaryState.create",
  "rand": "jseg.metrics.rand:RandState.empty",
}
"""`(names of the classes, argument) -> ImageMetric` by name, as "module:function"."""

VOLUME_METRICS: dict[str, str] = {
  "surface": "jseg.metrics.surface:SurfaceState.create",
}
"""`(names of the classes, argument) -> VolumeMetric` by name, as "module:function"."""


def create(spec: str, names: Sequence[str], ndim: int = 2) -> "ImageMetric | VolumeMetric":
  """Makes an `ImageMetric`, or a `VolumeMetric`.

  Args:
    spec: a name in `IMAGE_METRICS` or `VOLUME_METRICS`, or "package.module:name" of your own
      function `(names, argument) -> metric`; with an argument as in "rand=cell", the class whose
      connected parts are objects.
    names: names of the classes.
    ndim: 2 for images, 3 for volumes.

  Raises:
    InputError: there is no such metric, or its argument is impossible.
  """
  name, _, argument = spec.partition("=")
  mine, others = (IMAGE_METRICS, VOLUME_METRICS)[:: 1 if ndim == 2 else -1]
  if name in others:
    kinds = {2: "images", 3: "volumes"}
    raise InputError(f"metrics: {name} is not for {kinds[ndim]}; choose from {', '.join(mine)}")
  return lookup("metrics:", name, mine)(names, argument)
