"""Examples of a prepared data set: as they are stored, and decoded."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import numpy as np

from jseg.data.files.instances import Objects

Record = Mapping[str, Any]
"""An example as it is stored: arrays and encoded files by the names of its features."""


class Decoded(TypedDict):
  """A decoded example.

  Attributes:
    name: name of the example in its split.
    image: uint8 [h w c] (c is 3 or 1); a volume, float32 [d h w c]; a scientific image as it is
      stored, or float32 in 0..255 if the data set is scaled.
    label: uint8 [h w], or [d h w]; where the class of every pixel is known.
    objects: the objects, where they are known.
  """

  name: str
  image: np.ndarray
  label: NotRequired[np.ndarray]
  objects: NotRequired[Objects]
