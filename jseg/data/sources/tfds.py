"""Any TFDS data set with masks or objects, through a map from its fields to ours."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import canonical_image, encode_png
from jseg.data.files.instances import Annotation, make_objects
from jseg.data.files.masks import make_label, read_mask
from jseg.data.records import Record
from jseg.data.sources.base import Example, ListedSource
from jseg.data.sources.pairs import check_sizes, make_example
from jseg.types import IGNORE, InputError

_KEYS = ("image", "label", "values", "classes", "palette", "name", "splits")
_OBJECT_KEYS = ("objects", "class", "mask", "id", "crowd")

Fields = Mapping[str, Any]
"""A map from our names to the fields of a TFDS set; see `tfds_source`."""


def tfds_source(
  name: str, fields: Fields, data_dir: str | os.PathLike[str] | None = None
) -> ListedSource:
  """Reads a set that TFDS prepares (as array_record, without TensorFlow) or has prepared.

  Args:
    name: TFDS name, with its config if any: "scene_parse150", "my_set/config".
    fields: `image` and `label`, the names of its features; `values`, raw mask value -> train id
      (255 for void); `classes`, the names; and if wanted `palette`, `name` (the feature that
      names examples) and `splits`, our split -> TFDS split, such as {"val": "train[90%:]"}.
      Sets of objects give instead of `label`: `objects`, the sequence that has an entry for each;
      `class`, the feature in it that is its class; and either `mask`, the one that is its mask, or
      `id`, its id in the image `label`, whose colors are ids as in COCO's panoptic format; and
      `crowd` if there is one. `values` and `classes` may then be left out, to take all classes by
      the names that TFDS knows; objects of classes that `values` leaves out are left out.
    data_dir: where TFDS keeps its data; None for its default.

  Raises:
    InputError: the map does not fit the set, or the set is stored as tfrecord.
  """
  if "objects" in fields:
    return _object_source(name, fields, data_dir)
  missing = [key for key in ("image", "label", "values", "classes") if key not in fields]
  unknown = sorted(set(fields) - set(_KEYS))
  if missing or unknown:
    raise InputError(
      f"fields for {name}: missing {missing}, unknown {unknown}; the keys are {', '.join(_KEYS)}, "
      "the first four are required"
    )
  classes = ClassInfo(
    names=tuple(fields["classes"]),
    palette=np.array(fields.get("palette", ()), np.uint8),
  )
  table = _table(name, fields["values"], len(classes.names))
  builder = _builder(name, data_dir)
  for key in ("image", "label", "name"):
    if key in fields and fields[key] not in builder.info.features:
      features = ", ".join(builder.info.features)
      raise InputError(f"fields: {name} has no feature {fields[key]!r}; it has {features}")
  items = {
    ours: [TfdsItem(records, i, fields, classes, table, where) for i in range(len(records))]
    for ours, records, where in _splits(builder, fields)
  }
  digest = _digest(builder, fields)
  return ListedSource(classes=classes, splits=items, make_fingerprint=lambda: digest)


def _object_source(
  name: str, fields: Fields, data_dir: str | os.PathLike[str] | None
) -> ListedSource:
  """Reads a set of objects; see `tfds_source`."""
  missing = [key for key in ("image", "objects", "class") if key not in fields]
  unknown = sorted(set(fields) - set(_KEYS) - set(_OBJECT_KEYS))
  if missing or unknown or ("mask" in fields) == ("label" in fields and "id" in fields):
    raise InputError(
      f"fields for {name}: missing {missing}, unknown {unknown}; sets of objects need image, "
      "objects, class, and either mask or label and id; they may have crowd, values, classes, "
      "palette, splits"
    )
  builder = _builder(name, data_dir)
  features = builder.info.features
  entry = dict(features.items()).get(fields["objects"])
  inner = getattr(entry, "feature", {})
  outer_keys, inner_keys = ("image", "objects", "label"), ("class", "mask", "id", "crowd")
  for keys, found in ((outer_keys, features), (inner_keys, inner)):
    for key in keys:
      if key in fields and fields[key] not in found:
        known = ", ".join(found) or "none"
        raise InputError(f"fields: {name} has no feature {fields[key]!r} as {key}; it has {known}")
  classes, values = _object_classes(name, fields, inner[fields["class"]])
  items = {
    ours: [TfdsObjects(records, i, fields, values, where) for i in range(len(records))]
    for ours, records, where in _splits(builder, fields)
  }
  digest = _digest(builder, fields)
  return ListedSource(
    classes=classes,
    splits=items,
    make_fingerprint=lambda: digest,
    has_objects=True,
    has_labels=False,
  )


def _object_classes(
  name: str, fields: Fields, kind: tfds.features.FeatureConnector
) -> tuple[ClassInfo, dict[int, int]]:
  """The classes of a set of objects, and the train id of each raw class."""
  named = isinstance(kind, tfds.features.ClassLabel)
  if ("values" in fields) != ("classes" in fields) or not (named or "values" in fields):
    raise InputError(
      f"fields for {name}: give values, such as {{0: 1, 1: 2}}, and classes, such as "
      '["background", "cat", "dog"], both or none; a set that names no classes needs them'
    )
  if "values" in fields:
    values = {int(raw): int(train) for raw, train in fields["values"].items()}
    names = tuple(fields["classes"])
  else:
    values = {i: i + 1 for i in range(kind.num_classes)}
    names = ("background", *kind.names)
  if not all(0 < train < len(names) for train in values.values()):
    raise InputError(
      f"fields for {name}: values {values} must map to 1..{len(names) - 1}, the positions in "
      "classes; the first class is the background"
    )
  palette = np.array(fields.get("palette", ()), np.uint8)
  return ClassInfo(names, palette, ignore_label=None, instance=True), values


def _splits(
  builder: tfds.core.DatasetBuilder, fields: Fields
) -> Iterator[tuple[str, Sequence[Record], str]]:
  """Yields (our split, its records, what to call it in messages)."""
  splits = fields.get("splits") or {split: split for split in builder.info.splits}
  for ours, theirs in splits.items():
    yield ours, _records(builder, theirs, fields), f"{builder.name}:{theirs}"


def _digest(builder: tfds.core.DatasetBuilder, fields: Fields) -> str:
  content = [builder.info.full_name, builder.info.dataset_size, sorted(fields.items(), key=str)]
  return hashlib.sha256(json.dumps(content, default=dict).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class TfdsItem:
  """One record of a TFDS data source."""

  records: Sequence[Record]
  index: int
  fields: Fields
  classes: ClassInfo
  table: np.ndarray
  where: str

  @property
  def name(self) -> str:
    """Position of the record, as the set's own names may be long, repeated or absent."""
    return f"{self.index:06d}"

  def load(self) -> Example:
    """Reads, checks and canonicalizes the record."""
    record = self.records[self.index]
    where = f"{self.where}[{self.index}]"
    if "name" in self.fields:
      where += f" ({_text(record[self.fields['name']])})"
    image = canonical_image(_encoded(record[self.fields["image"]]), where)
    raw = read_mask(_encoded(record[self.fields["label"]]), f"{where} mask")
    check_sizes(image, where, raw.values.shape, f"{where} mask")
    label = make_label(raw, self.classes, self.table, f"{where} mask")
    return make_example(image, label, self.classes)


@dataclasses.dataclass(frozen=True)
class TfdsObjects:
  """One record of a TFDS data source of objects."""

  records: Sequence[Record]
  index: int
  fields: Fields
  values: Mapping[int, int]
  where: str

  @property
  def name(self) -> str:
    """Position of the record; see `TfdsItem`."""
    return f"{self.index:06d}"

  def load(self) -> Example:
    """Reads and canonicalizes the record. Raises FileError if mask and image differ in size."""
    record, fields = self.records[self.index], self.fields
    where = f"{self.where}[{self.index}]"
    image = canonical_image(_encoded(record[fields["image"]]), where)
    entries = record[fields["objects"]]
    kinds = np.asarray(entries[fields["class"]])
    crowd = entries[fields["crowd"]] if "crowd" in fields else np.zeros(len(kinds), bool)
    if "mask" in fields:
      masks = [np.squeeze(np.asarray(mask), -1) > 0 for mask in entries[fields["mask"]]]
    else:
      raw = read_mask(_encoded(record[fields["label"]]), f"{where} mask")
      ids = raw.colors() @ np.array([1, 256, 65536], np.int32) if raw.colored else raw.values
      masks = [ids == number for number in entries[fields["id"]]]
    annotations = []
    for mask, kind, many in zip(masks, kinds.tolist(), crowd, strict=True):
      check_sizes(image, where, mask.shape, f"{where} mask")
      if kind in self.values:
        annotations.append(Annotation(mask, self.values[kind], bool(many)))
    return Example(
      image=image.data,
      label=None,
      size=image.size,
      counts=np.zeros(256, np.int64),
      objects=make_objects(image.size, annotations),
    )


def _table(name: str, values: Mapping[int | str, int], k: int) -> np.ndarray:
  # Keys may be text: configs that pass through JSON have no others.
  pairs = {int(raw): int(train) for raw, train in values.items()}
  if not all(0 <= raw < 65536 for raw in pairs) or not set(pairs.values()) <= {*range(k), IGNORE}:
    raise InputError(
      f"fields for {name}: values {pairs} must map raw values 0..65535 to train ids 0..{k - 1}, "
      "or 255 for void"
    )
  table = np.full(65536, -1, np.int16)
  table[list(pairs)] = list(pairs.values())
  return table


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> tfds.core.DatasetBuilder:
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise InputError(f"TFDS knows no data set {name!r}; see tfds.list_builders()") from error
  if not builder.is_prepared():
    try:
      builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
      raise InputError(
        f"TFDS needs more to prepare {name}: {error}. Install TensorFlow: pip install tensorflow"
      ) from error
  stored = {file_format.value for file_format in builder.info.available_file_formats()}
  if "array_record" not in stored:
    raise InputError(
      f"{builder.data_dir} is stored as {', '.join(sorted(stored))}, which only TensorFlow reads: "
      "pip install tensorflow and run tfds convert_format "
      f"--dataset_dir={builder.data_dir} --out_file_format=array_record, "
      "or give another data_dir to prepare it anew"
    )
  return builder


def _records(builder: tfds.core.DatasetBuilder, split: str, fields: Fields) -> Sequence[Record]:
  features = builder.info.features
  # Encoded bytes: TFDS would decode palette masks to colors.
  skip = {
    fields[key]: tfds.decode.SkipDecoding()
    for key in ("image", "label")
    if key in fields and isinstance(features[fields[key]], tfds.features.Image)
  }
  try:
    return builder.as_data_source(split, decoders=skip)
  except ValueError as error:
    raise InputError(
      f"fields: {builder.name} has no split {split!r}; it has {', '.join(builder.info.splits)}"
    ) from error


def _encoded(value: object) -> bytes:
  """Encoded bytes as they are, arrays (masks stored as tensors) as PNG."""
  return value if isinstance(value, bytes) else encode_png(np.squeeze(np.asarray(value)))


def _text(value: object) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)
