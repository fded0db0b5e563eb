"""Prepared data sets: `load` prepares a source where needed; `Dataset` reads it back."""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from jseg.data.builder import OBJECTS_PER_IMAGE, SPACINGS, prepare, prepared, sample_file
from jseg.data.files import FileError
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import decode_image, decode_raw
from jseg.data.files.instances import Objects
from jseg.data.files.rows import StoredImage, open_rows
from jseg.data.files.scientific import decode_array, is_array
from jseg.data.records import Decoded, Record
from jseg.data.scaling import scale
from jseg.data.sources import SOURCES, make_source
from jseg.data.sources.base import Source
from jseg.types import Arguments, InputError

_CACHE_BYTES = 512 << 20  # a split that decodes to at most this stays in memory


Ends = tuple[Sequence[float], Sequence[float]]
"""The numbers of each channel that become 0, and those that become 255."""


class Examples(Sequence[Decoded]):
  """Random access to the decoded examples of a split.

  Item i is a dict: `image` uint8 [h w c] (c is 3 or 1), `label` uint8 [h w], `name` str. Of a
  volume, `image` is float32 [d h w c], normalized, and `label` [d h w]. Of scientific images it is
  [h w c] as it is stored, or float32 in 0..255 if the data set is scaled. Where objects are known
  there is `objects`, and no `label` where nothing else is. The arrays of splits that fit in memory
  are kept once they are decoded, so none can be written to.
  """

  def __init__(
    self,
    records: Sequence[Record],
    keep: bool,
    folder: pathlib.Path,
    *,
    half: bool = False,
    ends: Ends | None = None,
  ):
    self._records, self._folder, self._half, self._ends = records, folder, half, ends
    self._kept: dict[int, Decoded] | None = {} if keep else None

  def __len__(self) -> int:
    return len(self._records)

  @functools.cached_property
  def names(self) -> list[str]:
    """Names of all examples, in order; their arrays aren't decoded for it."""
    with prepared(self._folder):
      return [self._records[i]["name"].decode() for i in range(len(self))]

  def __getitem__(self, index: Any) -> Any:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    if self._kept is not None and index in self._kept:
      return self._kept[index]
    example = self._decode(index)
    if self._kept is not None:
      self._kept[index] = example
    return example

  def open(self, index: int) -> Any:
    """Item `index`; of a large TIFF, image and label are read by rows when they are asked for."""
    return self[index] if self._kept is not None else self._decode(index, by_rows=True)

  def _decode(self, index: int, *, by_rows: bool = False) -> Decoded:
    with prepared(self._folder):
      return _decode(self._records[index], self._folder, self._half, self._ends, by_rows=by_rows)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared data set.

  Attributes:
    name: name of the data set, as given to `load`.
    classes: names, colors, and what the masks meant before preparation.
    splits: number of examples in each split.
    fingerprint: text that changes whenever the data does.
    ends: how scientific images are scaled: the numbers of each channel that become 0, and those
      that become 255; None: they stay as they are stored.
  """

  name: str
  classes: ClassInfo
  splits: dict[str, int]
  fingerprint: str
  _builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)
  ends: Ends | None = None
  _sources: dict[tuple[str, bool], Examples] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  @property
  def ndim(self) -> int:
    """2 for images, 3 for volumes."""
    return 2 if self.scientific else len(self._builder.info.features["image"].shape) - 1

  @property
  def scientific(self) -> bool:
    """Whether images are numbers of any channels, which must be scaled."""
    return "values" in self._builder.info.metadata

  @property
  def dtype(self) -> str:
    """Type of the numbers of scientific images, such as "uint16"; "uint8" of others."""
    return self._values()[0] if self.scientific else "uint8"

  @property
  def channels(self) -> int:
    """Channels of scientific images; 3 of others, whether gray or RGB."""
    return self._values()[1] if self.scientific else 3

  def _values(self) -> tuple[str, int]:
    dtype, channels = next(iter(self._builder.info.metadata["values"].values()))
    return dtype, channels

  def sample(self, split: str) -> np.ndarray:
    """Pixels from all images of a split of scientific images: [n c], as they are stored."""
    folder = pathlib.Path(self._builder.data_path)
    with prepared(folder):
      return np.concatenate([np.load(sample_file(folder, s)) for s in self._parts(split)])

  def scaled(self, low: Sequence[float], high: Sequence[float]) -> "Dataset":
    """Returns the data set with its scientific images brought to 0..255.

    Args:
      low: for each channel, the number that becomes 0.
      high: for each channel, the number that becomes 255.

    Raises:
      InputError: the images have another number of channels.
    """
    if len(low) != self.channels:
      raise InputError(
        f"{self.name} has images of {self.channels} channel(s), and the run is of {len(low)}; give "
        "the same channels in the same order"
      )
    return dataclasses.replace(self, ends=(tuple(low), tuple(high)))

  @property
  def has_labels(self) -> bool:
    """Whether its examples have the class of every pixel."""
    return "label" in self._builder.info.features

  @property
  def has_objects(self) -> bool:
    """Whether its examples have objects one by one."""
    return "objects" in self._builder.info.features

  @property
  def notes(self) -> list[FileError]:
    """What is to be known before training; the same as `jseg check-data` warns of."""
    return [FileError(*note) for note in self._builder.info.metadata["notes"]]

  def source(self, split: str, *, half: bool = False) -> Examples:
    """Gives random access to a split, or to several joined as in "train+val".

    All calls for the same split share what is kept in memory.

    Args:
      split: the split or splits.
      half: leaves volumes float16, as they are stored: half the memory where only parts of them are
        needed.

    Raises:
      InputError: there is no such split.
    """
    self._parts(split)  # raises for unknown splits
    if (split, half) not in self._sources:
      self._sources[split, half] = self._open(split, half)
    return self._sources[split, half]

  def _open(self, split: str, half: bool) -> Examples:
    images = [
      key
      for key, feature in self._builder.info.features.items()
      if isinstance(feature, tfds.features.Image)
    ]
    skip = {key: tfds.decode.SkipDecoding() for key in images}
    folder = pathlib.Path(self._builder.data_path)
    with prepared(folder):
      records = self._builder.as_data_source(split, decoders=skip)
      # Bytes per decoded pixel: three of color, or floats, and the label.
      floats = self.channels if self.scientific else None
      if self.ndim == 3:
        floats = records[0]["image"].shape[-1]
      width = 4 if floats is None else 1 + (2 if half else 4) * floats
      keep = width * len(records) * math.prod(self.max_size(split)) <= _CACHE_BYTES
    return Examples(records, keep, folder, half=half, ends=self.ends)

  def max_size(self, split: str) -> tuple[int, ...]:
    """Largest height and largest width in a split; of volumes, depth, height and width."""
    sizes = [self._builder.info.metadata["max_size"][part] for part in self._parts(split)]
    return tuple(np.max(sizes, 0).tolist())

  def spacings(self, split: str) -> list[tuple[float, ...]]:
    """Millimeters between voxels along d, h and w, of each volume of a split in order.

    Raises:
      InputError: the source doesn't tell, or the set was prepared before they were kept.
    """
    known = self._builder.info.metadata.get(SPACINGS)
    if known is None:
      raise InputError(
        f"the prepared data in {self._builder.data_path} were written before the spacing of voxels "
        "was kept; remove that folder: the next start prepares them again"
      )
    parts = self._parts(split)
    for part in parts:
      if len(known[part]) != self.splits[part]:
        raise InputError(
          f"{self.name} doesn't tell the spacing of the voxels of its split {part}; give its "
          "examples a spacing, in millimeters (jseg.data.Example)"
        )
    return [tuple(spacing) for part in parts for spacing in known[part]]

  def left_out(self, split: str, slots: int) -> tuple[int, int]:
    """(images with more than `slots` objects, objects beyond that many) in a split."""
    parts = [self._builder.info.metadata[OBJECTS_PER_IMAGE][part] for part in self._parts(split)]
    more = [(n - slots, images) for part in parts for n, images in part if n > slots]
    return sum(images for _, images in more), sum(n * images for n, images in more)

  def object_counts(self, split: str) -> tuple[int, int]:
    """(objects to be learned, crowds) in a split."""
    parts, metadata = self._parts(split), self._builder.info.metadata
    total = sum(n * images for part in parts for n, images in metadata[OBJECTS_PER_IMAGE][part])
    crowds = sum(metadata["crowds"][part] for part in parts)
    return total - crowds, crowds

  def pixel_counts(self, split: str) -> np.ndarray:
    """Pixels of each train id in a split: int64 [k], or one each of `ClassInfo.combinations`.

    Void is not counted.
    """
    return self._total("pixel_counts", split)

  def median_frequency_weights(self, split: str) -> np.ndarray:
    """Weights that make rare classes count: float64 [k], median frequency / frequency.

    The frequency of a class is its share of the valid pixels of the images it occurs in (Eigen &
    Fergus 2015, arXiv:1411.4734, section 6.3.2; SegNet, section 4.1). Classes that never occur
    weigh 0.
    """
    counts = self._total("pixel_counts", split)
    frequency = counts / np.maximum(self._total("pixels_where_present", split), 1)
    median = np.median(frequency[counts > 0])
    return np.where(counts > 0, median / np.maximum(frequency, 1e-12), 0.0)

  def _total(self, key: str, split: str) -> np.ndarray:
    counts = self._builder.info.metadata[key]
    return np.array([counts[part] for part in self._parts(split)], np.int64).sum(0)

  def _parts(self, split: str) -> list[str]:
    parts = split.split("+")
    for part in parts:
      if part not in self.splits:
        raise InputError(f"{self.name} has no split {part!r}; it has {', '.join(self.splits)}")
    return parts


def load(
  name: str | Source,
  *,
  root: str | os.PathLike[str] | None = None,
  data_dir: str | os.PathLike[str] | None = None,
  options: Arguments | None = None,
  fields: Arguments | None = None,
) -> Dataset:
  """Loads a data set, preparing it first if its source is new or has changed.

  Args:
    name: a name in `jseg.data.sources.SOURCES`, such as "folder"; "package.module:Name" of a
      function or class that makes a `Source`; a `Source` itself; or the name of a TFDS set, with
      fields.
    root: folder of the source, where it has one.
    data_dir: where prepared data are kept; None is TFDS's default, ~/tensorflow_datasets.
    options: other arguments of the source, such as the size of `shapes`; see the `*_source`
      functions in `jseg.data.sources`.
    fields: for a TFDS set, which of its fields is what; see `jseg.data.sources.tfds.tfds_source`.

  Raises:
    InputError: the name, the options or the data are wrong; nothing half-made stays behind.
  """
  if not isinstance(name, str):
    if root is not None or options or fields:
      raise InputError(
        f"root, options and fields are for named data sets; leave them out with {name!r}"
      )
    source, name = name, type(name).__name__
  elif fields:
    if name in SOURCES or root is not None or options:
      raise InputError(
        f"fields are for sets that TFDS prepares; {name} with root or options has none"
      )
    # Late, because it is slow to import and seldom needed.
    from jseg.data.sources.tfds import tfds_source

    source = tfds_source(name, fields, data_dir)
  else:
    source = make_source(name, root=root, options=options)
  builder, fingerprint = prepare(source, "tfds" if fields else _snake_case(name), data_dir)
  splits = {split: info.num_examples for split, info in builder.info.splits.items()}
  return Dataset(name, source.classes, splits, fingerprint, builder)


def _snake_case(name: str) -> str:
  """What the folder of a prepared set is called: of "package.module:MySet", my_set."""
  return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(":")[2]).lower()


def _decode(
  record: Record, folder: pathlib.Path, half: bool, ends: Ends | None, *, by_rows: bool
) -> Decoded:
  image, label = _decode_image(record["image"], folder, half, ends), record.get("label")
  if isinstance(label, bytes):
    stored = open_rows(label, folder)
    label = decode_raw(label) if stored is None else stored
  if not by_rows:
    image, label = np.asarray(image), None if label is None else np.asarray(label)
  example: Decoded = {"name": record["name"].decode(), "image": cast(np.ndarray, image)}
  if label is not None:
    example["label"] = cast(np.ndarray, label)
  arrays = [value for value in example.values() if isinstance(value, np.ndarray)]
  if "objects" in record:
    size = tuple(record["objects"]["size"].tolist())
    example["objects"] = objects = Objects(**{**record["objects"], "size": size})
    arrays += [value for value in vars(objects).values() if isinstance(value, np.ndarray)]
  for array in arrays:
    array.flags.writeable = False
  return example


def _decode_image(
  image: bytes | np.ndarray, folder: pathlib.Path, half: bool, ends: Ends | None
) -> np.ndarray | StoredImage:
  if not isinstance(image, bytes):
    return image if half else image.astype(np.float32)
  if (stored := open_rows(image, folder)) is not None:
    return stored if ends is None else stored.map(lambda part: scale(part, *ends))
  if not is_array(image):
    return decode_image(image)
  array = decode_array(image)
  return array if ends is None else scale(array, *ends)
