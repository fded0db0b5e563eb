"""Large TIFF images that stay in their file: rows are read from its tiles or strips when needed."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from jseg.arithmetic import cdiv, strips
from jseg.data.files import FileError
from jseg.data.files.images import CanonicalImage, read_image
from jseg.data.files.limits import check_pixels
from jseg.data.files.rows import LastRows, StoredImage
from jseg.data.files.scientific import finite, naming, native, open_tiff, read_scientific

LARGE = 2**26
"""Values, pixels times channels, beyond which an image is taken to need care with memory."""

_SUFFIXES = (".tif", ".tiff")
_UNPACKED = (1, 5, 8, 32773, 32946)  # compressions, by TIFF's numbers, whose tiles stand alone
_LEAST_BYTES, _MOST_BYTES = 2**22, 2**28  # of the rows that are read or unpacked together


def open_image(path: Path) -> np.ndarray | StoredImage:
  """Reads an image of 8 bits as `read_image`; of a large TIFF, rows when they are asked for.

  So it is where it is RGB or gray, uncompressed, deflated or packed by PackBits (by LZW where
  imagecodecs is installed), and tifffile is there; otherwise it is read whole.

  Raises:
    FileError: as for `read_image`.
  """
  stored = _open(path, is_color=True)
  return read_image(path) if stored is None else stored


def open_scientific(path: Path, *, channels_first: bool = False) -> np.ndarray | StoredImage:
  """Reads an image as `read_scientific`; of a large TIFF, rows when they are asked for.

  Then it may have as many pixels as `pixel_limit` says, whatever the number of its channels, as
  they never are in memory together.

  Raises:
    FileError: as for `read_scientific`; from the image, if there is damage in what is read of it.
  """
  stored = _open(path, channels_first=channels_first)
  return read_scientific(path, channels_first=channels_first) if stored is None else stored


def canonical_large(
  path: Path, *, is_color: bool = False, channels_first: bool = False
) -> CanonicalImage | None:
  """The canonical form of a large TIFF that can be read by rows; None for other files.

  It is read through once, so that damage is told here.

  Args:
    path: the file.
    is_color: whether it is to be an image of 8 bits, as for `open_image`.
    channels_first: as for `open_scientific`.

  Raises:
    FileError: it is damaged, or larger than the limit.
  """
  stored = _open(path, is_color=is_color, channels_first=channels_first)
  if stored is None:
    return None
  height, width = stored.shape[:2]
  for rows in strips((height, width)):
    stored[rows]
  return CanonicalImage(stored, (height, width))


def _open(
  path: Path, *, is_color: bool = False, channels_first: bool = False
) -> StoredImage | None:
  """A large TIFF that can be read by rows; None for others, which are read whole or refused."""
  if path.suffix.lower() not in _SUFFIXES:
    return None
  try:
    with path.open("rb") as stream, open_tiff(stream, path) as series:
      if np.prod(series.shape) <= LARGE or (is_color and not _is_color(series)):
        return None
      pages = _pages(series, channels_first)
      if not pages:
        return None
      height, width = pages[0].keyframe.imagelength, pages[0].keyframe.imagewidth
      check_pixels((width, height), path)
      parts = [_read_rows(page, 0, 1) for page in pages]  # which fails where a codec is missing
  except FileError as error:
    if error.kind == "size":
      raise
    return None
  except Exception:  # whatever is wrong with it, reading it whole says so
    return None
  row = np.concatenate(parts, -1)
  step = max(_LEAST_BYTES // row.nbytes, *(_step(page.keyframe) for page in pages))
  unpack = functools.partial(_unpack, path, channels_first)
  rows = LastRows(unpack, height, step)
  stored = StoredImage((height, width, row.shape[-1]), row.dtype, rows)

  def checked(part: np.ndarray) -> np.ndarray:
    return finite(native(part, path), path)

  return stored if is_color else stored.map(checked)


def _is_color(series: Any) -> bool:
  """Whether Pillow would see RGB or gray of 8 bits in a TIFF, and nothing beside them."""
  page = series.keyframe
  samples = {"RGB": 3, "MINISBLACK": 1}.get(getattr(page.photometric, "name", ""))
  plain = page.dtype == np.uint8 and page.bitspersample == 8
  return plain and page.samplesperpixel == samples and len(page.parent.pages) == 1


def _pages(series: Any, channels_first: bool) -> list[Any]:
  """The pages whose samples, one after another, are an image's channels; empty if they aren't."""
  pages, axes, shape = list(series.pages), series.axes, series.shape
  if axes in ("YX", "YXS", "SYX"):
    count = 1
  elif axes == "CYX" or (len(axes) == 3 and axes.endswith("YX") and channels_first):
    count = shape[0]
  else:
    return []
  # Programs that write one page for a stack have no places of the others.
  if len(pages) != count or any(page is None for page in pages):
    return []
  return pages if all(_can_be_cut(page.keyframe) for page in pages) else []


def _can_be_cut(page: Any) -> bool:
  row = page.imagewidth * page.samplesperpixel * page.bitspersample // 8
  known = page.compression in _UNPACKED and page.imagedepth == 1
  return known and page.bitspersample in (8, 16, 32, 64) and _step(page) * row <= _MOST_BYTES


def _is_plain(page: Any) -> bool:
  """Whether a page's rows follow one another in the file as they are."""
  return page.is_contiguous and (page.planarconfig == 1 or page.samplesperpixel == 1)


def _step(page: Any) -> int:
  """Rows that are unpacked together."""
  if _is_plain(page):
    return 1
  return page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)


def _read_rows(page: Any, first: int, stop: int) -> np.ndarray:
  """Rows of a page: [rows w samples]."""
  shared, file = page.keyframe, page.parent.filehandle
  width, samples = shared.imagewidth, shared.samplesperpixel
  dtype = np.dtype(page.parent.byteorder + shared.dtype.char)
  if _is_plain(shared):
    row = width * samples * dtype.itemsize
    file.seek(page.dataoffsets[0] + first * row)
    return np.frombuffer(file.read((stop - first) * row), dtype).reshape(-1, width, samples)
  deep, wide = _step(shared), shared.tilewidth if shared.is_tiled else width
  across, down = cdiv(width, wide), cdiv(shared.imagelength, deep)
  planes = samples if shared.planarconfig == 2 else 1
  result = np.empty((stop - first, width, samples), shared.dtype)
  for plane in range(planes):
    channels = slice(plane, plane + 1) if planes > 1 else slice(None)
    for y in range(first // deep, cdiv(stop, deep)):
      for x in range(across):
        index = (plane * down + y) * across + x
        file.seek(page.dataoffsets[index])
        packed = file.read(page.databytecounts[index])
        part = shared.decode(packed, index)[0][0]
        top, bottom = max(first, y * deep), min(stop, y * deep + len(part))
        rows, place = part[top - y * deep : bottom - y * deep], result[:, x * wide : (x + 1) * wide]
        place[top - first : bottom - first, :, channels] = rows[:, : place.shape[1]]
  return result


def _unpack(path: Path, channels_first: bool, first: int, stop: int) -> np.ndarray:
  """Rows of a TIFF: [stop - first, w c]. The file is opened anew, so that nothing stays open."""
  with naming(path):
    try:
      with path.open("rb") as stream, open_tiff(stream, path) as series:
        pages = _pages(series, channels_first)
        return np.concatenate([_read_rows(page, first, stop) for page in pages], -1)
    except OSError as error:
      reason = error.strerror or str(error)
      raise FileError("unreadable", path, reason, "Start again when it is back") from error
