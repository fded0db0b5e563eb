"""Integer arithmetic that Python leaves out."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_Number = TypeVar("_Number")


def cdiv(a: _Number, b: int | _Number) -> _Number:
  """Quotient a / b rounded up, of integers or of integer arrays; `//` rounds down."""
  return -(-a // b)  # type: ignore[operator]


def evenly_spaced(count: int, length: int) -> list[int]:
  """Returns up to `count` indices from all over a split of `length` examples.

  The first images of a video would all be the same.
  """
  return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()


def strips(shape: Sequence[int], pixels: int = 2**18) -> list[slice]:
  """Cuts an image or volume into strips, so that what is computed of them stays small.

  Args:
    shape: its spatial sizes.
    pixels: pixels that a strip has at most, if it is of more than one row or slice.

  Returns:
    Slices of the first axis, which cover it in order.
  """
  step = max(1, pixels // max(1, math.prod(shape[1:])))
  return [slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]


def count_bytes(array: np.ndarray) -> np.ndarray:
  """How often each number occurs in a uint8 image or volume: int64 [256].

  NumPy's own count makes 8 bytes of each number, so it is given strips.
  """
  counts = np.zeros(256, np.int64)
  for part in strips(array.shape):
    counts += np.bincount(array[part].ravel(), minlength=256)
  return counts
