"""Image files: any common format in; 8-bit RGB or gray, upright, out.

Preparation, `check_folder` and prediction all read through here.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from jseg.arithmetic import strips
from jseg.data.files import FileError, read_bytes
from jseg.data.files.opening import Opened, digest, image_strips, open_checked, palette
from jseg.data.files.rows import StoredImage


@dataclasses.dataclass(frozen=True)
class CanonicalImage:
  """An image file brought to canonical form.

  Attributes:
    data: encoded bytes; the file's own, if they were canonical already. Of a large TIFF, what reads
      its rows.
    size: (height, width), upright.
    orientation: EXIF's orientation, which was applied; 1 if there is none.
    exif_damaged: there is EXIF data that can't be read, so that it wasn't applied.
  """

  data: bytes | StoredImage
  size: tuple[int, int]
  orientation: int = 1
  exif_damaged: bool = False

  @property
  def rotated(self) -> bool:
    """Whether an EXIF orientation was applied."""
    return self.orientation > 1

  @property
  def hides_rotation(self) -> bool:
    """Whether it was, and left the size what it was, so that masks fit either way."""
    return self.rotated and (self.orientation < 5 or self.size[0] == self.size[1])


def read_image(path: Path | str) -> np.ndarray:
  """Reads any image file as training would see it: upright, alpha dropped.

  Args:
    path: an image file.

  Returns:
    uint8 [h w 3], or [h w 1] for gray images.

  Raises:
    FileError: the file is unreadable or has more than 8 bits per channel.
  """
  return _pixels(_open(read_bytes(Path(path)), path))


def decode_image(data: bytes) -> np.ndarray:
  """Decodes a canonical image: uint8 [h w 3] RGB or [h w 1] gray."""
  image = decode_raw(data)
  if image.ndim == 2:
    return image[..., None]
  for part in strips(image.shape[:2]):  # in place, as OpenCV makes a copy of all that it converts
    cv2.cvtColor(image[part], cv2.COLOR_BGR2RGB, dst=image[part])
  return image


def decode_raw(data: bytes) -> np.ndarray:
  """Decodes canonical bytes as OpenCV does: [h w], or [h w 3] in the order blue, green, red."""
  array = _decode(data)
  assert array is not None
  return array


def _decode(data: bytes) -> np.ndarray | None:
  """What OpenCV decodes; None if it can't."""
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except cv2.error:
    return None


def encode_png(array: np.ndarray) -> bytes:
  """Encodes uint8 [h w], [h w 1] or [h w 3] (RGB), or uint16 [h w], as PNG."""
  if array.ndim == 3 and array.shape[2] == 3:
    array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
  return _encode(array)


def _encode(array: np.ndarray) -> bytes:
  """Encodes what `encode_png` does, with colors in the order blue, green, red."""
  # Level 1 is several times faster than the default and costs a few per cent of size.
  done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
  assert done
  return data.tobytes()


def canonical_image(data: bytes, where: Path | str) -> CanonicalImage:
  """Brings an encoded image to canonical form; bytes that already are canonical are kept.

  Alpha is dropped, not blended: in scans and microscopy it is constant or meaningless, and the
  pixels under it are what the mask was drawn on. Sixteen bits are refused, because the right
  scaling to eight is a property of the sensor that nobody can guess from one image.

  Args:
    data: the file's bytes, in any format that Pillow reads.
    where: name of the file, for messages.

  Raises:
    FileError: the image is damaged, deeper than 8 bits, or refused by `open_checked`.
  """
  opened = _open(data, where)
  image, size = opened.image, opened.size
  common = (
    image.format in ("JPEG", "PNG")
    and image.mode in ("L", "RGB")
    and opened.depth == 8
    and "transparency" not in image.info
    and opened.orientation == 1
  )
  if common and _is_plain(data, image):
    content = data
  else:
    if common:
      opened = _open(data, where)
    del data  # where the caller has no use for it, its memory is needed
    content = _encode(_pixels(opened, backwards=True))
  return CanonicalImage(content, size, opened.orientation, opened.exif_damaged)


def _open(data: bytes, where: Path | str) -> Opened:
  """Opens an image of 8 bits per channel. Raises FileError."""
  opened = open_checked(data, where)
  image = opened.image
  if image.mode[0] in "IF" or opened.depth > 8:
    depth = max(16, opened.depth) if image.mode[0] in "IF" else opened.depth
    raise FileError(
      "depth",
      where,
      f"{depth} bits per channel, but images have 8",
      "Convert it with the scaling that suits its sensor, for instance "
      "(image.clip(low, high) - low) * 255 / (high - low) with low and high fixed for all images; "
      'or train on its numbers, with data.name "scientific" and data.scaling',
    )
  return opened


def _is_plain(data: bytes, image: Image.Image) -> bool:
  """Whether OpenCV, by which training reads it, sees in a file what Pillow sees.

  Args:
    data: the file's bytes.
    image: what Pillow sees; closed, as both would be nearly twice the memory.
  """
  kind, shape = image.format, (image.height, image.width, 3)[: 3 if image.mode == "RGB" else 2]
  # Decoders of JPEG may round in ways of their own.
  seen = None if kind == "JPEG" else digest(image)
  image.close()
  array = _decode(data) if kind == "JPEG" or _is_whole(data) else None
  if array is None or array.dtype != np.uint8 or array.shape != shape:
    return False
  if seen is None:
    return True
  found = hashlib.sha256()
  for part in strips(shape):
    found.update((array[part] if array.ndim == 2 else array[part, :, ::-1]).tobytes())
  return found.digest() == seen


def _is_whole(png: bytes) -> bool:
  """Whether all chunks of a PNG are there: OpenCV takes memory for what their lengths say."""
  place, name = 8, b""
  while name != b"IEND" and place + 12 <= len(png):
    name = png[place + 4 : place + 8]
    place += 12 + int.from_bytes(png[place : place + 4], "big")
  return name == b"IEND" and place <= len(png)


def _pixels(opened: Opened, *, backwards: bool = False) -> np.ndarray:
  """The pixels of an image without its alpha: uint8 [h w 3], or [h w 1] if it is gray.

  Args:
    opened: the image; closed, as both would be twice the memory of what comes after.
    backwards: whether colors are in the order blue, green, red.
  """
  image, size = opened.image, opened.size
  pixels = np.empty((*size, 1 if _is_gray(image) else 3), np.uint8)
  if image.mode == "P":
    colors = palette(image)[0][:, :: -1 if backwards else 1]
    # Colors are written from the front, and never reach an index that is still to be read.
    indices = pixels.reshape(-1)[2 * math.prod(size) :].reshape(size)
    stored = opened.stored(indices)
    for part, strip in image_strips(image):
      stored[part] = strip
    image.close()
    for part in strips(size):
      pixels[part] = colors[indices[part]]
    return pixels
  stored = opened.stored(pixels)
  for part, rows in _rows(image):
    stored[part] = rows[..., ::-1] if backwards else rows
  image.close()
  return pixels


def _rows(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
  """Strips of an image: which rows, and their `_pixels`."""
  alpha = "transparency" in image.info  # Pillow warns when a palette's alpha is not spelled out
  for part, rows in image_strips(image):
    if _is_gray(image):
      yield part, np.asarray(rows.convert("LA").getchannel(0))[..., None]
    else:
      yield part, np.asarray((rows.convert("RGBA") if alpha else rows).convert("RGB"))


def _is_gray(image: Image.Image) -> bool:
  return image.mode in ("1", "L", "LA", "La")
