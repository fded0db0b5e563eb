"""Integer arithmetic that Python leaves out."""

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
