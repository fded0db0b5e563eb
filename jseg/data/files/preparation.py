"""What is done to a volume before a network sees it: clipped, resampled, normalized."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import ndimage

from jseg.data.files.channels import channel_files, read_channels
from jseg.data.files.limits import most_values
from jseg.data.files.nifti import Volume, import_nibabel, normalize_volume, size_text
from jseg.types import InputError

_Value = TypeVar("_Value")

INTERPOLATIONS = ("linear", "cubic", "nnunet")
_ANISOTROPIC = 3  # times the closest voxels that slices lie apart, beyond which nnU-Net cubes none


@dataclasses.dataclass(frozen=True)
class VolumePreparation:
  """How the values and the grid of volumes are changed; by default only normalized.

  First values are clipped, by `window`, `percentiles` or `intensities`; then the grid is changed;
  then each channel is brought to mean 0 and variance 1, over the volume or by `intensities`.

  Attributes:
    window: (level, width) in the units of the file, such as Hounsfield units: values are clipped to
      level - width / 2 and level + width / 2; () is off.
    percentiles: (low, high) in [0, 100], such as (0.5, 99.5): the values of each channel are
      clipped to these percentiles of the volume; () is off.
    spacing: millimeters between voxels along d, h and w to which volumes are resampled, their masks
      by nearest neighbor; () leaves each on its own grid.
    interpolation: of resampled images, "linear", "cubic", or "nnunet" (see `resample_nnunet`).
      Nothing is filtered where voxels become fewer, as in nnU-Net.
    intensities: (low, high, mean, deviation) of each channel, the same for all volumes: values are
      clipped to low and high, the mean is subtracted, and they are divided by the deviation;
      nnU-Net's normalization of CT, if they are those of the data set's foreground
      (`jseg.data.foreground_intensities`); () is off.

  Raises:
    InputError: a value is impossible.
  """

  window: Sequence[float] = ()
  percentiles: Sequence[float] = ()
  spacing: Sequence[float] = ()
  interpolation: str = "linear"
  intensities: Sequence[Sequence[float]] = ()

  def __post_init__(self) -> None:
    if self.window and not (_are_numbers(self.window, 2) and self.window[1] > 0):
      raise InputError(
        f"window: {self.window!r} must be (level, width) with a width above 0, in the units of the "
        "files, as (40, 400)"
      )
    low_high = self.percentiles
    if low_high and not (_are_numbers(low_high, 2) and 0 <= low_high[0] < low_high[1] <= 100):
      raise InputError(
        f"percentiles: {low_high!r} must be (low, high) in ascending order from 0 to 100, as "
        "(0.5, 99.5)"
      )
    clips = [n for n in ("window", "percentiles", "intensities") if getattr(self, n)]
    if len(clips) > 1:
      raise InputError(f"{' and '.join(clips)} both clip the values; leave one out")
    if self.intensities and not _are_intensities(self.intensities):
      raise InputError(
        f"intensities: {self.intensities!r} must be (low, high, mean, deviation) for each channel, "
        "low below high and a deviation above 0, as ((-958, 327, 82.9, 136.9),)"
      )
    if self.spacing and not (_are_numbers(self.spacing, 3) and min(self.spacing) > 0):
      raise InputError(
        f"spacing: {self.spacing!r} must be three numbers above 0, millimeters between voxels "
        "along depth, height and width, as (3, 0.8, 0.8)"
      )
    if self.interpolation not in tuple(INTERPOLATIONS):
      raise InputError(
        f"interpolation: {self.interpolation!r} is unknown; choose from {', '.join(INTERPOLATIONS)}"
      )

  @property
  def is_default(self) -> bool:
    """Whether volumes are normalized alone; an interpolation without a spacing does nothing."""
    return not (self.window or self.percentiles or self.spacing or self.intensities)

  @property
  def text(self) -> str:
    """The same for the same preparation, whether its numbers are lists, whole or neither."""
    numbers = (self.window, self.percentiles, self.spacing, *self.intensities)
    return (
      f"{[[*map(float, each)] for each in numbers]} {self.interpolation if self.spacing else ''}"
    )

  def size(self, size: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Depth, height and width of a prepared volume, whole voxels as near to `spacing` as may be.

    Args:
      size: depth, height and width of the volume in the file.
      spacing: millimeters between its voxels.
    """
    if not self.spacing:
      return tuple(size)
    lengths = zip(size, spacing, self.spacing, strict=True)
    return tuple(max(1, round(n * old / new)) for n, old, new in lengths)

  def image(self, volume: Volume) -> np.ndarray:
    """Returns what the network sees of an image: float32 [d h w c].

    Raises:
      InputError: it has other channels than `intensities`, or would have too many voxels or none.
    """
    array = volume.array
    if self.spacing:
      self._check_spacing(volume)
    if self.window:
      level, width = self.window
      array = np.clip(array, level - width / 2, level + width / 2)
    elif self.percentiles:
      ends = np.percentile(array, self.percentiles, axis=(0, 1, 2)).astype(np.float32)
      array = np.clip(array, *ends)
    elif self.intensities:
      if len(self.intensities) != array.shape[-1]:
        raise InputError(
          f"intensities: {self.intensities!r} are of {len(self.intensities)} channel(s), and a "
          f"volume has {array.shape[-1]}; give four numbers for each"
        )
      low, high, mean, deviation = np.transpose(self.intensities).astype(np.float32)
      array = (np.clip(array, low, high) - mean) / deviation
    size = self.size(volume.size, volume.spacing)
    if math.prod(size) * array.shape[-1] > most_values():
      raise InputError(
        f"spacing: {self.spacing!r} makes {size_text(size)} of {size_text(volume.size)}, "
        f"and the limit is {most_values():,} values; choose larger distances, "
        "or raise data.max_pixels"
      )
    if size != volume.size:
      channels = [self._resample(array[..., c], size, volume) for c in range(array.shape[-1])]
      array = np.stack(channels, -1)
    array = array.astype(np.float32, copy=False)
    return array if self.intensities else normalize_volume(array)

  def _check_spacing(self, volume: Volume) -> None:
    lengths = [n * step for n, step in zip(volume.size, volume.spacing, strict=True)]
    short = [length < step / 2 for length, step in zip(lengths, self.spacing, strict=True)]
    # A single slice has no length to speak of.
    if any(n > 1 and too_short for n, too_short in zip(volume.size, short, strict=True)):
      raise InputError(
        f"spacing: {self.spacing!r} is more than twice as far as a volume reaches, "
        f"({', '.join(f'{length:g}' for length in lengths)}) millimeters; choose smaller distances"
      )

  def _resample(self, channel: np.ndarray, size: Sequence[int], volume: Volume) -> np.ndarray:
    if self.interpolation == "nnunet":
      return resample_nnunet(channel, size, (volume.spacing, self.spacing))
    return resample(channel, size, {"linear": 1, "cubic": 3}[self.interpolation])


NORMALIZED = VolumePreparation()
"""Each channel has mean 0 and variance 1; nothing else is done."""


def read_volume(
  path: Path | str, preparation: VolumePreparation = NORMALIZED, *, join: bool = False
) -> np.ndarray:
  """Reads a NIfTI image as training would see it.

  Args:
    path: a .nii or .nii.gz file.
    preparation: what is done to it.
    join: whether NAME_0000 is the first of several channels, the others being the files NAME_0001
      and so on beside it.

  Returns:
    float32 [d h w c] in canonical orientation, each channel of mean 0 and variance 1.

  Raises:
    FileError: the file is unreadable.
    InputError: nibabel is missing.
  """
  path = Path(path)
  return preparation.image(read_channels(channel_files(path) if join else (path,)))


def write_mask(
  path: Path | str,
  mask: np.ndarray,
  like: Path | str,
  preparation: VolumePreparation = NORMALIZED,
) -> None:
  """Writes a mask as NIfTI, on the grid and with the affine of the image it belongs to.

  Args:
    path: file to write; .nii.gz is compressed.
    mask: uint8 [d h w] in canonical orientation, such as a prediction for `read_volume(like)`.
    like: path of the image that the mask belongs to.
    preparation: that of `read_volume`; a mask on another grid is brought back to the image's by
      nearest neighbor.

  Raises:
    InputError: mask and image differ in size, or nibabel is missing.
  """
  nibabel = import_nibabel()
  image = nibabel.load(like)
  axes = nibabel.io_orientation(image.affine)
  size, spacing = (
    _canonical(image.shape, axes),
    _canonical(nibabel.affines.voxel_sizes(image.affine), axes),
  )
  if mask.shape != preparation.size(size, spacing):
    raise InputError(
      f"a mask of {size_text(mask.shape)} is not for {like}: give the prediction for that image"
    )
  array = resample(mask, size, 0).transpose(2, 1, 0)
  back = nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), axes)
  nibabel.save(nibabel.Nifti1Image(nibabel.apply_orientation(array, back), image.affine), path)


def _canonical(values: Sequence[_Value], axes: np.ndarray) -> tuple[_Value, ...]:
  """Brings a value of each stored axis into the order d, h, w."""
  by_axis = {int(axis): value for axis, value in zip(axes[:, 0], values, strict=False)}
  return by_axis[2], by_axis[1], by_axis[0]


def resample(array: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
  """Brings a grid to another number of voxels that cover the same space.

  Args:
    array: [d h w] or [h w], of which the type is kept.
    size: sizes of the result.
    order: 0 for the nearest voxel, 1 for linear, 3 for cubic interpolation.
  """
  if array.shape == tuple(size):
    return array
  factors = [m / n for n, m in zip(array.shape, size, strict=True)]
  return ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)


def resample_nnunet(
  array: np.ndarray, size: Sequence[int], spacings: Sequence[Sequence[float]]
) -> np.ndarray:
  """Brings an image to another number of voxels as nnU-Net's default does.

  Cubic, and no value beyond those that there were. Where slices lie more than three times as far
  apart as voxels within them, before or else after, each slice is for itself, and along the axis
  across them the nearest one is taken (`resample_data_or_seg_to_shape` of nnunetv2).

  Args:
    array: float [d h w].
    size: depth, height and width of the result.
    spacings: (before, after), millimeters between voxels along d, h and w.
  """
  axis = _axis_of_slices(spacings)
  if axis is None:
    return _cubic(array, size)
  within = [n for i, n in enumerate(size) if i != axis]
  slices = np.stack([_cubic(each, within) for each in np.moveaxis(array, axis, 0)])
  return np.moveaxis(resample(slices, [size[axis], *within], 0), 0, axis)


def _axis_of_slices(spacings: Sequence[Sequence[float]]) -> int | None:
  """The axis across thick slices, by the first of the spacings that has such; None: none does."""
  for spacing in spacings:
    if max(spacing) > _ANISOTROPIC * min(spacing):
      coarse = [i for i, length in enumerate(spacing) if length == max(spacing)]
      return coarse[0] if len(coarse) == 1 else None
  return None


def _cubic(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
  return resample(array, size, 3).clip(array.min(), array.max())


def _are_intensities(values: object) -> bool:
  return isinstance(values, tuple | list) and all(
    _are_numbers(each, 4) and each[0] < each[1] and each[3] > 0 for each in values
  )


def _are_numbers(values: Sequence[float], count: int) -> bool:
  return (
    isinstance(values, tuple | list)
    and len(values) == count
    and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
  )
