"""What a source of data is to the builder: classes, and named examples by split."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jseg.data.classes import ClassInfo
from jseg.data.files import FileError, read_bytes
from jseg.data.images import CanonicalImage, canonical_image, encode_png
from jseg.data.instances import Objects, objects_from_ids
from jseg.data.masks import make_label, read_mask
from jseg.types import IGNORE


@dataclasses.dataclass(frozen=True)
class Example:
  """One prepared example.

  Attributes:
    image: encoded PNG or JPEG, RGB or grey, 8 bits, upright; of a volume, normalised float16
      [d h w c].
    label: encoded single-channel 8-bit PNG of train ids; of a volume, uint8 [d h w]; None where
      only objects are known.
    size: (height, width), or (depth, height, width).
    counts: int64 [256], pixels of each train id; counts[IGNORE] is void.
    objects: what is in the image one by one, if the set tells.
    notes: what was left out of it, and why.
  """

  image: bytes | np.ndarray
  label: bytes | np.ndarray | None
  size: tuple[int, ...]
  counts: np.ndarray
  objects: Objects | None = None
  notes: tuple[FileError, ...] = ()


class Item(Protocol):
  """An example that can be loaded."""

  @property
  def name(self) -> str:
    """Unique in the split."""

  def load(self) -> Example:
    """Reads and checks it; raises InputError that names what is wrong."""


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set before preparation.

  Attributes:
    classes: what the masks mean.
    splits: the items of each split, in order.
    fingerprint: computes a text that changes whenever the prepared data would.
    problems: what is wrong with the files as a whole (partners missing, empty splits); a source
      with problems can be inspected, not prepared.
    has_objects: its examples carry `objects`.
    has_labels: its examples carry `label`.
    ndim: 2 for images, 3 for volumes.
  """

  classes: ClassInfo
  splits: Mapping[str, Sequence[Item]]
  fingerprint: Callable[[], str]
  problems: Sequence[FileError] = ()
  has_objects: bool = False
  has_labels: bool = True
  ndim: int = 2


@dataclasses.dataclass(frozen=True)
class Pair:
  """An image file and its mask file.

  Attributes:
    name: unique in the split.
    image: path of the image.
    mask: path of the mask.
    classes: what the mask's values mean.
    table: lookup from raw value to train id, int16 [65536]; see `ClassInfo.table`.
  """

  name: str
  image: Path
  mask: Path
  classes: ClassInfo
  table: np.ndarray = dataclasses.field(repr=False)

  def load(self) -> Example:
    """Reads, checks and canonicalises both files.

    Raises:
      FileError: naming the file at fault.
    """
    image, raw = self.read_image(), self.read_mask()
    self.check(image, raw)
    return make_example(image, raw, self.classes, self.table, self.mask)

  def read_image(self) -> CanonicalImage:
    """The image. Raises FileError."""
    return canonical_image(read_bytes(self.image), self.image)

  def read_mask(self) -> np.ndarray:
    """The mask's raw values. Raises FileError."""
    return read_mask(read_bytes(self.mask), self.mask)

  def check(self, image: CanonicalImage, raw: np.ndarray) -> None:
    """Raises FileError if the image and its raw mask do not cover each other."""
    check_sizes(image, self.image, raw, self.mask)

  def make_label(self, raw: np.ndarray) -> np.ndarray:
    """Train ids of a raw mask: uint8 [h w]. Raises FileError."""
    return make_label(raw, self.classes, self.table, self.mask)


def check_sizes(
  image: CanonicalImage, image_name: Path | str, raw: np.ndarray, mask_name: Path | str
) -> None:
  """Raises FileError if an image and its raw mask do not cover each other."""
  if raw.shape[:2] == image.size:
    return
  turned = image.rotated and raw.shape[1::-1] == image.size
  fix = (
    "The image's EXIF rotation was applied; rotate the mask in the same way"
    if turned
    else "Save the mask at the size of its image (resize by nearest neighbour)"
  )
  sizes = f"{_size(raw.shape)}, but its image {image_name} is {_size(image.size)}"
  raise FileError("size", mask_name, sizes, fix)


def make_example(
  image: CanonicalImage,
  raw: np.ndarray,
  classes: ClassInfo,
  table: np.ndarray,
  where: Path | str,
) -> Example:
  """Joins an image and a raw mask of the same size to an example.

  Raises:
    FileError: see `make_label`.
  """
  label = make_label(raw, classes, table, where)
  counts = np.bincount(label.ravel(), minlength=256)
  objects = None
  if classes.instance:
    is_object = (label > 0) & (label < IGNORE)
    # Void may hide objects. Where there are several classes, it can't be said of which.
    void = label == IGNORE if len(classes.names) == 2 else None
    objects = objects_from_ids(np.where(is_object, raw, 0), classes.category, void)
  return Example(image.data, encode_png(label), image.size, counts, objects)


def _size(shape: tuple[int, ...]) -> str:
  return f"{shape[1]} wide x {shape[0]} high"
