"""Metrics from one confusion matrix: exact counts first, one division last.

The matrix is counted on the device in int32, one batch at a time, and added up on the host in
int64: float32 stops counting at 2^24 pixels, which is 100 images.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jseg.arithmetic import cdiv, strips
from jseg.metrics.calibration import Calibration
from jseg.metrics.images import LEVEL, RESAMPLES, ImageScores, bootstrap_miou, image_scores
from jseg.metrics.numbers import mean_of_present, none_if_nan, percent, plain
from jseg.types import IGNORE, Array, InputError, Json

_MEANS = ("miou", "mdice", "macc", "pixel_accuracy", "fwiou")


def confusion(prediction: Array, label: Array, num_classes: int, *, chunk: int = 1 << 18) -> Array:
  """Counts (truth, prediction) pairs over the valid pixels.

  Args:
    prediction: int [...], each in [0, k).
    label: int [...] of the same shape, each in [0, k) or IGNORE.
    num_classes: k.
    chunk: static; pixels that are counted together, up to the 2^24 that float32 counts exactly.

  Returns:
    int32 [k k], rows are the truth, columns the prediction. Exact whatever the number of pixels.

  Raises:
    InputError: a chunk that can't be counted exactly.
  """
  if not 0 < chunk <= 1 << 24:
    raise InputError(f"chunk: {chunk} must be from 1 to {1 << 24}, which float32 counts exactly")
  label, prediction = label.reshape(-1), prediction.reshape(-1)
  classes = jnp.arange(num_classes)

  def count(label: Array, prediction: Array) -> Array:
    # A product of one-hot matrices: an accelerator has no fast histogram, and IGNORE is no class.
    truth = (label[:, None] == classes[None]).astype(jnp.float32)
    predicted = (prediction[:, None] == classes[None]).astype(jnp.float32)
    pairs = jnp.matmul(truth.T, predicted, precision=jax.lax.Precision.HIGHEST)
    return pairs.astype(jnp.int32)

  chunks = max(1, cdiv(label.size, chunk))
  padding = (0, -label.size % chunks)
  label = jnp.pad(label, padding, constant_values=IGNORE).reshape(chunks, -1)
  prediction = jnp.pad(prediction, padding).reshape(chunks, -1)
  if chunks == 1:
    return count(label[0], prediction[0])
  return jax.lax.map(lambda pair: count(*pair), (label, prediction)).sum(0)


def host_confusion(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
  """`confusion`, int64 [k k], of one image on the host: no program for each size."""
  counts = np.zeros(num_classes**2, np.int64)
  for part in strips(label.shape):
    valid = label[part] != IGNORE
    pairs = label[part][valid].astype(np.int64) * num_classes + prediction[part][valid]
    counts += np.bincount(pairs, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class SemanticScores:
  """Metrics of one split; all but `pixels` and `matrix` are fractions in [0, 1].

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
    counts: int64 [n 3 k], what `jseg.metrics.images.outcomes` counts in each image; None: not
      known.
    calibration: whether the network is as often right as it is sure; None: not measured.
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
  counts: np.ndarray | None = None
  calibration: Calibration | None = None

  @property
  def images(self) -> ImageScores | None:
    """The images one by one; None where they aren't known."""
    return None if self.counts is None else image_scores(self.counts)

  @functools.cached_property
  def interval(self) -> tuple[float, float] | None:
    """Bounds of `miou` over images of the same kind; see `jseg.metrics.images.bootstrap_miou`."""
    return None if self.counts is None else bootstrap_miou(self.counts)

  def to_dict(self, names: Sequence[str]) -> Json:
    """Plain numbers for JSON: the five means and `per_class`, with None for absent classes.

    Where the images are known, `miou_interval` besides, and where measured, `calibration`.
    """
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
    result: Json = {**plain(self.summary()), "per_class": per_class}
    if self.interval is not None:
      bounds = {"low": self.interval[0], "high": self.interval[1]}
      result["miou_interval"] = bounds | {"level": LEVEL, "resamples": RESAMPLES}
    if self.calibration is not None:
      result["calibration"] = self.calibration.to_dict()
    return result

  @property
  def primary(self) -> float:
    """Mean IoU, which selects the best checkpoint."""
    return self.miou

  def summary(self) -> dict[str, float]:
    """Returns the five means by name."""
    return {name: getattr(self, name) for name in _MEANS}

  def table(self, names: Sequence[str], title: str) -> Table:
    """Returns IoU, Dice, accuracy and share of the pixels per class, with the means below.

    Args:
      names: names of the classes.
      title: heading.
    """
    table = Table(title=title, title_justify="left", show_footer=True)
    total = max(int(self.pixels.sum()), 1)
    table.add_column("class", "mean")
    table.add_column("IoU", percent(self.miou), justify="right")
    table.add_column("Dice", percent(self.mdice), justify="right")
    table.add_column("accuracy", percent(self.macc), justify="right")
    table.add_column("pixels", f"{self.pixels.sum():,}", justify="right")
    table.add_column("share", "", justify="right")
    for i, name in enumerate(names):
      table.add_row(
        name,
        percent(self.iou[i]),
        percent(self.dice[i]),
        percent(self.accuracy[i]),
        f"{self.pixels[i]:,}",
        percent(self.pixels[i] / total),
      )
    notes = [
      f"pixel accuracy {percent(self.pixel_accuracy)}, frequency-weighted IoU {percent(self.fwiou)}"
    ]
    if self.interval is not None:
      low, high = map(percent, self.interval)
      notes.append(f"mIoU over other images of the kind {low} to {high} ({100 * LEVEL:.0f} %)")
    if self.calibration is not None:
      notes.append(f"expected calibration error {percent(self.calibration.ece)}")
    table.caption = "\n".join(notes)
    return table


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

  def compute(self) -> SemanticScores:
    """Returns the metrics. NaN where nothing was counted."""
    hits = np.diag(self.matrix).astype(np.float64)
    truth = self.matrix.sum(1).astype(np.float64)
    union = truth + self.matrix.sum(0) - hits
    with np.errstate(invalid="ignore"):
      iou, dice, accuracy = hits / union, 2 * hits / (union + hits), hits / truth
      share, right = truth / truth.sum(), hits.sum() / truth.sum()
    present = union > 0
    return SemanticScores(
      miou=mean_of_present(iou),
      mdice=mean_of_present(dice),
      macc=mean_of_present(accuracy),
      pixel_accuracy=float(right),
      fwiou=float((share[present] * iou[present]).sum()) if truth.sum() else float("nan"),
      iou=iou,
      dice=dice,
      accuracy=accuracy,
      pixels=self.matrix.sum(1),
      matrix=self.matrix,
    )
