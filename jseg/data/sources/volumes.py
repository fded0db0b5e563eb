"""`volumes`: three-dimensional scans and their masks as NIfTI files, in the layout of `folder`.

ROOT/classes.json                           ROOT/classes.json
ROOT/{train,val,test}/images/NAME.nii.gz    ROOT/images/NAME.nii.gz
ROOT/{train,val,test}/masks/NAME.nii.gz     ROOT/masks/NAME.nii.gz    (split at random)

The channels of an image are the fourth axis of its file, or files of their own: NAME_0000.nii.gz,
NAME_0001.nii.gz and so on for the mask NAME.nii.gz, as nnU-Net calls them.

For the order of the axes see `jseg.data.files.nifti`. Masks that are annotated in a few slices only
hold the ignore label elsewhere.

Voxels are used on the grid they are stored on, unless a `spacing` is given.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from jseg.arithmetic import count_bytes
from jseg.data.files import FileError, masks
from jseg.data.files.channels import distance, read_channels
from jseg.data.files.listing import IMAGE_SUFFIXES, NIFTI_SUFFIXES
from jseg.data.files.nifti import (
  Volume,
  read_mask_file,
  size_text,
  volume_shape,
)
from jseg.data.files.preparation import NORMALIZED, VolumePreparation, resample
from jseg.data.sources.base import Example, ListedSource
from jseg.data.sources.folder import Layout, count_images, holds_volumes, read_folder
from jseg.data.sources.pairs import FilePair
from jseg.types import IGNORE, InputError


def volumes_source(
  root: str | Path,
  fractions: Mapping[str, float] | None = None,
  seed: int = 0,
  window: Sequence[float] = (),
  percentiles: Sequence[float] = (),
  spacing: Sequence[float] = (),
  interpolation: str = "linear",
  intensities: Sequence[Sequence[float]] = (),
) -> ListedSource:
  """Reads a folder of volumes and masks.

  Args:
    root: the folder.
    fractions: shares of the splits; see `folder_source`.
    seed: seed of the random split.
    window: (level, width) that values are clipped to, as the following in `VolumePreparation`.
    percentiles: (low, high), percentiles of each volume that values are clipped to.
    spacing: millimeters between voxels along d, h and w that volumes are resampled to.
    interpolation: "linear", "cubic" or "nnunet".
    intensities: (low, high, mean, deviation) of each channel, by which values are clipped and
      normalized.

  Raises:
    InputError: the folder, its classes or its layout are missing, nibabel is, or a value is
      impossible.
  """
  preparation = VolumePreparation(window, percentiles, spacing, interpolation, intensities)
  make_pair = functools.partial(VolumePair, preparation=preparation)
  layout = dataclasses.replace(VOLUMES, make_pair=make_pair)
  source = read_folder(root, layout, None, fractions, seed)
  if not any(source.splits.values()) and count_images(root, IMAGE_SUFFIXES):
    raise InputError(f'{root} holds images: give "folder" as data.name instead of "volumes"')
  problems = [*source.problems, *_odd_channels(source)]

  def digest() -> str:
    own = source.fingerprint()  # that of sets of before
    return own if preparation.is_default else f"{own} {preparation.text}"

  return dataclasses.replace(source, problems=problems, ndim=3, make_fingerprint=digest)


def matches(root: Path) -> bool:
  """Whether a folder is laid out like this."""
  return holds_volumes(root)


@dataclasses.dataclass(frozen=True, eq=False)
class VolumePair(FilePair[Volume, Volume]):
  """A volume and its mask; see `FilePair`.

  Attributes:
    preparation: what is done to both.
  """

  preparation: VolumePreparation = NORMALIZED

  def make_example(self, image: Volume, raw: Volume, label: masks.Label) -> Example:
    """Joins a volume and its mask, both prepared."""
    del raw
    # Half precision resolves a thousandth of a standard deviation, far below any scanner's noise.
    array = self.preparation.image(image).astype(np.float16)
    size = array.shape[:3]
    ids = resample(label.ids, size, 0)
    lengths = zip(image.size, image.spacing, size, strict=True)
    spacing = tuple(n * step / m for n, step, m in lengths)
    counts = count_bytes(ids)
    return Example(array, ids, size, counts, spacing=spacing)

  def read_image(self) -> Volume:
    """Reads the image. Raises FileError."""
    return read_channels((self.image, *self.others))

  def read_mask(self) -> Volume:
    """Reads the mask's raw values. Raises FileError."""
    return read_mask_file(self.mask)

  def check(self, image: Volume, raw: Volume) -> None:
    """Raises FileError if an image and its raw mask do not cover each other."""
    fix = "Resample the mask onto the grid of its image, by nearest neighbor"
    if image.size != raw.size:
      sizes = f"{size_text(raw.size)}, but its image {self.image} is {size_text(image.size)}"
      raise FileError("size", self.mask, sizes, fix)
    # Files round their affines; up to half a voxel, each voxel still is its own nearest.
    if (off := distance(image, raw)) > 0.5:
      problem = f"its affine places it {off:.3g} voxels away from its image {self.image}"
      raise FileError("size", self.mask, problem, f"{fix}, or give it the image's affine")

  def make_label(self, raw: Volume) -> masks.Label:
    """Translates a raw mask to train ids. Raises FileError."""
    values = masks.whole_numbers(raw.array, self.mask, raw.step)
    if values.dtype.kind == "f":
      values = np.clip(values, -1, 2**30)
    # `make_label` takes three axes for colors.
    flat = values.reshape(len(values), -1).astype(np.int32)
    label = masks.make_label(masks.RawMask(flat), self.classes, self.table, self.mask)
    return masks.Label(label.ids.reshape(raw.size), label.values.reshape(raw.size))


def foreground_intensities(
  root: str | Path, split: str = "train", voxels: int = 2**16
) -> tuple[tuple[float, float, float, float], ...]:
  """The intensities of a folder's foreground, which is what isn't of the first class or void.

  They are nnU-Net's for CT: the percentiles .5 and 99.5, mean and standard deviation of all
  scans together, of which each has the same weight. nnU-Net draws 10^8 voxels at random in all.

  Args:
    root: the folder, as for `volumes_source`.
    split: the split that they are of.
    voxels: how many of each scan are taken, evenly spaced.

  Returns:
    (low, high, mean, deviation) of each channel, for `intensities` in `VolumePreparation`.

  Raises:
    InputError: the folder, the split or a file is wrong, or there is no foreground.
  """
  source = volumes_source(root)
  if split not in source.splits:
    raise InputError(f"{root} has no split {split!r}; it has {', '.join(source.splits)}")
  samples = []
  for pair in cast(Iterable[VolumePair], source.splits[split]):
    image, raw = pair.read_image(), pair.read_mask()
    pair.check(image, raw)
    ids = pair.make_label(raw).ids
    values = image.array[(ids > 0) & (ids != IGNORE)]
    if len(values):
      samples.append(values[np.linspace(0, len(values) - 1, voxels).round().astype(int)])
  if not samples:
    raise InputError(f"{root}: no scan of {split} has a voxel of another class than the first")
  sample = np.concatenate(samples).astype(np.float64)
  low, high = np.percentile(sample, (0.5, 99.5), axis=0)
  columns = zip(low, high, sample.mean(0), sample.std(0), strict=True)
  return tuple((_short(a), _short(b), _short(c), _short(d)) for a, b, c, d in columns)


def _short(value: float) -> float:
  """In five digits, which are enough, and can be written down."""
  return float(f"{value:.5g}")


VOLUMES = Layout(NIFTI_SUFFIXES, VolumePair, ("semantic", "semantic3d"), channels=True)


def _odd_channels(source: ListedSource) -> list[FileError]:
  """Images with another number of channels than most; reads headers only."""
  found: dict[Path, int] = {}
  for pair in cast(Iterable[VolumePair], itertools.chain(*source.splits.values())):
    with contextlib.suppress(FileError):  # it is reported when it is read
      files = (pair.image, *pair.others)
      found[pair.image] = sum(math.prod(volume_shape(path)[3:]) for path in files)
  if len(set(found.values())) < 2:
    return []
  usual = collections.Counter(found.values()).most_common(1)[0][0]
  fix = "Give all images the same channels in the same order, or remove it with its mask"
  return [
    FileError("layout", path, f"has {count} channels, but most images have {usual}", fix)
    for path, count in found.items()
    if count != usual
  ]
