"""Pairs of an image file and its mask file: most data sets are made of nothing else."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from jseg.arithmetic import count_bytes
from jseg.data.files import FileError, attempt, fingerprint, is_file, read_bytes
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import CanonicalImage, canonical_image, encode_png
from jseg.data.files.instances import objects_from_ids
from jseg.data.files.masks import Label, RawMask, make_label, read_mask
from jseg.data.files.stored import canonical_large
from jseg.data.sources.base import Example, Item, ListedSource
from jseg.types import IGNORE, InputError

SPLITS = ("train", "val", "test")


class Sized(Protocol):
  """The content of an image file."""

  @property
  def size(self) -> tuple[int, ...]:
    """(height, width), or (depth, height, width)."""


Image = TypeVar("Image", bound=Sized)
Mask = TypeVar("Mask")
AnyItem = TypeVar("AnyItem", bound=Item)


@dataclasses.dataclass(frozen=True, eq=False)
class Examination:
  """All that can be said of a pair of files.

  Attributes:
    example: the example; None if there are problems.
    problems: what is wrong with either file or with both together.
    size: size of the image, or None if it can't be read.
    label: the mask, or None if it can't be read.
  """

  example: Example | None
  problems: Sequence[FileError]
  size: tuple[int, ...] | None
  label: Label | None


@dataclasses.dataclass(frozen=True)
class FilePair(Generic[Image, Mask]):
  """An image file and its mask file, whose steps of reading can be taken one by one.

  Attributes:
    name: name of the example, unique in its split.
    image: path of the image.
    mask: path of the mask.
    classes: what the mask's values mean.
    table: lookup from raw value to train id, int16 [65536]; see `ClassInfo.table`.
    others: further files of the image, one a channel.
  """

  name: str
  image: Path
  mask: Path
  classes: ClassInfo
  table: np.ndarray = dataclasses.field(repr=False)
  others: tuple[Path, ...] = ()

  @property
  def files(self) -> tuple[Path, ...]:
    """All files of the image, and the mask."""
    return self.image, *self.others, self.mask

  def load(self) -> Example:
    """Reads, checks and canonicalizes both files.

    Raises:
      FileError: naming the file at fault.
    """
    found = self.examine()
    if found.example is None:
      raise found.problems[0]
    return found.example

  def examine(self) -> Examination:
    """Reads both files as `load` does; one problem hides no other."""
    image, problems = attempt(self.read_image)
    raw, found = attempt(self.read_mask)
    problems += found
    if image is not None and raw is not None:
      problems += attempt(self.check, image, raw)[1]
    label, found = (None, []) if raw is None else attempt(self.make_label, raw)
    problems += found
    example = None
    if not problems and image is not None and raw is not None and label is not None:
      example = self.make_example(image, raw, label)
    return Examination(example, problems, None if image is None else image.size, label)

  def read_image(self) -> Image:
    """Reads the image. Raises FileError."""
    raise NotImplementedError

  def read_mask(self) -> Mask:
    """Reads the mask's raw values. Raises FileError."""
    raise NotImplementedError

  def check(self, image: Image, raw: Mask) -> None:
    """Raises FileError if an image and its raw mask do not cover each other."""
    raise NotImplementedError

  def make_label(self, raw: Mask) -> Label:
    """Translates a raw mask to train ids. Raises FileError."""
    raise NotImplementedError

  def make_example(self, image: Image, raw: Mask, label: Label) -> Example:
    """Joins an image and its mask, which cover each other."""
    raise NotImplementedError


class ImagePair(FilePair[CanonicalImage, RawMask]):
  """An image file and its mask file; see `FilePair`."""

  def read_image(self) -> CanonicalImage:
    """Reads the image. Raises FileError."""
    large = None if self.classes.instance else canonical_large(self.image, is_color=True)
    return large or canonical_image(read_bytes(self.image), self.image)

  def read_mask(self) -> RawMask:
    """Reads the mask's raw values. Raises FileError."""
    return read_mask(read_bytes(self.mask), self.mask)

  def check(self, image: CanonicalImage, raw: RawMask) -> None:
    """Raises FileError if an image and its raw mask do not cover each other."""
    check_sizes(image, self.image, raw.values.shape, self.mask)

  def make_label(self, raw: RawMask) -> Label:
    """Translates a raw mask to train ids. Raises FileError."""
    return make_label(raw, self.classes, self.table, self.mask)

  def make_example(self, image: CanonicalImage, raw: RawMask, label: Label) -> Example:
    """Joins an image and its mask, which have the same size."""
    traits = set(label.traits)
    if image.hides_rotation and not raw.turned:
      traits.add("turned")
    if raw.turned and not image.rotated:
      traits.add("mask_turned")
    if image.exif_damaged:
      traits.add("exif_damaged")
    return make_example(image, dataclasses.replace(label, traits=frozenset(traits)), self.classes)


Pair = FilePair[Any, Any]
"""A pair of an image and a mask of any kind."""


def pair_source(
  root: Path,
  classes: ClassInfo,
  splits: Mapping[str, Sequence[Pair]],
  problems: Sequence[FileError] = (),
  notes: Sequence[FileError] = (),
) -> ListedSource:
  """Makes a source of file pairs, with the fingerprint of their contents."""

  def digest() -> str:
    files = {p for pairs in splits.values() for pair in pairs for p in pair.files}
    named = ((path.relative_to(root).as_posix(), path) for path in files)
    members = {split: [pair.name for pair in pairs] for split, pairs in splits.items()}
    by_color = " by color" if classes.by_color else ""
    table = next(pair.table for pairs in splits.values() for pair in pairs).tobytes()
    return fingerprint(named, f"{classes.to_json()} {members} {table.hex()}{by_color}")

  return ListedSource(
    classes=classes,
    splits=splits,
    make_fingerprint=digest,
    problems=problems,
    notes=notes,
    has_objects=classes.instance,
  )


DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.2}
"""Shares of the splits of a data set that isn't divided, where none are given."""


def divide(
  splits: Mapping[str, Sequence[AnyItem]],
  root: Path,
  fractions: Mapping[str, float] | None,
  seed: int,
) -> dict[str, Sequence[AnyItem]]:
  """Splits a data set at random if it isn't divided already.

  Args:
    splits: items by split, or all of them by the name "".
    root: the data set, for messages.
    fractions: share of each split; None is `DEFAULT_FRACTIONS`.
    seed: seed of the shuffle.

  Raises:
    InputError: there are both splits and fractions, or `split_at_random` can't use the fractions.
  """
  if "" in splits:
    return {**split_at_random(splits[""], fractions or DEFAULT_FRACTIONS, seed)}
  if fractions:
    raise InputError(f"fractions: {root} has its own splits; leave fractions out")
  return dict(splits)


def split_at_random(
  items: Sequence[AnyItem], fractions: Mapping[str, float], seed: int
) -> dict[str, list[AnyItem]]:
  """Splits items at random; the same seed and number of items give the same splits.

  Args:
    items: all items.
    fractions: share of each split; they sum to 1.
    seed: seed of the shuffle.

  Raises:
    InputError: the fractions are not shares that sum to 1, or leave a split empty.
  """
  shares = dict(fractions)
  valid = set(shares) <= set(SPLITS) and min(shares.values()) > 0
  if not valid or not np.isclose(sum(shares.values()), 1):
    raise InputError(
      f"fractions: {shares} must give train, val and test shares above 0 that sum to 1"
    )
  order = np.random.default_rng(seed).permutation(len(items))
  ends = np.rint(np.cumsum(list(shares.values())) * len(items)).astype(int)
  splits, start = {}, 0
  for split, end in zip(shares, ends, strict=True):
    splits[split] = [items[i] for i in sorted(order[start:end])]
    start = end
    if not splits[split]:
      raise InputError(
        f"fractions: {shares} of {len(items)} images leave split {split!r} empty; "
        "add images or raise its share"
      )
  return splits


def missing_files(pairs: Iterable[Pair]) -> list[FileError]:
  """Returns one problem for each file that is listed but is not there."""
  return [
    FileError("partner", path, "is listed but missing", "Unpack the archive again")
    for pair in pairs
    for path in pair.files
    if not is_file(path)
  ]


def check_sizes(
  image: CanonicalImage, image_name: Path | str, shape: tuple[int, ...], mask_name: Path | str
) -> None:
  """Raises FileError if an image and its mask, an array of this shape, do not cover each other."""
  if shape[:2] == image.size:
    return
  turned = image.rotated and shape[1::-1] == image.size
  fix = (
    "The image's EXIF rotation was applied; rotate the mask in the same way"
    if turned
    else "Save the mask at the size of its image (resize by nearest neighbor)"
  )
  sizes = f"{_size(shape)}, but its image {image_name} is {_size(image.size)}"
  raise FileError("size", mask_name, sizes, fix)


def make_example(image: CanonicalImage, label: Label, classes: ClassInfo) -> Example:
  """Joins an image and a label of the same size to an example."""
  ids, objects = label.ids, None
  if classes.instance:
    is_object = (ids > 0) & (ids < IGNORE)
    # Void may hide objects. Where there are several classes, it can't be said of which.
    void = ids == IGNORE if len(classes.names) == 2 else None
    objects = objects_from_ids(np.where(is_object, label.values, 0), classes.category, void)
  return Example(
    image=image.data,
    label=encode_png(ids) if isinstance(image.data, bytes) else ids,
    size=image.size,
    counts=count_bytes(ids),
    objects=objects,
    traits=label.traits,
    colors=label.colors,
  )


def _size(shape: tuple[int, ...]) -> str:
  return f"{shape[1]} wide x {shape[0]} high"
