"""Opening of image and mask files with Pillow: intact, of one frame, upright, of known depth."""

import contextlib
import dataclasses
import hashlib
import io
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import GifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError

from jseg.arithmetic import strips
from jseg.data.files import FileError
from jseg.data.files.jpeg import Scans, find_scans
from jseg.data.files.limits import COLOR_BYTES, check_pixels
from jseg.data.files.listing import IMAGE_FORMATS
from jseg.types import InputError

_ORIENTATION = 0x0112
_BITS, _SAMPLES, _EXTRA_SAMPLES, _SUBFILE = 258, 277, 338, 254  # tags of TIFF
# Their first image is the picture; the others are previews, layers, or other sizes of it.
_FIRST_COUNTS = ("MPO", "PSD", "ICO", "ICNS")
_RESTORE = "Restore it from its origin, or remove it together with its partner"
# What files hold that often bear the name of an image: (where, first bytes, what, what to do).
_OTHERS = (
  (0, b"version https://git-lfs", "a Git LFS pointer, not the file", "Fetch it with git lfs pull"),
  (4, b"ftyphei", "a HEIC photo", "Convert it to JPEG or PNG"),
  (4, b"ftypmif1", "a HEIF photo", "Convert it to JPEG or PNG"),
  (128, b"DICM", "a DICOM file", "Convert it to PNG with a window that suits, or to NIfTI"),
  (344, b"n+1\0", "a NIfTI volume", "Name it .nii, and use a network of volumes"),
  (0, b"%PDF", "a PDF", "Export its pages as PNG"),
  (0, b"<", "text such as HTML or SVG", "Download it again, or export it as PNG"),
)
_TIFF = (b"II*\0", b"MM\0*")
_LONGEST = 10**6  # which a PNG can't exceed, to libpng
_SIZ = b"\xff\x4f\xff\x51"  # how JPEG 2000 begins: size, tiles, components
_OPENING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Opened:
  """A decoded file.

  Attributes:
    image: the image as Pillow decodes it, which turns a TIFF upright and nothing else.
    orientation: EXIF's orientation; 1 if there is none.
    to_turn: the orientation that `image` has, see `stored`.
    depth: bits per channel as stored; Pillow itself truncates 16-bit color without a word.
    maximum: of a gray PGM, the sample that is white; else None.
    white_is_zero: of a gray TIFF, that 0 is white (MinIsWhite); Pillow inverts up to 8 bits.
    writer: of a TIFF, the names of the programs in it, in lower case.
    exif_damaged: there is EXIF data that can't be read, so the orientation isn't known.
  """

  image: Image.Image
  orientation: int
  to_turn: int
  depth: int
  maximum: int | None = None
  white_is_zero: bool = False
  writer: str = ""
  exif_damaged: bool = False

  @property
  def size(self) -> tuple[int, int]:
    """(height, width), upright."""
    size = self.image.height, self.image.width
    return size[::-1] if self.to_turn > 4 else size

  def stored(self, upright: np.ndarray) -> np.ndarray:
    """A view of an upright array [h w ...] in which the pixels lie as in `image`."""
    match self.to_turn:
      case 2:
        return upright[:, ::-1]
      case 3:
        return upright[::-1, ::-1]
      case 4:
        return upright[::-1]
      case 5:
        return upright.swapaxes(0, 1)
      case 6:
        return np.rot90(upright)
      case 7:
        return upright.swapaxes(0, 1)[::-1, ::-1]
      case 8:
        return np.rot90(upright, -1)
    return upright


class _Still(GifImagePlugin.GifImageFile):
  """A GIF whose picture stays.

  What is to follow a picture of any size, Pillow would make as soon as it opens the file.
  """

  disposal_method = property(lambda _: 0, lambda _, __: None)


def image_strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
  """The strips of an image: (rows, image of them). Pillow makes copies of all that it converts."""
  for rows in strips((image.height, image.width)):
    yield rows, image.crop((0, rows.start, image.width, rows.stop))


def digest(image: Image.Image) -> bytes:
  """A digest of an image's pixels."""
  found = hashlib.sha256()
  for _, rows in image_strips(image):
    found.update(rows.tobytes())
  return found.digest()


def palette(image: Image.Image) -> tuple[np.ndarray, int]:
  """Colors of an indexed image, uint8 [256 3], and how many of them it has."""
  colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
  found = np.zeros((256, 3), np.uint8)  # what lies beyond is black, as viewers have it
  found[: len(colors)] = colors
  return found, len(colors)


def open_checked(data: bytes, where: Path | str) -> Opened:
  """Opens and fully decodes an image or mask.

  Args:
    data: the file's bytes, in any format that Pillow reads.
    where: name of the file, for messages.

  Raises:
    FileError: the file is damaged, no image, larger than the limit, or has several frames, or
      bands beside red, green, blue and alpha.
  """
  try:
    return _open(data, where)
  except InputError:
    raise
  except MemoryError:
    fix = "Cut or shrink it"
    raise FileError("size", where, "there is not enough memory for it", fix) from None
  except Exception as error:  # Pillow raises whatever a damaged file happens to break.
    raise _unreadable(data, where, error) from error


def beyond_colors(path: Path) -> bool:
  """Whether a TIFF or PNG has more bits, other bands or more pages than an image of colors.

  Only its header is read, so damage behind it isn't seen.
  """
  with path.open("rb") as stream:
    try:
      with _start(stream) as image:
        _check_frames(image, path)
        _check_bands(image, path)
        stream.seek(0)
        return image.mode[0] in "IF" or _depth(image, stream.read(26), None) > 8
    except FileError:
      return True
    except Exception:  # no image, or a TIFF of numbers that Pillow has no colors for
      stream.seek(0)
      return stream.read(4) in _TIFF and bool(_tiff_layout(stream))


def _open(data: bytes, where: Path | str) -> Opened:
  scans = find_scans(data)
  if scans is not None and scans.fault:
    raise FileError("unreadable", where, scans.fault, _RESTORE)
  stream = io.BytesIO(data)
  image = _start(stream)
  check_pixels(image.size, where, _bytes_each(image, data, scans))
  if max(image.size) > _LONGEST:
    size = f"{image.width} wide x {image.height} high"
    raise FileError("size", where, f"{size}: a side is over {_LONGEST:,} pixels", "Cut it")
  pixels = image.width * image.height
  large = pixels > (Image.MAX_IMAGE_PIXELS or pixels)
  with _without_pillows_limit() if large else contextlib.nullcontext():
    _check_frames(image, where)  # before memory is taken for one of them, as for a PNG's EXIF
  exif_damaged = _is_damaged(image.info.get("exif") or b"")
  orientation = 1 if exif_damaged else _orientation(image)
  tile = image.tile[0].args if image.format == "PPM" and image.tile else None
  shown: list[bytes] = []
  if scans is not None:
    # One by one, as each is another copy of the file.
    *others, last = scans.endings
    shown = [_digest_of(scans.ended(data, other)) for other in others]
    stream = io.BytesIO(scans.ended(data, last))
    image = _start(stream)
  with _without_pillows_limit() if large else contextlib.nullcontext():
    image.load()
  stream.close()  # which a TIFF would keep, and the file with it
  if any(other != digest(image) for other in shown):
    raise OSError("the file was cut, or ends too early")
  _check_bands(image, where)
  tags = getattr(image, "tag_v2", {})
  return Opened(
    image=image,
    orientation=orientation,
    to_turn=1 if exif_damaged else _orientation(image),
    depth=_depth(image, data, tile),
    maximum=tile[1] if isinstance(tile, tuple) and len(tile) == 2 and image.mode in "LI" else None,
    white_is_zero=image.format == "TIFF" and tags.get(262) == 0 and image.mode != "P",
    writer=f"{tags.get(305, '')} {tags.get(270, '')}".lower(),
    exif_damaged=exif_damaged,
  )


def _start(stream: BinaryIO) -> Any:
  """Opens an image without decoding it."""
  is_gif = stream.read(6) in (b"GIF87a", b"GIF89a")
  stream.seek(0)
  with _without_pillows_limit():
    return _Still(stream) if is_gif else Image.open(stream, formats=IMAGE_FORMATS)


def _digest_of(data: bytes) -> bytes:
  """A digest of an encoded image's pixels."""
  with _start(io.BytesIO(data)) as image:
    return digest(image)


def _bytes_each(image: Any, data: bytes, scans: Scans | None) -> int:
  """Memory that reading takes for a pixel, at least `COLOR_BYTES`."""
  match image.format:
    case _ if image.mode in ("I", "F"):  # masks; floats are compared with whole numbers
      return 9 if image.mode == "I" else 13
    case "TIFF" if image.tag_v2.get(_ORIENTATION, 1) != 1:  # as Pillow turns it, beside the file
      return 8 + math.ceil(len(data) / (image.width * image.height))
    case "JPEG" | "MPO" if scans is not None:
      return max(4 + math.ceil(scans.bytes_each), COLOR_BYTES)
    case "WEBP" | "AVIF":  # Their libraries keep several images, and Pillow copies one of them.
      return 16
    case "JPEG2000":  # OpenJPEG takes 17 for those of a tile, of which there may be just one.
      at = data.find(_SIZ)
      tile = math.prod(struct.unpack_from(">II", data, at + 24)) if at >= 0 else math.inf
      pixels = image.width * image.height
      return max(3 + math.ceil(17 * min(tile, pixels) / pixels), COLOR_BYTES)
  return COLOR_BYTES


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
  """Lifts Pillow's own limit, which can't be told from damage and is the whole process's."""
  with _OPENING:
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
      yield
    finally:
      Image.MAX_IMAGE_PIXELS = theirs


def _orientation(image: Image.Image) -> int:
  """Orientation by an image's EXIF data; 1 if there is none."""
  orientation = image.getexif().get(_ORIENTATION, 1)
  return orientation if orientation in range(1, 9) else 1


def _is_damaged(exif: bytes) -> bool:
  """Whether the list of tags, the orientation among them, isn't there as a whole."""
  tags = exif.removeprefix(b"Exif\0\0")
  orders: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
  order = orders.get(tags[:4])
  if order is None:
    return bool(tags)
  start = int.from_bytes(tags[4:8], order)
  count = int.from_bytes(tags[start : start + 2], order)
  return start + 2 + 12 * count > len(tags)


def _check_frames(image: Any, where: Path | str) -> None:
  """Refuses animations and stacks: which frame belongs to the mask can't be known."""
  frames = 1 if image.format in _FIRST_COUNTS else getattr(image, "n_frames", 1)
  if frames > 1 and image.format == "TIFF":
    smaller = 0
    for page in range(1, frames):
      image.seek(page)
      smaller += bool(image.tag_v2.get(_SUBFILE, 0) & 5)  # a reduced copy, or a transparency mask
    frames -= smaller
    image.seek(0)
  if frames > 1:
    noun = "page" if image.format == "TIFF" else "frame"
    fix = f"Save each {noun} as a file of its own, or the one that is meant"
    raise FileError("layout", where, f"holds {frames} {noun}s", fix)


def _check_bands(image: Any, where: Path | str) -> None:
  """Refuses bands that Pillow drops, such as near infrared as the fourth."""
  if image.format != "TIFF":
    return
  extra = image.tag_v2.get(_EXTRA_SAMPLES, ())
  if 0 in (extra if isinstance(extra, tuple) else (extra,)):
    bands, used = image.tag_v2.get(_SAMPLES, 0), len(image.getbands())
    raise FileError(
      "layout",
      where,
      f"has {bands} bands, of which {used} would be used",
      "Save the bands that the network is to see as an RGB or a gray image",
    )


def _unreadable(data: bytes, where: Path | str, error: Exception) -> FileError:
  if not data:
    return FileError("unreadable", where, "the file is empty", _RESTORE)
  for place, start, what, fix in _OTHERS:
    if data[place : place + len(start)] == start:
      return FileError("unreadable", where, f"is {what}", fix)
  if data[:4] in _TIFF and (text := _tiff_layout(io.BytesIO(data))):
    fix = "Save it as a TIFF or PNG of 8 bits with 1 or 3 channels"
    return FileError(
      "layout", where, f"is damaged, or a TIFF of a kind that isn't read: {text}", fix
    )
  reason = " ".join(str(error).split()) or type(error).__name__
  if isinstance(error, UnidentifiedImageError):
    reason = f"it begins with {data[:8]!r}"
  return FileError("unreadable", where, f"damaged or no image ({reason})", _RESTORE)


def _tiff_layout(stream: BinaryIO) -> str:
  """Bands and bits of a TIFF that Pillow can't decode; "" if not even they can be read."""
  try:
    stream.seek(0)
    tags = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
    stream.seek(tags.next)
    tags.load(stream)
    bits = tags.get(_BITS, (1,))
    return f"{tags.get(_SAMPLES, 1)} band(s) of {', '.join(map(str, {*bits}))} bits"
  except Exception:  # Anything may be broken in a damaged file.
    return ""


def _depth(image: Any, data: bytes, tile: object) -> int:
  """Bits per channel as stored."""
  match image.format:
    case "PNG":
      return data[24]
    case "TIFF":
      return max(image.tag_v2.get(_BITS, (1,)))
    case "PPM" if isinstance(tile, tuple) and image.mode == "RGB":
      return 16 if tile[1] > 255 else 8
    case "SGI":
      return 8 * data[3]
    case "JPEG2000":
      at = data.find(_SIZ)  # the bits of the first component follow at 42
      return (data[at + 42] & 127) + 1 if at >= 0 else 8
    case "AVIF":
      at = data.find(b"av1C")
      return 8 if at < 0 or not data[at + 6] & 64 else 12 if data[at + 6] & 32 else 10
  return {"1": 1, "I": 16, "F": 32}.get(image.mode[0], 8)
