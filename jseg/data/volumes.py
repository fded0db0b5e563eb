"""`volumes`: three-dimensional scans and their masks as NIfTI files, in the layout of `folder`.

ROOT/classes.json                           ROOT/classes.json
ROOT/{train,val,test}/images/NAME.nii.gz    ROOT/images/NAME.nii.gz
ROOT/{train,val,test}/masks/NAME.nii.gz     ROOT/masks/NAME.nii.gz    (split at random)

NIfTI's axes x, y, z are first brought to the order right, anterior, superior (RAS+) and then
reversed: arrays are [d h w c] = [z y x c], so that d runs from the feet to the head, h from the
back to the front, and w from the patient's left to the right. A fourth axis of an image holds its
channels, such as the sequences of one examination. Masks that are annotated in a few slices only
hold the ignore label elsewhere.

Voxels are used as they are stored: scans of very different spacing should be resampled beforehand.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from jseg.data import masks
from jseg.data.classes import ClassInfo
from jseg.data.files import NIFTI_SUFFIXES, FileError
from jseg.data.folder import paired_folder
from jseg.data.source import Example, Source
from jseg.types import InputError


def volumes_source(
  root: str | Path, fractions: Mapping[str, float] | None = None, seed: int = 0
) -> Source:
  """A folder of volumes and masks.

  Args:
    root: the folder.
    fractions: see `folder_source`.
    seed: of the split by fractions.

  Raises:
    InputError: if the folder, its classes or its layout are missing, or nibabel is.
  """
  tasks = ("semantic", "semantic3d")
  source = paired_folder(root, fractions, seed, NIFTI_SUFFIXES, VolumePair, tasks)
  problems = [*source.problems, *_odd_channels(source)]
  return dataclasses.replace(source, problems=problems, ndim=3)


@dataclasses.dataclass(frozen=True)
class Volume:
  """The content of a NIfTI file in canonical orientation.

  Attributes:
    array: float32 [d h w c] of an image, [d h w] of a mask; as stored, not normalised.
    affine: float [4 4], from (x, y, z) in voxels to RAS+ in millimetres.
  """

  array: np.ndarray
  affine: np.ndarray

  @property
  def size(self) -> tuple[int, int, int]:
    """(depth, height, width)."""
    depth, height, width = self.array.shape[:3]
    return depth, height, width


@dataclasses.dataclass(frozen=True)
class VolumePair:
  """A volume and its mask; see `Pair`, its counterpart for images."""

  name: str
  image: Path
  mask: Path
  classes: ClassInfo
  table: np.ndarray = dataclasses.field(repr=False)

  def load(self) -> Example:
    """Reads, checks, canonicalises and normalises both files.

    Raises:
      FileError: naming the file at fault.
    """
    image, raw = self.read_image(), self.read_mask()
    self.check(image, raw)
    label = self.make_label(raw)
    counts = np.bincount(label.ravel(), minlength=256)
    # Half precision resolves a thousandth of a standard deviation, far below any scanner's noise.
    return Example(_normalize(image.array).astype(np.float16), label, image.size, counts)

  def read_image(self) -> Volume:
    """The image. Raises FileError."""
    return _read_image(self.image)

  def read_mask(self) -> Volume:
    """The mask's raw values. Raises FileError."""
    return _read(self.mask, channels=False)

  def check(self, image: Volume, raw: Volume) -> None:
    """Raises FileError if an image and its raw mask do not cover each other."""
    fix = "Resample the mask onto the grid of its image, by nearest neighbour"
    if image.size != raw.size:
      sizes = f"{_size(raw.size)}, but its image {self.image} is {_size(image.size)}"
      raise FileError("size", self.mask, sizes, fix)
    last = np.array(image.size[::-1]) - 1
    corners = np.indices((2, 2, 2)).reshape(3, 8) * last[:, None]
    moved = np.linalg.solve(image.affine, raw.affine) @ np.vstack([corners, np.ones(8)])
    # Files round their affines; up to half a voxel, each voxel still is its own nearest.
    if (off := np.abs(moved[:3] - corners).max()) > 0.5:
      problem = f"its affine places it {off:.3g} voxels away from its image {self.image}"
      raise FileError("size", self.mask, problem, f"{fix}, or give it the image's affine")

  def make_label(self, raw: Volume) -> np.ndarray:
    """Train ids of a raw mask: uint8 [d h w]. Raises FileError."""
    if (broken := raw.array % 1 != 0).any():
      raise FileError(
        "values",
        self.mask,
        f"value {raw.array[broken][0]:g} is no whole number ({broken.sum()} voxels are not)",
        "A mask holds class values: resample masks by nearest neighbour",
      )
    # `make_label` takes three axes for colours.
    flat = raw.array.reshape(len(raw.array), -1).astype(np.int32)
    label = masks.make_label(flat, self.classes, self.table, self.mask)
    return label.reshape(raw.size)


def read_volume(path: Path | str) -> np.ndarray:
  """Reads a NIfTI image as training would see it.

  Args:
    path: a .nii or .nii.gz file.

  Returns:
    float32 [d h w c] in canonical orientation, each channel of mean 0 and variance 1.

  Raises:
    FileError: if it is unreadable.
    InputError: if nibabel is missing.
  """
  return _normalize(_read_image(Path(path)).array)


def write_mask(path: Path | str, mask: np.ndarray, like: Path | str) -> None:
  """Writes a mask as NIfTI, in the orientation and with the affine of the image it belongs to.

  Args:
    path: of the file to write; .nii.gz is compressed.
    mask: uint8 [d h w] in canonical orientation, such as a prediction for `read_volume(like)`.
    like: path of that image.

  Raises:
    InputError: if mask and image differ in size, or nibabel is missing.
  """
  nibabel = _nibabel()
  image = nibabel.load(like)
  stored, canonical = map(nibabel.io_orientation, (image.affine, np.eye(4)))
  axes = nibabel.orientations.ornt_transform(canonical, stored)
  array = nibabel.apply_orientation(mask.transpose(2, 1, 0), axes)
  if array.shape != image.shape[:3]:
    raise InputError(
      f"a mask of {_size(mask.shape)} is not for {like}: give the prediction for that image"
    )
  nibabel.save(nibabel.Nifti1Image(array, image.affine), path)


def flatten_volume(image: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
  """A picture of an image and its masks: of a volume, the middle slice with its front up.

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


def _nibabel() -> Any:
  try:
    import nibabel
  except ImportError as error:
    raise InputError(
      'volumes are read by nibabel, which is not installed: pip install "jaxseg[volumes]"'
    ) from error
  return nibabel


def _read_image(path: Path) -> Volume:
  image = _read(path, channels=True)
  if broken := image.array.size - np.isfinite(image.array).sum():
    raise FileError(
      "values",
      path,
      f"{broken} values are infinite or no number",
      "Replace them, for instance by numpy.nan_to_num",
    )
  return image


def _read(path: Path, channels: bool) -> Volume:
  """Reads a file; images have channels, masks have not."""
  nibabel = _nibabel()
  try:
    file = nibabel.load(path)
    array, affine = np.asarray(file.dataobj, np.float32), file.affine
  except Exception as error:  # nibabel raises whatever a damaged file happens to break.
    raise FileError(
      "unreadable",
      path,
      f"damaged or no NIfTI file ({error or type(error).__name__})",
      "Restore it from its origin, or remove it together with its partner",
    ) from error
  if array.ndim == 5 and array.shape[3] == 1:  # NIfTI's vectors: the fourth axis is time
    array = array[:, :, :, 0]
  if array.ndim == 4 and array.shape[3] == 1:
    array = array[..., 0]
  if array.ndim not in ((3, 4) if channels else (3,)):
    rule = "An image has 3 axes, or 4 with the channels last" if channels else "A mask has 3 axes"
    raise FileError("layout", path, f"is an array of shape {array.shape}", rule)
  if not abs(np.linalg.det(affine[:3, :3])) > 0:
    fix = "Save it again with the affine of its scan, or with numpy.eye(4)"
    raise FileError("size", path, "its affine has no inverse", fix)
  file = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
  array = np.asarray(file.dataobj)
  array = array.transpose(2, 1, 0, *range(3, array.ndim))
  return Volume(array[..., None] if channels and array.ndim == 3 else array, file.affine)


def _normalize(image: np.ndarray) -> np.ndarray:
  """Brings each channel to mean 0 and variance 1 over all voxels; a constant one becomes 0."""
  axes = (0, 1, 2)
  mean, deviation = image.mean(axes, np.float64), image.std(axes, np.float64)
  constant = image.min(axes) == image.max(axes)
  scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
  return ((image - mean.astype(np.float32)) * scale.astype(np.float32)).astype(np.float32)


def _odd_channels(source: Source) -> list[FileError]:
  """Images with another number of channels than most; reads headers only."""
  nibabel = _nibabel()
  found: dict[Path, int] = {}
  for pair in cast(Iterable[VolumePair], itertools.chain(*source.splits.values())):
    try:
      found[pair.image] = int(np.prod(nibabel.load(pair.image).shape[3:]))
    except Exception:  # A damaged file is reported when it is read.
      continue
  if len(set(found.values())) < 2:
    return []
  usual = collections.Counter(found.values()).most_common(1)[0][0]
  fix = "Give all images the same channels in the same order, or remove it with its mask"
  return [
    FileError("layout", path, f"has {count} channels, but most images have {usual}", fix)
    for path, count in found.items()
    if count != usual
  ]


def _size(size: tuple[int, ...]) -> str:
  return f"{size[2]} wide x {size[1]} high x {size[0]} deep"
