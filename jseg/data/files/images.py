"""Image files: any common format in; 8-bit RGB or gray, upright, out.

Preparation, `check_folder` and prediction all read through here.
"""

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from jseg.data.files import FileError, read_bytes
from jseg.types import InputError

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _SAMPLES, _EXTRA_SAMPLES = 258, 277, 338
# Pillow's own limit can't be told from damage, and no setting changes it.
Image.MAX_IMAGE_PIXELS = None
LIMIT_VARIABLE = "JSEG_MAX_IMAGE_PIXELS"
_LIMIT = 2**28


@dataclasses.dataclass(frozen=True)
class CanonicalImage:
  """An image file brought to canonical form.

  Attributes:
    data: encoded bytes; the file's own, if they were canonical already.
    size: (height, width), upright.
    rotated: an EXIF orientation was applied.
  """

  data: bytes
  size: tuple[int, int]
  rotated: bool


def read_image(path: Path | str) -> np.ndarray:
  """Reads any image file as training would see it: upright, alpha dropped.

  Args:
    path: an image file.

  Returns:
    uint8 [h w 3], or [h w 1] for gray images.

  Raises:
    FileError: the file is unreadable or has more than 8 bits per channel.
  """
  return decode_image(canonical_image(read_bytes(Path(path)), path).data)


def decode_image(data: bytes) -> np.ndarray:
  """Decodes a canonical image: uint8 [h w 3] RGB or [h w 1] gray."""
  image = decode_raw(data)
  return image[..., None] if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_raw(data: bytes) -> np.ndarray:
  """Decodes canonical bytes as OpenCV does: [h w], or [h w 3] in the order blue, green, red."""
  array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  assert array is not None
  return np.asarray(array)


def encode_png(array: np.ndarray) -> bytes:
  """Encodes uint8 [h w], [h w 1] or [h w 3] (RGB), or uint16 [h w], as PNG."""
  if array.ndim == 3 and array.shape[2] == 3:
    array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
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
    FileError: the image is damaged, or deeper than 8 bits.
  """
  image = open_checked(data, where)
  if image.mode[0] in "IF" or _depth(image, data) > 8:
    raise FileError(
      "depth",
      where,
      f"{max(16, _depth(image, data))} bits per channel, but images have 8",
      "Convert it with the scaling that suits its sensor, for instance "
      "(image.clip(low, high) - low) * 255 / (high - low) with low and high fixed for all images",
    )
  rotated = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
  keep = (
    image.format in ("JPEG", "PNG")
    and image.mode in ("L", "RGB")
    and _depth(image, data) == 8
    and "transparency" not in image.info
    and not rotated
  )
  if keep:
    return CanonicalImage(data, (image.height, image.width), rotated)
  if rotated:
    image = ImageOps.exif_transpose(image)
  gray = image.mode in ("1", "L", "LA", "La")
  if gray:
    array = np.asarray(image.convert("LA").getchannel(0))
  else:
    alpha = "transparency" in image.info  # Pillow warns when a palette's alpha is not spelled out
    array = np.asarray((image.convert("RGBA") if alpha else image).convert("RGB"))
  return CanonicalImage(encode_png(array), (image.height, image.width), rotated)


def open_checked(data: bytes, where: Path | str) -> Image.Image:
  """Opens and fully decodes an image or mask with Pillow.

  Raises:
    FileError: the file is damaged, no image, or has several pages.
  """
  try:
    image = Image.open(io.BytesIO(data))
    _check_limit(image, where)
    image.load()
  except InputError:
    raise
  except Exception as error:  # Pillow raises whatever a damaged file happens to break.
    raise FileError(
      "unreadable",
      where,
      f"damaged or no image ({error or type(error).__name__})" if data else "the file is empty",
      "Restore it from its origin, or remove it together with its partner",
    ) from error
  _check_parts(image, where)
  return image


def _check_limit(image: Image.Image, where: Path | str) -> None:
  given, pixels = os.environ.get(LIMIT_VARIABLE, ""), image.width * image.height
  if given and not given.isdecimal():
    raise InputError(f"{LIMIT_VARIABLE}: {given!r} must be a number of pixels")
  if pixels > (limit := int(given or _LIMIT)):
    raise FileError(
      "size",
      where,
      f"{image.width} wide x {image.height} high are {pixels:,} pixels, and the limit is {limit:,}",
      f"Cut or shrink it, or set {LIMIT_VARIABLE} in the environment",
    )


def _check_parts(image: Any, where: Path | str) -> None:
  """Refuses several frames or pages, and bands that Pillow would drop."""
  frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
  if frames > 1:
    noun = "page" if image.format == "TIFF" else "frame"
    fix = f"Save each {noun} as a file of its own, or the one that is meant"
    raise FileError("layout", where, f"holds {frames} {noun}s", fix)
  if image.format == "TIFF" and 0 in image.tag_v2.get(_EXTRA_SAMPLES, ()):
    bands, used = image.tag_v2.get(_SAMPLES, 0), len(image.getbands())
    fix = "Save the bands that the network is to see as an RGB or a gray image"
    raise FileError("layout", where, f"has {bands} bands, of which {used} would be used", fix)


def _depth(image: Image.Image, data: bytes) -> int:
  """Bits per channel as stored; Pillow itself truncates 16-bit color without a word."""
  if image.format == "PNG":
    return data[24]
  if image.format == "TIFF":
    return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))  # type: ignore[attr-defined]
  return 8
