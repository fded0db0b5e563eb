"""What a source of data is to the builder: classes, and named examples by split.

A source of your own needs no change of the library. Write it down as a `ListedSource`, or as any
object with the members of `Source`, and hand it to `jseg.data.load`; or give a function that makes
it as `data.name="package.module:make_source"`, which is called with `root` and `data.options`.

  source = ListedSource(
    classes=ClassInfo(("background", "cell")),
    splits={"train": [MyItem(i) for i in range(100)], "val": [MyItem(100)]},
    make_fingerprint=lambda: "cells, version 1",
  )
  dataset = jseg.data.load(source)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jseg.arithmetic import count_bytes, strips
from jseg.data.files import FileError
from jseg.data.files.classes import ClassInfo, Color
from jseg.data.files.images import encode_png
from jseg.data.files.instances import Objects
from jseg.data.files.rows import StoredImage
from jseg.data.files.scientific import encode_array
from jseg.images import Rows
from jseg.types import InputError


@dataclasses.dataclass(frozen=True)
class Values:
  """What numbers a scientific image holds.

  Attributes:
    dtype: name of their type, such as "uint16".
    low: smallest number of each channel, float64 [c].
    high: largest number of each channel, float64 [c].
  """

  dtype: str
  low: np.ndarray
  high: np.ndarray

  @classmethod
  def of(cls, image: Rows) -> "Values":
    """Looks through an image [h w c]."""
    ends = []
    for rows in strips(image.shape[:2]):
      part = image[rows]
      ends.append((part.min((0, 1)), part.max((0, 1))))
    lows, highs = zip(*ends, strict=True)
    low, high = np.min(lows, 0), np.max(highs, 0)
    return cls(image.dtype.name, low.astype(np.float64), high.astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Example:
  """One example, as it is written when a data set is prepared.

  Attributes:
    image: encoded PNG or JPEG, RGB or gray, 8 bits, upright; of a scientific image, encoded .npy
      [h w c], unscaled; of a volume, normalized float16 [d h w c]; of a large TIFF, what reads its
      rows.
    label: encoded single-channel 8-bit PNG of train ids; of a volume or a large TIFF, uint8
      [d h w] or [h w]; None where only objects are known.
    size: (height, width), or (depth, height, width).
    counts: int64 [256], pixels of each train id; counts[IGNORE] is void.
    objects: the objects of the image one by one, if the data set has them.
    notes: what was left out of the example, and why.
    traits: what is unusual about its files; `jseg.data.survey` has the list and what it says of
      many.
    colors: color of each index of an indexed mask that was read by its indices.
    values: of a scientific image, its numbers.
    spacing: millimeters between a volume's voxels along d, h and w; None where that isn't known.
  """

  image: bytes | np.ndarray | StoredImage
  label: bytes | np.ndarray | None
  size: tuple[int, ...]
  counts: np.ndarray
  objects: Objects | None = None
  notes: tuple[FileError, ...] = ()
  traits: frozenset[str] = frozenset()
  colors: Mapping[int, Color] = dataclasses.field(default_factory=dict)
  values: Values | None = None
  spacing: tuple[float, float, float] | None = None

  @classmethod
  def from_arrays(
    cls,
    image: np.ndarray,
    label: np.ndarray | None = None,
    objects: Objects | None = None,
    spacing: tuple[float, float, float] | None = None,
  ) -> "Example":
    """Makes an example of arrays.

    Args:
      image: uint8 [h w 3] (RGB) or [h w 1] (gray); or a volume, float [d h w c], normalized. For
        scientific images see `from_numbers`.
      label: uint8 [h w] or [d h w] of train ids, IGNORE where void; None if there are only objects.
      objects: the objects of the image, or None.
      spacing: millimeters between a volume's voxels along d, h and w, or None.

    Raises:
      InputError: the image is no such array, or the label has another size.
    """
    size = image.shape[:-1]
    is_image = image.ndim == 3 and image.shape[-1] in (1, 3) and image.dtype == np.uint8
    if not is_image and image.ndim != 4:
      raise InputError(
        f"image: an array of shape {image.shape} and type {image.dtype} is no image; give uint8 "
        "[h w 3] (RGB) or [h w 1] (gray), or a volume, float [d h w c]"
      )
    if label is not None and (label.shape != size or label.dtype != np.uint8):
      raise InputError(
        f"label: an array of shape {label.shape} and type {label.dtype} is no label of an image of "
        f"size {size}; give uint8 of that size"
      )
    counts = np.zeros(256, np.int64) if label is None else count_bytes(label)
    if not is_image:
      return cls(image.astype(np.float16), label, size, counts, objects, spacing=spacing)
    encoded = None if label is None else encode_png(label)
    return cls(encode_png(image), encoded, size, counts, objects)

  @classmethod
  def from_numbers(
    cls, image: np.ndarray, label: np.ndarray | None = None, objects: Objects | None = None
  ) -> "Example":
    """Makes an example of a scientific image, for sources that say `scientific`.

    Args:
      image: integers of 8, 16 or 32 bits or float32 [h w c], as they were measured.
      label: as for `from_arrays`.
      objects: as for `from_arrays`.

    Raises:
      InputError: the image is no such array, or the label has another size.
    """
    plain = image.ndim == 3 and (image.dtype.kind in "iu" or image.dtype == np.float32)
    if not plain or image.dtype.itemsize > 4 or not np.isfinite(image).all():
      raise InputError(
        f"image: an array of shape {image.shape} and type {image.dtype} is no scientific image; "
        "give [h w c] of finite integers of up to 32 bits, or of float32"
      )
    blank = np.zeros((*image.shape[:2], 1), np.uint8)
    example = cls.from_arrays(blank, label, objects)
    return dataclasses.replace(example, image=encode_array(image), values=Values.of(image))


class Item(Protocol):
  """An example that can be loaded."""

  @property
  def name(self) -> str:
    """Name of the example, unique in its split."""

  def load(self) -> Example:
    """Reads and checks the example. Raises InputError that names what is wrong."""


class Source(Protocol):
  """A data set before preparation. Subclass it for the defaults, or bring all its members.

  Attributes:
    classes: names and colors of the classes.
    splits: the items of each split, in order.
    problems: what is wrong with the files as a whole, such as missing partners; a source with
      problems can be checked, not prepared.
    notes: what is to be told before training, such as files that aren't used.
    has_objects: whether its examples have `objects`.
    has_labels: whether its examples have a `label`.
    ndim: 2 for images, 3 for volumes.
    scientific: images are numbers of any channels, which `data.scaling` brings to 0..255.
  """

  classes: ClassInfo
  splits: Mapping[str, Sequence[Item]]
  problems: Sequence[FileError] = ()
  notes: Sequence[FileError] = ()
  has_objects: bool = False
  has_labels: bool = True
  ndim: int = 2
  scientific: bool = False

  def fingerprint(self) -> str:
    """A text that changes whenever the examples do: another text is another prepared set."""


@dataclasses.dataclass(eq=False)
class ListedSource:
  """A `Source` whose members are known when it is made.

  Attributes:
    classes: names and colors of the classes.
    splits: the items of each split, in order.
    make_fingerprint: computes the fingerprint, which may take reading all files.
    problems: what is wrong with the files as a whole.
    notes: what is to be told before training.
    has_objects: whether its examples have `objects`.
    has_labels: whether its examples have a `label`.
    ndim: 2 for images, 3 for volumes.
    scientific: images are numbers of any channels, which `data.scaling` brings to 0..255.
  """

  classes: ClassInfo
  splits: Mapping[str, Sequence[Item]]
  make_fingerprint: Callable[[], str]
  problems: Sequence[FileError] = ()
  notes: Sequence[FileError] = ()
  has_objects: bool = False
  has_labels: bool = True
  ndim: int = 2
  scientific: bool = False

  def fingerprint(self) -> str:
    """See `Source`."""
    return self.make_fingerprint()


def existing_folder(root: str | Path) -> Path:
  """Returns `root` as a path.

  Raises:
    InputError: there is no such folder.
  """
  path = Path(root).expanduser()
  if not path.is_dir():
    raise InputError(f"{path} is not a folder; give the data set's folder as root")
  return path
