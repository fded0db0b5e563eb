"""NIfTI files: volumes in canonical orientation, read and written.

NIfTI's axes x, y, z are first brought to the order right, anterior, superior (RAS+) and then
reversed: arrays are [d h w c] = [z y x c], so that d runs from the feet to the head, h from the
back to the front, and w from the patient's left to the right. A fourth axis of an image holds its
channels, such as the sequences of one examination.
"""

import contextlib
import dataclasses
import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

import numpy as np

from jseg.data.files import FileError
from jseg.data.files.limits import check_values
from jseg.install import install_line
from jseg.types import InputError

_HEADER = 540  # bytes of the longer of NIfTI's headers
_MOST_BEFORE = 64 << 20  # bytes of extensions before the voxels
_DEFLATE = 1032  # how much a byte can stand for in gzip's format


@dataclasses.dataclass(frozen=True)
class Volume:
  """The content of a NIfTI file in canonical orientation.

  Attributes:
    array: float32 [d h w c] of an image; of a mask [d h w], integers of 8 or 16 bits or float64; as
      stored, not normalized.
    affine: float [4 4], from (x, y, z) in voxels to RAS+ in millimeters.
    step: distance of the values that the file can hold, where its header scales integers; else 0.
  """

  array: np.ndarray
  affine: np.ndarray
  step: float = 0.0

  @property
  def size(self) -> tuple[int, int, int]:
    """(depth, height, width)."""
    depth, height, width = self.array.shape[:3]
    return depth, height, width

  @property
  def spacing(self) -> tuple[float, float, float]:
    """Millimeters between voxels along d, h and w."""
    x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
    return z, y, x


@dataclasses.dataclass(frozen=True)
class _Beginning:
  """What a header says.

  Attributes:
    kind: nibabel's class of the image.
    start: the first bytes of the file.
    shape: shape of the array.
    size: bytes of the file, up to the last voxel.
  """

  kind: Any
  start: bytes
  shape: tuple[int, ...]
  size: int


def flatten_volume(image: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
  """Makes a picture of an image and its masks: of a volume, the middle slice with its front up.

  Args:
    image: uint8 [h w c], or a volume, float [d h w c], of which the first channel is shown.
    *masks: [h w] or [d h w].

  Returns:
    Images and their masks as they are; else uint8 [h w 1], black and white being half a percent of
    the slice's voxels, and the masks [h w].
  """
  if image.ndim == 3:
    return image, *masks
  middle = len(image) // 2
  # Rows of a volume run from back to front, rows of a picture downwards.
  picture, *flat = (a[middle, ::-1] for a in (image[..., :1], *masks))
  picture = picture.astype(np.float32)
  low, high = np.percentile(picture, (0.5, 99.5))
  picture = (picture - low) * 255 / max(high - low, 1e-3)
  return picture.clip(0, 255).astype(np.uint8), *flat


def import_nibabel() -> ModuleType:
  """Imports nibabel. Raises InputError that says how to install it."""
  try:
    import nibabel
  except ImportError as error:
    raise InputError(
      f"volumes are read by nibabel, which is not installed: {install_line('volumes')}"
    ) from error
  return nibabel


def read_image_file(path: Path) -> Volume:
  """Reads an image as it is stored: an array [d h w c]. Raises FileError."""
  image = _read(path, channels=True)
  if broken := image.array.size - np.isfinite(image.array).sum():
    raise FileError(
      "values",
      path,
      f"{broken} values are infinite or no number",
      "Replace them, for instance by numpy.nan_to_num",
    )
  return image


def read_mask_file(path: Path) -> Volume:
  """Reads a mask's raw values: an array [d h w]. Raises FileError."""
  return _read(path, channels=False)


def volume_shape(path: Path) -> tuple[int, ...]:
  """Shape of a NIfTI file's array, of which nothing but the header is read.

  Raises:
    FileError: there is no such header, or it says that the array is empty or beyond the limit.
  """
  with _naming(path), _open(path) as stream:
    return _begin(stream, path).shape


def _read(path: Path, channels: bool) -> Volume:
  """Reads a file; images have channels, masks have not."""
  nibabel = import_nibabel()
  with _naming(path), np.errstate(all="ignore"):
    with _open(path) as stream:
      begin = _begin(stream, path)
      # No more of it than the header speaks of, however much there is.
      rest = max(begin.size - len(begin.start), 0)
      file = begin.kind.from_bytes(begin.start + stream.read(rest))
    _check_kind(file.get_data_dtype(), path)
    affine, scale, stored = file.affine, file.dataobj, file.get_data_dtype()
    scaled = stored.kind in "iu" and (scale.slope, scale.inter) != (1, 0)
    # Floats hold what any file can say of a label, but eight times the memory of most.
    small = stored.kind in "iu" and stored.itemsize <= 2 and not scaled
    exact = stored.newbyteorder("=") if small else np.dtype(np.float64)
    array = np.asarray(file.dataobj, np.float32 if channels else exact)
    if array.ndim == 5 and array.shape[3] == 1:  # NIfTI's vectors: the fourth axis is time
      array = array[:, :, :, 0]
    if array.ndim == 4 and array.shape[3] == 1:
      array = array[..., 0]
    if array.ndim not in ((3, 4) if channels else (3,)):
      rule = "An image has 3 axes, or 4 with the channels last" if channels else "A mask has 3 axes"
      raise FileError("layout", path, f"is an array of shape {array.shape}", rule)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0):
      fix = "Save it again with the affine of its scan, or with numpy.eye(4)"
      raise FileError("size", path, "its affine has no inverse", fix)
    file = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    array = np.asarray(file.dataobj)
  array = array.transpose(2, 1, 0, *range(3, array.ndim))
  array = array[..., None] if channels and array.ndim == 3 else array
  return Volume(array, file.affine, abs(scale.slope) if scaled else 0.0)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
  """Turns whatever a damaged file happens to break into a FileError."""
  try:
    yield
  except InputError:
    raise
  except MemoryError:
    raise FileError("size", path, "there is not enough memory for it", "Cut it") from None
  except Exception as error:
    if isinstance(error, OSError) and error.strerror:
      fix = "Check the path and its permissions"
      raise FileError("unreadable", path, error.strerror, fix) from error
    reason = " ".join(str(error).split()) or type(error).__name__
    raise FileError(
      "unreadable",
      path,
      f"damaged or no NIfTI file ({reason})",
      "Restore it from its origin, or remove it together with its partner",
    ) from error


def _open(path: Path) -> IO[bytes]:
  return cast(IO[bytes], gzip.open(path)) if _packed(path) else path.open("rb")


def _packed(path: Path) -> bool:
  return path.name.lower().endswith(".gz")


def _begin(stream: IO[bytes], path: Path) -> _Beginning:
  """Reads a header, and refuses what it can't be true of. Raises FileError or ValueError."""
  nibabel = import_nibabel()
  start = stream.read(_HEADER)
  kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
  kind = next((k for k in kinds if k.header_class.may_contain_header(start)), None)
  if kind is None:
    raise ValueError(f"it begins with {start[:8]!r}" if start else "it is empty")
  header = kind.header_class(start[: kind.header_class.template_dtype.itemsize], check=False)
  shape, offset = tuple(map(int, header.get_data_shape())), header["vox_offset"].item()
  if not shape or min(shape) < 1:
    problem = f"is an array of shape {shape}, which is empty"
    raise FileError("layout", path, problem, "Save it again from its origin")
  check_values(shape, path)
  size = math.prod(shape) * header.get_data_dtype().itemsize
  if not 0 <= offset < _MOST_BEFORE:
    raise ValueError(f"its voxels begin at byte {offset:g}")
  if offset + size > path.stat().st_size * (_DEFLATE if _packed(path) else 1):
    raise ValueError(f"it is too short for {size:,} bytes of voxels")
  return _Beginning(kind, start, shape, int(offset) + size)


def _check_kind(dtype: np.dtype, path: Path) -> None:
  """Refuses voxels that aren't one real number."""
  if dtype.names is not None:
    raise FileError(
      "values",
      path,
      f"its voxels are colors ({''.join(dtype.names)}, {8 * dtype.itemsize} bits) and no numbers",
      "Save them as a fourth axis or one gray value a voxel; of a mask, class numbers",
    )
  if dtype.kind not in "iuf":
    problem = f"its voxels are of type {dtype}, which is no real number"
    raise FileError("values", path, problem, "Save their magnitude, or another real number")


def normalize_volume(image: np.ndarray) -> np.ndarray:
  """Brings each channel to mean 0 and variance 1 over all voxels; a constant one becomes 0."""
  axes = (0, 1, 2)
  mean, deviation = image.mean(axes, np.float64), image.std(axes, np.float64)
  constant = image.min(axes) == image.max(axes)
  scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
  result = image - mean.astype(np.float32)
  result *= scale.astype(np.float32)
  return result.astype(np.float32, copy=False)


def size_text(size: tuple[int, ...]) -> str:
  """Says a size (depth, height, width) in words."""
  return f"{size[2]} wide x {size[1]} high x {size[0]} deep"
