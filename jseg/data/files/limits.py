"""How large what is read may be: a file of a few bytes can say that it is of any size."""

import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path

from jseg.data.files import FileError
from jseg.types import InputError

MAX_PIXELS = 2**28
"""Pixels of an image, and values of a volume, up to which they are read by default."""

# Beyond it, neither OpenCV decodes an image, nor does a prepared record hold a volume.
_MOST = 2**30
_limit = contextvars.ContextVar("max_pixels", default=MAX_PIXELS)


@contextlib.contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
  """Lets whatever is read inside the `with` block have up to so many pixels.

  Args:
    max_pixels: pixels of an image, or values of a volume: voxels times channels.

  Raises:
    InputError: it isn't a number from 1 to 2^30.
  """
  if not isinstance(max_pixels, int) or not 1 <= max_pixels <= _MOST:
    raise InputError(f"max_pixels: {max_pixels} must be a whole number from 1 to {_MOST}")
  token = _limit.set(max_pixels)
  try:
    yield
  finally:
    _limit.reset(token)


def check_pixels(count: int, size: str, where: Path | str, bytes_each: int) -> None:
  """Refuses what is larger than the limit, before memory is reserved for it.

  Args:
    count: pixels of an image, or values of a volume.
    size: its size in words.
    where: name of the file, for messages.
    bytes_each: memory that reading takes for each of them.

  Raises:
    FileError: there are more than the limit.
  """
  if count > (limit := _limit.get()):
    noun = "pixels" if bytes_each == 3 else "values"
    raise FileError(
      "size",
      where,
      f"{size} are {count:,} {noun}, and the limit is {limit:,}",
      "Cut or shrink it, or raise data.max_pixels (jseg check-data --max-pixels, in Python "
      f"jseg.data.pixel_limit); it needs {count * bytes_each / 1e9:.1f} GB of memory and more",
    )
