"""Images of which rows are read, or made, when they are asked for; so they fit in any memory."""

import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jseg.arithmetic import cdiv, strips
from jseg.images import Rows

_MARK = b"jseg: rows in "  # and the name of a file, where a prepared set would hold an image


@dataclasses.dataclass(frozen=True)
class StoredImage:
  """An image [h w c], or a label [h w], elsewhere; `image[rows, columns]` reads what it takes.

  Rows are a slice without a step, or an array of indices in which all between the least and the
  largest is read. `numpy.asarray` reads it whole.

  Attributes:
    shape: (height, width, channels), or (height, width).
    dtype: type of its numbers.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  _read: Callable[[int, int], np.ndarray]
  _convert: Callable[[np.ndarray], np.ndarray] = lambda part: part

  @property
  def ndim(self) -> int:
    """Number of axes, as of an array."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """Number of values."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes that it would take in memory."""
    return self.size * self.dtype.itemsize

  def __getitem__(self, index: slice | tuple[Any, ...]) -> np.ndarray:
    rows, *others = index if isinstance(index, tuple) else (index,)
    if isinstance(rows, slice):
      first, stop, _ = rows.indices(self.shape[0])
      within: Any = slice(None)
    else:
      first, stop = int(rows.min()), int(rows.max()) + 1
      within = rows - first
    return self._convert(self._read(first, stop)[(within, *others)])

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    del copy
    return self[:].astype(dtype or self.dtype, copy=False)

  def map(self, convert: Callable[[np.ndarray], np.ndarray]) -> "StoredImage":
    """Returns the image with a function of parts [m n c] applied to all that is read of it."""
    before = self._convert

    def both(part: np.ndarray) -> np.ndarray:
      return convert(before(part))

    one = convert(np.zeros((1, 1, self.shape[2]), self.dtype))
    return StoredImage((*self.shape[:2], one.shape[2]), one.dtype, self._read, both)


class LastRows:
  """Reads rows, and keeps the last ones, which the next windows show again.

  Args:
    read: `(first, stop) -> rows [stop - first, ...]`.
    height: rows of the image.
    step: rows that are read together.
  """

  def __init__(self, read: Callable[[int, int], np.ndarray], height: int, step: int = 1):
    self._read, self._height, self._step = read, height, step
    self._first, self._rows = 0, np.zeros(0)

  def __call__(self, first: int, stop: int) -> np.ndarray:
    """Returns rows [stop - first, ...], which are not to be changed."""
    end = self._first + len(self._rows)
    if not self._first <= first < end:
      self._first, self._rows = first // self._step * self._step, self._rows[:0]
      end = self._first
    if stop > end:
      new = self._read(end, min(cdiv(stop, self._step) * self._step, self._height))
      kept = self._rows[first - self._first :]
      self._first = end - len(kept)
      self._rows = np.concatenate([kept, new]) if len(kept) else new
    return self._rows[first - self._first : stop - self._first]


def write_rows(image: Rows, path: Path) -> bytes:
  """Writes an image as .npy, of which `open_rows` reads rows.

  Args:
    image: [h w c] or [h w], of which a strip is in memory at a time.
    path: file to write.

  Returns:
    What stands for the image where it was to be.
  """
  header = {"descr": image.dtype.str, "fortran_order": False, "shape": tuple(image.shape)}
  with path.open("wb") as file:
    np.lib.format.write_array_header_1_0(file, header)
    for part in strips(image.shape[:2]):
      file.write(np.ascontiguousarray(image[part]).data)
  return _MARK + path.name.encode()


def open_rows(data: bytes, folder: Path) -> StoredImage | None:
  """Opens an image that `write_rows` has written; None if the data stand for none.

  Args:
    data: what `write_rows` returned, or anything else.
    folder: where its file is.

  Raises:
    OSError: the file can't be read.
    ValueError: it isn't whole.
  """
  if not data.startswith(_MARK):
    return None
  path = folder / data.removeprefix(_MARK).decode()
  with path.open("rb") as file:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    start, row = file.tell(), math.prod(shape[1:]) * dtype.itemsize
    if (length := file.seek(0, io.SEEK_END)) != start + shape[0] * row:
      raise ValueError(f"{path} has {length:,} bytes of {start + shape[0] * row:,}")

  def read(first: int, stop: int) -> np.ndarray:
    with path.open("rb") as file:  # opened anew each time, so that nothing stays open
      file.seek(start + first * row)
      content = file.read((stop - first) * row)
    return np.frombuffer(content, dtype).reshape(stop - first, *shape[1:])

  return StoredImage(shape, dtype, LastRows(read, shape[0]))


def every_nth(image: Rows, step: int) -> np.ndarray:
  """Every n-th row and column of an image or label, of which one row is read at a time."""
  if step == 1:
    return np.asarray(image)
  return np.concatenate([image[y : y + 1][:, ::step] for y in range(0, image.shape[0], step)])
