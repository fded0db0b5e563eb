"""Scientific image files: TIFF, NumPy's .npy and PNG of 8 to 32 bits and any channels, unscaled.

Nothing about their layout is guessed: axes that a file doesn't name are declared, or refused.
"""

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np

from jseg.data.files import FileError, read_bytes
from jseg.data.files.images import CanonicalImage
from jseg.data.files.limits import check_values
from jseg.data.files.masks import RawMask, whole_numbers
from jseg.data.files.opening import open_checked
from jseg.install import install_line
from jseg.types import InputError

SCIENTIFIC_SUFFIXES = (".tif", ".tiff", ".npy", ".png")
"""Name endings of scientific images, in lower case."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY = b"\x93NUMPY"
_ORIENTATION = 274  # a tag of TIFF
_MOST_PAGES, _MOST_TAGS = 2**16, 4096
# Times that a file's bytes can unpack to, by TIFF's number of the compression.
_RATIOS = {1: 1, 5: 4096, 8: 1032, 32773: 128, 32946: 1032}
_FIRST_FIX = (
  "If the first axis is the channels, declare it: data.options.channels_first=True (jseg "
  "check-data --option channels_first=True)"
)


def read_scientific(path: Path | str, *, channels_first: bool = False) -> np.ndarray:
  """Reads a scientific image with the numbers that it holds.

  Args:
    path: a .tif, .tiff, .npy or .png file.
    channels_first: the first of three axes is the channels: the pages of a TIFF, or the first axis
      of an .npy, whose channels otherwise come last.

  Returns:
    uint8, uint16, uint32, int8, int16, int32 or float32 [h w c].

  Raises:
    FileError: it is damaged, of another kind, larger than the limit, or holds what is no number.
  """
  return decode_scientific(read_bytes(Path(path)), path, channels_first=channels_first)


def canonical_scientific(
  data: bytes, where: Path | str, *, channels_first: bool = False
) -> CanonicalImage:
  """Brings a scientific image to the form that prepared sets hold: .npy of [h w c], unscaled.

  Args:
    data: the file's bytes.
    where: name of the file, for messages.
    channels_first: as for `read_scientific`.

  Raises:
    FileError: as for `read_scientific`.
  """
  array = decode_scientific(data, where, channels_first=channels_first)
  return CanonicalImage(encode_array(array), array.shape[:2])


def is_array(data: bytes) -> bool:
  """Whether a prepared image is an array of numbers, and no PNG or JPEG."""
  return data.startswith(_NPY)


def encode_array(array: np.ndarray) -> bytes:
  """Encodes an array as .npy."""
  stream = io.BytesIO()
  np.save(stream, array, allow_pickle=False)
  return stream.getvalue()


def decode_array(data: bytes) -> np.ndarray:
  """Decodes what `encode_array` made."""
  return np.load(io.BytesIO(data), allow_pickle=False)


def import_tifffile() -> ModuleType:
  """Imports tifffile. Raises InputError that says how to install it."""
  try:
    import tifffile
  except ImportError as error:
    raise InputError(
      "scientific TIFF files are read by tifffile, which is not installed: "
      f"{install_line('scientific')}"
    ) from error
  # What it thinks of a damaged file is said by our own message.
  if not (log := logging.getLogger("tifffile")).handlers:
    log.addHandler(logging.NullHandler())
  return tifffile


def decode_scientific(
  data: bytes, where: Path | str, *, channels_first: bool = False, yes_or_no: bool = False
) -> np.ndarray:
  """Decodes a scientific image; see `read_scientific`.

  Args:
    data: the file's bytes.
    where: name of the file, for messages.
    channels_first: as for `read_scientific`.
    yes_or_no: whether it may be an .npy of type bool, as a mask may; it becomes 0 and 1.

  Raises:
    FileError: as for `read_scientific`.
  """
  with naming(where):
    if data.startswith(_NPY):
      array = _read_npy(data, where, channels_first)
      if yes_or_no and array.dtype == bool:
        array = array.astype(np.uint8)
    elif data.startswith(_TIFF):
      array = _read_tiff(data, where, channels_first)
    else:
      array = _read_png(data, where)
    return finite(native(array, where), where)


@contextlib.contextmanager
def naming(where: Path | str) -> Iterator[None]:
  """Turns whatever a damaged file happens to break into a FileError."""
  try:
    yield
  except InputError:
    raise
  except MemoryError:
    raise FileError("size", where, "there is not enough memory for it", "Cut it") from None
  except Exception as error:
    raise _unreadable(where, error) from error


def _unreadable(where: Path | str, error: Exception) -> FileError:
  reason = " ".join(str(error).split())[:300] or type(error).__name__
  if "imagecodecs" in reason:
    problem = f"it can't be unpacked without another package ({reason})"
    fix = "Install imagecodecs (pip install imagecodecs), or save it uncompressed or deflated"
    return FileError("layout", where, problem, fix)
  problem = f"damaged or no scientific image ({reason})"
  return FileError(
    "unreadable", where, problem, "Restore it from its origin, or remove it with its mask"
  )


def decode_numbers_mask(data: bytes, where: Path | str) -> RawMask:
  """Decodes a mask that was saved by NumPy: an array [h w] of class numbers, of any type.

  Args:
    data: the file's bytes.
    where: name of the file, for messages.

  Raises:
    FileError: it is damaged, no such array, or a number isn't whole.
  """
  with naming(where):
    array = _load_npy(data, where)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
      what = f"is an array of shape {array.shape} and type {array.dtype}"
      raise FileError("layout", where, what, "A mask is an array [h w] of class numbers")
    values = whole_numbers(array.astype(np.float64), where)
    return RawMask(np.clip(values, -1, 2**30).astype(np.int32))


def _load_npy(data: bytes, where: Path | str) -> np.ndarray:
  stream = io.BytesIO(data)
  version = np.lib.format.read_magic(stream)
  if version not in ((1, 0), (2, 0)):
    raise ValueError(f"version {version} of .npy")
  read: Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype]] = (
    np.lib.format.read_array_header_1_0
  )
  if version == (2, 0):
    read = np.lib.format.read_array_header_2_0
  shape, fortran, dtype = read(stream)
  if dtype.hasobject:
    fix = "Save the numbers alone: numpy.save(path, array.astype(numpy.float32))"
    raise FileError("values", where, "holds Python objects (a pickle), which are never read", fix)
  _check_shape(shape, where)
  start, size = stream.tell(), math.prod(shape) * dtype.itemsize
  if len(data) != start + size:
    raise ValueError(f"its header says {size:,} bytes of numbers, and {len(data) - start:,} follow")
  return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _read_npy(data: bytes, where: Path | str, channels_first: bool) -> np.ndarray:
  array = _load_npy(data, where)
  if array.ndim == 2:
    return array[..., None]
  return np.moveaxis(array, 0, -1) if channels_first else array


def _check_shape(shape: tuple[int, ...], where: Path | str) -> None:
  if len(shape) not in (2, 3) or min(shape) < 1:
    rule = "An image has 2 axes, or 3 with the channels last (or declared to be first)"
    raise FileError("layout", where, f"is an array of shape {shape}", rule)
  check_values(shape, where)


def _check_dtype(dtype: np.dtype | None, where: Path | str) -> None:
  """Refuses numbers that aren't integers of up to 32 bits or floats."""
  if (
    dtype is not None and dtype.kind in "iuf" and dtype.itemsize <= (8 if dtype.kind == "f" else 4)
  ):
    return
  fix = "Save it as integers of 8, 16 or 32 bits or as 32-bit floats: array.astype(numpy.uint16)"
  raise FileError("values", where, f"its numbers are of type {dtype}, which isn't read", fix)


def native(array: np.ndarray, where: Path | str) -> np.ndarray:
  """Returns an array in this machine's byte order; floats of any size as float32."""
  _check_dtype(array.dtype, where)
  dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
  with np.errstate(over="ignore"):
    return np.ascontiguousarray(array, dtype)


def finite(array: np.ndarray, where: Path | str) -> np.ndarray:
  """Returns an array [h w c] as it is. Raises FileError if a number is infinite or none."""
  if array.dtype.kind == "f" and (broken := array.size - np.isfinite(array).sum()):
    channels = np.flatnonzero(~np.isfinite(array).all((0, 1))).tolist()
    raise FileError(
      "values",
      where,
      f"{broken} of {array.size} values are infinite or no number (NaN), in channel(s) "
      f"{', '.join(map(str, channels[:8]))}",
      "Replace them, for instance by numpy.nan_to_num, and make their pixels void in the mask",
    )
  return array


def _check_chain(stream: BinaryIO) -> int:
  """Follows the list of pages of a TIFF, and returns the length of the file.

  Each page's tags end with the place of the next page's.

  Raises:
    ValueError: the list never ends or leaves the file; tifffile would follow it.
  """
  length = stream.seek(0, io.SEEK_END)
  stream.seek(0)
  first = stream.read(4)
  order: Literal["little", "big"] = "little" if first[:2] == b"II" else "big"
  big = 43 in first[2:]
  width, tag, place = (8, 20, 8) if big else (4, 12, 4)  # bytes of a place, of a tag, and where
  seen: set[int] = set()

  def number(start: int, count: int) -> int:
    if start + count > length:
      raise ValueError(f"its list of pages leads to byte {start:,}, of {length:,}")
    stream.seek(start)
    return int.from_bytes(stream.read(count), order)

  while place := number(place, width):
    if place in seen or len(seen) == _MOST_PAGES:
      raise ValueError("its list of pages leads back to itself, or has no end")
    seen.add(place)
    tags = number(place, 8 if big else 2)
    if tags > _MOST_TAGS:
      raise ValueError(f"page {len(seen)} has {tags:,} tags")
    place += (8 if big else 2) + tags * tag
  return length


def _read_tiff(data: bytes, where: Path | str, channels_first: bool) -> np.ndarray:
  with open_tiff(io.BytesIO(data), where) as whole:
    axes, shape = whole.axes, tuple(whole.shape)
    check_values(shape, where)
    array = whole.asarray(maxworkers=1)
  if array.shape != shape:
    raise ValueError(f"its header says {shape}, and it holds {array.shape}")
  return _channels_last(array, axes, where, channels_first)


@contextlib.contextmanager
def open_tiff(stream: BinaryIO, where: Path | str) -> Iterator[Any]:
  """Opens a TIFF of one image, and gives tifffile's series of it, checked but for its size.

  Args:
    stream: the file.
    where: name of the file, for messages.

  Raises:
    FileError: it holds several images, or what is no number.
    ValueError: it is damaged.
  """
  length = _check_chain(stream)
  stream.seek(0)
  with import_tifffile().TiffFile(stream) as file:
    series = file.series
    if len(series) != 1:
      fix = "Save the one that is meant as a file of its own"
      raise FileError("layout", where, f"holds {len(series)} images of different kinds", fix)
    for page in series[0].pages:
      if page is not None:
        _check_page(page, length, where)
    _check_dtype(series[0].dtype, where)
    yield series[0]


def _check_page(page: Any, length: int, where: Path | str) -> None:
  """Refuses a page that isn't intensities as they are to be seen, or can't be what it says."""
  shared = page.keyframe  # which has what later pages of the same kind share
  photometric = getattr(shared.photometric, "name", str(shared.photometric))
  if photometric in ("PALETTE", "YCBCR", "CIELAB", "SEPARATED", "ICCLAB", "ITULAB", "MASK"):
    fix = "Save it as gray values, RGB or bands of numbers"
    raise FileError("layout", where, f"holds {photometric} colors and no intensities", fix)
  tag = shared.tags.get(_ORIENTATION)
  if tag is not None and tag.value != 1:
    problem = f"a tag says that it is to be turned (orientation {tag.value})"
    raise FileError("layout", where, problem, "Save it upright, without that tag")
  if len(page.dataoffsets) != len(page.databytecounts):
    raise ValueError("it has more places of strips than lengths, or fewer")
  ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
  if not ends or min(page.databytecounts) < 1:
    fix = "Save it with all of its strips or tiles, for GDAL with SPARSE_OK=FALSE"
    raise FileError("layout", where, "has strips or tiles without data", fix)
  if max(ends) > length:
    raise ValueError(f"it ends at byte {length:,}, before its data do at {max(ends):,}")
  size = math.prod(shared.shape) * shared.bitspersample // 8
  most = sum(page.databytecounts) * _RATIOS.get(int(shared.compression), size)
  if size > most:
    raise ValueError(f"{sum(page.databytecounts):,} bytes are too few for {size:,} of pixels")


def _channels_last(
  array: np.ndarray, axes: str, where: Path | str, channels_first: bool
) -> np.ndarray:
  """Brings the axes that a TIFF names to [h w c]: S are samples, C channels, others pages."""
  if axes == "YX":
    return array[..., None]
  if axes == "YXS":
    return array
  if axes in ("SYX", "CYX") or (len(axes) == 3 and axes.endswith("YX") and channels_first):
    return np.moveaxis(array, 0, -1)
  if len(axes) == 3 and axes.endswith("YX"):
    problem = f"holds {len(array)} pages, and doesn't say what they are"
    fix = f"{_FIRST_FIX}; if they are images, save each as a file of its own"
    raise FileError("layout", where, problem, fix)
  problem = f"its axes are {axes}, of sizes {array.shape}"
  raise FileError("layout", where, problem, "Save one image [h w] or [h w channels] as a file")


def _read_png(data: bytes, where: Path | str) -> np.ndarray:
  """Reads a PNG of 8 or 16 bits, of gray values or RGB."""
  opened = open_checked(data, where)
  image = opened.image
  gray = image.mode == "L" or image.mode.startswith("I")
  plain = image.format == "PNG" and opened.depth in (8, 16) and (gray or image.mode == "RGB")
  if not plain or "transparency" in image.info or opened.orientation > 1:
    what = f"{image.format} of mode {image.mode}, {opened.depth} bits"
    problem = f"is a {what}, and scientific images are TIFF, .npy, or gray or RGB PNG"
    raise FileError("layout", where, problem, "Save it as one of these")
  check_values((*opened.size, 1 if gray else 3), where)
  image.close()  # OpenCV is to have its memory
  array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if array is None or array.shape[:2] != opened.size:
    raise ValueError("OpenCV can't read it")
  return array[..., None] if array.ndim == 2 else array[..., ::-1]
