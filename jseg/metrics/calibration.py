"""Whether a network is as often right as it is sure: reliability diagrams and their error."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jseg.arithmetic import strips
from jseg.types import IGNORE, Array, Json

BINS = 15
"""Bins of confidence; Guo et al. 2017 take as many."""

_UNIT = 1 << 20  # sums of confidences are kept in such parts, so that their order doesn't matter


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Pixels by how sure the network was of them (Guo et al. 2017, arXiv:1706.04599, section 2).

  The confidence of a pixel is the probability of the class that was predicted. Bin m of M holds
  those in ((m - 1) / M, m / M].

  Attributes:
    pixels: int64 [M], valid pixels in each bin.
    right: int64 [M], those whose class is right.
    sums: int64 [M], sum of their confidences, in parts of 2^-20.
  """

  pixels: np.ndarray
  right: np.ndarray
  sums: np.ndarray

  @classmethod
  def empty(cls) -> "Calibration":
    """No pixel yet."""
    return cls(*np.zeros((3, BINS), np.int64))

  def update(self, counts: Sequence[np.ndarray | Array]) -> "Calibration":
    """Adds what `binned` or `host_binned` has counted of an image."""
    pixels, right, sums = map(np.asarray, counts)
    parts = np.rint(sums.astype(np.float64) * _UNIT).astype(np.int64)
    return Calibration(self.pixels + pixels, self.right + right, self.sums + parts)

  @property
  def accuracy(self) -> np.ndarray:
    """Share of the pixels of each bin that are right, float64 [M]; NaN of an empty one."""
    with np.errstate(invalid="ignore"):
      return self.right / self.pixels

  @property
  def confidence(self) -> np.ndarray:
    """Mean confidence of the pixels of each bin, float64 [M]; NaN of an empty one."""
    with np.errstate(invalid="ignore"):
      return self.sums / _UNIT / self.pixels

  @property
  def ece(self) -> float:
    """Expected calibration error: the mean of `abs(accuracy - confidence)` over the pixels' bins.

    NaN of no pixel.
    """
    total = self.pixels.sum()
    gaps = np.abs(self.right - self.sums / _UNIT)
    return float(gaps.sum() / total) if total else float("nan")

  def to_dict(self) -> Json:
    """Plain values for JSON: `ece`, and of each bin pixels, accuracy and confidence."""

    def listed(values: np.ndarray) -> list[float | None]:
      return [None if np.isnan(value) else value for value in values.tolist()]

    return {
      "ece": None if np.isnan(self.ece) else self.ece,
      "pixels": self.pixels.tolist(),
      "accuracy": listed(self.accuracy),
      "confidence": listed(self.confidence),
    }


def binned(confidence: Array, prediction: Array, label: Array) -> tuple[Array, Array, Array]:
  """Counts the valid pixels of one image by confidence, on the device.

  Args:
    confidence: float32 [...], probability of the predicted class.
    prediction: int [...].
    label: int [...], IGNORE where void.

  Returns:
    Of each bin: pixels int32 [M], those that are right int32 [M], sum of confidences float32 [M].
  """
  place = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1)
  place = jnp.where(label == IGNORE, BINS, place)
  right = prediction == label

  def count(m: int) -> tuple[Array, Array, Array]:
    here = place == m
    # Row by row first: a long sum of float32 loses digits.
    sums = jnp.where(here, confidence, 0).reshape(len(here), -1).sum(1).sum()
    return here.sum(dtype=jnp.int32), (here & right).sum(dtype=jnp.int32), sums

  pixels, hits, sums = zip(*map(count, range(BINS)), strict=True)
  return jnp.stack(pixels), jnp.stack(hits), jnp.stack(sums)


def host_binned(
  confidence: np.ndarray, prediction: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`binned`, of one image on the host: int64 [M], int64 [M], float64 [M]."""
  pixels, hits, sums = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS)
  for part in strips(label.shape):
    valid = label[part] != IGNORE
    sure, right = confidence[part][valid], (prediction[part] == label[part])[valid]
    place = np.clip(np.ceil(sure * np.float32(BINS)) - 1, 0, BINS - 1).astype(np.int64)
    pixels += np.bincount(place, minlength=BINS)
    hits += np.bincount(place[right], minlength=BINS)
    sums += np.bincount(place, sure, minlength=BINS)
  return pixels, hits, sums
