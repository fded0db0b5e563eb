"""Preparation as TFDS array_record without TensorFlow, and reading it back.

`load` reads the source's fingerprint, prepares the set under it unless that was done before, and
hands out random access to decoded examples.
"""

import collections
import contextlib
import dataclasses
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from jseg.data.classes import ClassInfo
from jseg.data.coco import coco_source
from jseg.data.existing import existing_source
from jseg.data.files import FileError
from jseg.data.folder import folder_source
from jseg.data.images import decode_image, decode_raw
from jseg.data.instances import Objects
from jseg.data.layouts import cityscapes_source, oxford_iiit_pet_source, voc_source
from jseg.data.masks import check_binary
from jseg.data.shapes import shapes_source
from jseg.data.source import Example, Item, Source
from jseg.data.volumes import volumes_source
from jseg.types import IGNORE, InputError

_KEEP_BYTES = 512 << 20  # a split that decodes to at most this stays in memory
_MOST_NOTES = 5  # of what was left out of a split, told by name
_CHUNK = {2: 64, 3: 4}  # examples read ahead of the writer: images, volumes


class _Builder(tfds.core.GeneratorBasedBuilder):
  """Writes a source's examples; one subclass a data set gives each its folder.

  The config is named by the source's fingerprint: a changed source is another config, prepared
  again beside the old one, which stays until it is deleted.
  """

  VERSION = tfds.core.Version("1.2.0")  # of the canonical form: raise it when reading changes

  def __init__(self, source: Source, fingerprint: str, data_dir: str | os.PathLike | None):
    self._source = source
    super().__init__(config=tfds.core.BuilderConfig(name=fingerprint), data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    if self._source.ndim == 2:
      image = tfds.features.Image(shape=(None, None, None))
      label = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    else:
      # Masks shrink to nothing; images to half at best, and unpacking would slow every reading.
      image = tfds.features.Tensor(shape=(None,) * 4, dtype=np.float16, encoding="bytes")
      label = tfds.features.Tensor(shape=(None,) * 3, dtype=np.uint8, encoding="zlib")
    features = {"image": image, "name": tfds.features.Text()}
    if self._source.has_labels:
      features["label"] = label
    if self._source.has_objects:
      features["objects"] = tfds.features.FeaturesDict(
        {
          "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
          "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
          "frames": tfds.features.Tensor(shape=(None, 4), dtype=np.int32),
          "masks": tfds.features.Sequence(tfds.features.Text()),
          "classes": tfds.features.Tensor(shape=(None,), dtype=np.int32),
          "crowd": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
          "areas": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        }
      )
    metadata = {
      "classes": list(self._source.classes.names),
      "palette": self._source.classes.palette.tolist(),
      "max_size": {},
      "pixel_counts": {},
      "pixels_where_present": {},
      "objects_an_image": {},
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="Semantic segmentation in canonical form: labels are train ids, 255 is void.",
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(metadata),
      disable_shuffling=True,  # keep the order of the source; training shuffles as it reads
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
    return {split: self._generate_examples(split) for split in self._source.splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    items, classes = self._source.splits[split], self._source.classes
    largest = np.zeros(self._source.ndim, np.int64)
    counts, where_present = np.zeros((2, 256), np.int64)
    objects_an_image: collections.Counter[int] = collections.Counter()
    notes: list[FileError] = []
    console = Console(stderr=True)
    loaded = _load_all(items, _CHUNK[self._source.ndim])
    examples = track(loaded, f"Preparing {split}", len(items), console=console)
    for i, example in enumerate(examples):
      counts += example.counts
      valid = example.counts.sum() - example.counts[IGNORE]
      where_present += np.where(example.counts > 0, valid, 0)
      largest = np.maximum(largest, example.size)
      record: dict[str, Any] = {"image": example.image, "name": items[i].name}
      if example.label is not None:
        record["label"] = example.label
      if example.objects is not None:
        objects_an_image[len(example.objects)] += 1
        record["objects"] = {
          field.name: getattr(example.objects, field.name)
          for field in dataclasses.fields(example.objects)
          if field.name != "scores"
        }
      yield i, record
      notes += example.notes
    if notes:
      console.print(f"{split}: left out {len(notes)} object(s), such as", style="yellow")
      for note in notes[:_MOST_NOTES]:
        console.print(f"  {note.file}: {note.problem}", highlight=False, soft_wrap=True)
    check_binary(counts, classes, f"split {split}")
    self.info.metadata["max_size"][split] = largest.tolist()
    k = len(classes.names)
    self.info.metadata["pixel_counts"][split] = counts[:k].tolist()
    self.info.metadata["pixels_where_present"][split] = where_present[:k].tolist()
    self.info.metadata["objects_an_image"][split] = sorted(objects_an_image.items())

  def _log_download_bytes(self) -> None:
    """Says nothing: the progress bar does."""

  def _log_download_done(self) -> None:
    """Says nothing."""


class JsegShapes(_Builder):
  """`shapes`."""


class JsegFolder(_Builder):
  """`folder`."""


class JsegVolumes(_Builder):
  """`volumes`."""


class JsegCoco(_Builder):
  """`coco`."""


class JsegVoc(_Builder):
  """`voc`."""


class JsegCityscapes(_Builder):
  """`cityscapes`."""


class JsegOxfordIiitPet(_Builder):
  """`oxford_iiit_pet`."""


class JsegTfds(_Builder):
  """Any other TFDS set."""


_SOURCES: dict[str, tuple[Callable[..., Source], type[_Builder]]] = {
  "shapes": (shapes_source, JsegShapes),
  "folder": (folder_source, JsegFolder),
  "volumes": (volumes_source, JsegVolumes),
  "coco": (coco_source, JsegCoco),
  "voc": (voc_source, JsegVoc),
  "cityscapes": (cityscapes_source, JsegCityscapes),
  "oxford_iiit_pet": (oxford_iiit_pet_source, JsegOxfordIiitPet),
}


class Examples(Sequence[dict[str, Any]]):
  """Random access to the decoded examples of a split.

  Item i is a dict: `image` uint8 [h w c] (c is 3 or 1), `label` uint8 [h w], `name` str. Of a
  volume, `image` is float32 [d h w c], normalised, and `label` [d h w]. Where objects are known
  there is `objects`, and no `label` where nothing else is. Do not write into the arrays: examples
  of splits that fit are kept in memory once they are decoded.
  """

  def __init__(self, records: Any, keep: bool):
    self._records = records
    self._kept: dict[int, dict[str, Any]] | None = {} if keep else None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: Any) -> Any:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    if self._kept is not None and index in self._kept:
      return self._kept[index]
    record = self._records[index]
    example = {"name": record["name"].decode()}
    image, label = record["image"], record.get("label")
    example["image"] = decode_image(image) if isinstance(image, bytes) else image.astype(np.float32)
    if label is not None:
      example["label"] = decode_raw(label) if isinstance(label, bytes) else label
    if "objects" in record:
      size = tuple(record["objects"]["size"].tolist())
      example["objects"] = Objects(**{**record["objects"], "size": size})
    if self._kept is not None:
      self._kept[index] = example
    return example


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared data set.

  Attributes:
    name: as given to `load`.
    classes: names, colours, and what the masks meant before preparation.
    splits: examples in each split.
    fingerprint: changes whenever the data does.
  """

  name: str
  classes: ClassInfo
  splits: dict[str, int]
  fingerprint: str
  _builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)

  @property
  def ndim(self) -> int:
    """2 for images, 3 for volumes."""
    return len(self._builder.info.features["image"].shape) - 1

  @property
  def has_labels(self) -> bool:
    """Its examples tell the class of every pixel."""
    return "label" in self._builder.info.features

  @property
  def has_objects(self) -> bool:
    """Its examples tell objects one by one."""
    return "objects" in self._builder.info.features

  def source(self, split: str) -> Examples:
    """Random access to a split, or to several joined as in "train+val"."""
    self._parts(split)  # raises for unknown splits
    images = [
      key
      for key, feature in self._builder.info.features.items()
      if isinstance(feature, tfds.features.Image)
    ]
    skip = {key: tfds.decode.SkipDecoding() for key in images}
    records = self._builder.as_data_source(split, decoders=skip)
    # What a pixel takes once decoded: three bytes of colour, or floats, and the label.
    width = 4 if self.ndim == 2 else 1 + 4 * records[0]["image"].shape[-1]
    return Examples(records, width * len(records) * math.prod(self.max_size(split)) <= _KEEP_BYTES)

  def max_size(self, split: str) -> tuple[int, ...]:
    """Largest height and largest width in a split; of volumes, depth, height and width."""
    sizes = [self._builder.info.metadata["max_size"][part] for part in self._parts(split)]
    return tuple(np.max(sizes, 0).tolist())

  def left_out(self, split: str, slots: int) -> tuple[int, int]:
    """(images with more than `slots` objects, objects beyond that many) in a split."""
    parts = [self._builder.info.metadata["objects_an_image"][part] for part in self._parts(split)]
    more = [(n - slots, images) for part in parts for n, images in part if n > slots]
    return sum(images for _, images in more), sum(n * images for n, images in more)

  def pixel_counts(self, split: str) -> np.ndarray:
    """Pixels of each class in a split: int64 [k]. Void is not counted."""
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
  name: str,
  *,
  root: str | os.PathLike | None = None,
  data_dir: str | os.PathLike | None = None,
  options: Mapping[str, Any] | None = None,
  fields: Mapping[str, Any] | None = None,
) -> Dataset:
  """Loads a data set, preparing it first if its source is new or has changed.

  Args:
    name: shapes, folder, volumes, coco, voc, cityscapes, oxford_iiit_pet; or the name of a TFDS
      set, with fields.
    root: folder of the source, where it has one.
    data_dir: where prepared data are kept; None is TFDS's default, ~/tensorflow_datasets.
    options: the source's own, such as size and counts of shapes; see the *_source functions.
    fields: for a TFDS set, which of its fields is what; see `existing_source`.

  Raises:
    InputError: if the name, the options or the data are wrong; nothing half-made stays behind.
  """
  source, builder_class = _make_source(name, root, data_dir, dict(options or {}), fields)
  if source.problems:
    more = f"\n... and {len(source.problems) - 5} more" if len(source.problems) > 5 else ""
    raise InputError("\n".join(map(str, source.problems[:5])) + more)
  fingerprint = source.fingerprint()
  data_dir = os.path.expanduser(data_dir) if data_dir else None
  with _quiet():
    builder = builder_class(source, fingerprint, data_dir)
    if not builder.is_prepared():
      _prepare(builder)
      builder = builder_class(source, fingerprint, data_dir)
  splits = {split: info.num_examples for split, info in builder.info.splits.items()}
  return Dataset(name, source.classes, splits, fingerprint, builder)


def _make_source(
  name: str,
  root: str | os.PathLike | None,
  data_dir: str | os.PathLike | None,
  options: dict[str, Any],
  fields: Mapping[str, Any] | None,
) -> tuple[Source, type[_Builder]]:
  if fields:
    if name in _SOURCES or root is not None or options:
      raise InputError(
        f"fields are for sets that TFDS prepares; {name} with root or options has none"
      )
    return existing_source(name, fields, data_dir), JsegTfds
  if name not in _SOURCES:
    raise InputError(
      f"unknown data set {name!r}; choose one of {', '.join(_SOURCES)}, or give a TFDS name with "
      'fields, such as {"image": "image", "label": "segmentation_mask", "values": {0: 0, 1: 1}, '
      '"classes": ["background", "thing"]}'
    )
  make, builder_class = _SOURCES[name]
  parameters = inspect.signature(make).parameters
  known = [key for key in parameters if key != "root"]
  if unknown := sorted(options.keys() - set(known)):
    raise InputError(
      f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
    )
  if "root" not in parameters:
    if root is not None:
      raise InputError(f"data.root: {name} is generated and reads no folder; leave root out")
    return make(**options), builder_class
  if root is None and parameters["root"].default is inspect.Parameter.empty:
    raise InputError(
      f"data.root is missing: {name} is read from a folder; give it as --config.data.root=FOLDER"
    )
  return make(root, **options), builder_class


def _prepare(builder: _Builder) -> None:
  try:
    builder.download_and_prepare(file_format="array_record")
  except OSError as error:
    # Of several processes that prepare the same set, the last to finish finds it in place.
    if not builder.data_path.exists():
      raise InputError(
        f"cannot write prepared data to {builder.data_dir}: {error}; "
        "make room, or give another data_dir"
      ) from error


def _load_all(items: Sequence[Item], ahead: int) -> Iterator[Example]:
  """Loads in threads, in order, a bounded number ahead: encoded files can outgrow memory."""
  with ThreadPoolExecutor() as pool:
    for start in range(0, len(items), ahead):
      yield from pool.map(lambda item: item.load(), items[start : start + ahead])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences TFDS's log lines and nested progress bars."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    yield
  finally:
    tfds.enable_progress_bar()
    logger.setLevel(level)
