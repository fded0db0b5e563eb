"""How large what is read may be: a file of a few bytes can say that it is of any size."""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jseg.data.files import FileError
from jseg.types import InputError

MAX_PIXELS = 12_000 * 9_000
"""Pixels of an image up to which it is read by default, in a process of less than 1 GiB."""

COLOR_BYTES = 7
"""Memory that reading takes for a pixel of a color image: four bytes are Pillow's, three ours."""

_VALUES_EACH = 2.5  # of a volume, for each of the pixels that an image may have

# Beyond it, neither OpenCV decodes an image, nor does a prepared record hold a volume.
_MOST = 2**30
_limit = contextvars.ContextVar("max_pixels", default=MAX_PIXELS)


def check_pixel_limit(max_pixels: int) -> None:
  """Refuses an impossible argument of `pixel_limit`.

  Raises:
    InputError: it isn't a number from 1 to 2^30.
  """
  if not isinstance(max_pixels, int) or not 1 <= max_pixels <= _MOST:
    raise InputError(f"max_pixels: {max_pixels} must be a whole number from 1 to {_MOST}")


@contextlib.contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
  """Lets whatever is read inside the `with` block have up to so many pixels.

  Args:
    max_pixels: pixels of an image. A volume, or a scientific image, may have 2.5 times as many
      values: voxels or pixels, times channels.

  Raises:
    InputError: it isn't a number from 1 to 2^30.
  """
  check_pixel_limit(max_pixels)
  token = _limit.set(max_pixels)
  try:
    yield
  finally:
    _limit.reset(token)


def check_pixels(size: tuple[int, int], where: Path | str, bytes_each: int = COLOR_BYTES) -> None:
  """Refuses an image that is larger than the limit, before memory is reserved for it.

  Args:
    size: (width, height).
    where: name of the file, for messages.
    bytes_each: memory that reading its format takes for a pixel. With more than `COLOR_BYTES`,
      fewer pixels are read, in no more memory.

  Raises:
    FileError: there are more than the limit.
  """
  many = bytes_each > COLOR_BYTES
  count, limit = math.prod(size), _limit.get() * COLOR_BYTES // max(bytes_each, COLOR_BYTES)
  if count > limit:
    of_format = f" where each takes {bytes_each} bytes, as in this format" if many else ""
    problem = f"{size[0]} wide x {size[1]} high are {count:,} pixels, and the limit is {limit:,}"
    other = "save it as PNG, " if many else ""
    raise _too_large(where, problem + of_format, count * bytes_each, other)


def most_values() -> int:
  """Returns the values that a volume or a scientific image may have."""
  return min(int(_limit.get() * _VALUES_EACH), _MOST)


def check_values(shape: Sequence[int], where: Path | str) -> None:
  """Refuses an array of more values than the limit, before memory is reserved for it.

  Args:
    shape: its shape.
    where: name of the file, for messages.

  Raises:
    FileError: there are more than the limit.
  """
  count, limit = math.prod(shape), most_values()
  if count > limit:
    size = " x ".join(map(str, shape))
    rule = f"{limit:,}, {_VALUES_EACH} for a pixel of data.max_pixels"
    problem = f"{size} are {count:,} values, and the limit is {rule}"
    raise _too_large(where, problem, count * 8)


def _too_large(where: Path | str, problem: str, needed: int, other: str = "") -> FileError:
  return FileError(
    "size",
    where,
    problem,
    f"Cut or shrink it, {other}or raise data.max_pixels (jseg check-data --max-pixels, in Python "
    f"jseg.data.pixel_limit); it needs {needed / 1e9:.1f} GB of memory and more",
  )
