"""Classes that may overlap: each combination of classes that occurs is a label of its own.

So a mask of any number of classes is one channel of 8 bits, and is stored, resized and warped as
any other is. `ClassInfo.combinations` says what each label stands for: a row of the numbers below,
one for each class.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from jseg.types import IGNORE

ABSENT, PRESENT = 0, 1
"""A pixel isn't, or is, of a class; IGNORE where that isn't known."""

_STATES = np.array([ABSENT, PRESENT, IGNORE], np.uint8)


def distinct(planes: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """The combinations of classes that occur in an image, or volume.

  Args:
    planes: for each class uint8 [...] of ABSENT, PRESENT and IGNORE, or bool.

  Returns:
    (uint8 [m k] of the same, in the order of their classes; int64 [...], which of them each pixel
    has).
  """
  rows, index = np.zeros((1, 0), np.uint8), np.zeros((), np.int64)
  for plane in planes:
    code = 3 * index + np.where(plane == IGNORE, 2, plane)  # below 3 m, so that counting is quick
    present = np.flatnonzero(np.bincount(code.ravel(), minlength=3 * len(rows)))
    places = np.zeros(3 * len(rows), np.int64)
    places[present] = np.arange(len(present))
    index = places[code]
    rows = np.concatenate([rows[present // 3], _STATES[present % 3, None]], 1)
  return rows, index


def expand(label: np.ndarray, combinations: Sequence[Sequence[int]]) -> np.ndarray:
  """What each pixel is of each class: uint8 [... k] of ABSENT, PRESENT and IGNORE.

  Args:
    label: uint8 [...], each a place in `combinations` or IGNORE.
    combinations: [m k], see `ClassInfo.combinations`.
  """
  return table(combinations)[label]


def table(combinations: Sequence[Sequence[int]]) -> np.ndarray:
  """What each label is of each class, uint8 [256 k]; IGNORE of IGNORE, and where there is none."""
  rows = np.full((256, len(combinations[0])), IGNORE, np.uint8)
  rows[: len(combinations)] = combinations
  return rows


def pixels_by_class(counts: np.ndarray, combinations: Sequence[Sequence[int]]) -> np.ndarray:
  """Pixels of each class: int64 [k], from those of each label, int64 [m] or more."""
  present = np.array(combinations) == PRESENT
  return np.asarray(counts[: len(combinations)] @ present.astype(np.int64))


def mix_colors(combinations: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """A color for each combination: the mean of those of its classes, black of none: uint8 [m 3]."""
  present = (combinations == PRESENT).astype(np.float64)
  return np.rint(present @ palette / np.maximum(present.sum(1, keepdims=True), 1)).astype(np.uint8)
