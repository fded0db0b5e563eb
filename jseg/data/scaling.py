"""How the numbers of scientific images become 0..255, which networks take colors for.

A declaration is "16bit" (0 to 2^16 - 1), "0:4095", or percentiles of the training split's pixels,
"1%:99%"; one for all channels, or one for each with commas between.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jseg.types import InputError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})(%?):({_NUMBER})(%?)")
_BITS = re.compile(r"(\d+)bit")
_CHOICES = 'give "16bit", a range "0:4095" or percentiles "1%:99%"'


@dataclasses.dataclass(frozen=True)
class Range:
  """The ends of a channel's range.

  Attributes:
    low: what becomes 0; everything below does too.
    high: what becomes 255.
    percent: they are percentiles of the training split's pixels.
  """

  low: float
  high: float
  percent: bool = False


def parse_scaling(text: str) -> list[Range]:
  """Reads a declaration.

  Args:
    text: as described above.

  Returns:
    One range for all channels, or one for each.

  Raises:
    InputError: it is none.
  """
  return [_parse(part.strip()) for part in text.split(",")]


def _parse(text: str) -> Range:
  if bits := _BITS.fullmatch(text):
    if 1 <= (count := int(bits[1][:3])) <= 32:
      return Range(0.0, float(2**count - 1))
    raise InputError(f"data.scaling: {text!r} must be of 1 to 32 bits")
  found = _RANGE.fullmatch(text)
  if found is None or found[2] != found[4]:
    raise InputError(f"data.scaling: {text!r} is no range; {_CHOICES}")
  low, high, percent = float(found[1]), float(found[3]), bool(found[2])
  if not low < high or not np.isfinite([low, high]).all():
    raise InputError(f"data.scaling: {text!r} must be two numbers, the lower one first")
  if percent and not 0 <= low < high <= 100:
    raise InputError(f"data.scaling: {text!r} must be percentiles from 0% to 100%")
  return Range(low, high, percent)


def find_ends(text: str, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Finds the ends of each channel's range.

  Args:
    text: a declaration.
    sample: [n c], pixels of the training split.

  Returns:
    (low, high), float64 [c] each.

  Raises:
    InputError: it is none, has another number of channels, or leaves a channel without a range.
  """
  ranges, channels = parse_scaling(text), sample.shape[1]
  if len(ranges) not in (1, channels):
    raise InputError(
      f"data.scaling: {text!r} has {len(ranges)} ranges, but the images have {channels} channels; "
      "give one for all, or one for each"
    )
  ranges = ranges * channels if len(ranges) == 1 else ranges
  ends = np.array(
    [
      np.percentile(sample[:, i], (r.low, r.high)) if r.percent else (r.low, r.high)
      for i, r in enumerate(ranges)
    ],
    np.float64,
  )
  if (flat := np.flatnonzero(ends[:, 0] >= ends[:, 1])).size:
    raise InputError(
      f"data.scaling: {text!r} leaves nothing of channel {flat[0]}, both of whose percentiles are "
      f"{ends[flat[0], 0]:g}; declare its range, or leave the channel out of the files"
    )
  return ends[:, 0], ends[:, 1]


def scale(image: np.ndarray, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
  """Brings an image to 0..255; what lies outside of the range becomes 0 or 255.

  Args:
    image: [... c], numbers as they are stored.
    low: for each channel, the number that becomes 0.
    high: for each channel, the number that becomes 255.

  Returns:
    float32 [... c].

  Raises:
    InputError: the image has another number of channels.
  """
  if image.shape[-1] != len(low):
    raise InputError(
      f"an image of {image.shape[-1]} channel(s), but the network was made for {len(low)}; give "
      "the same channels in the same order"
    )
  bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
  # 32-bit integers have more digits than a float32.
  exact = np.float64 if image.dtype.itemsize == 4 and image.dtype.kind in "iu" else np.float32
  scaled = (image.astype(exact) - bottom.astype(exact)) * (255 / (top - bottom)).astype(exact)
  return scaled.clip(0, 255).astype(np.float32, copy=False)
