"""Any TFDS data set with masks, through a map from its fields to ours."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jseg.data.classes import ClassInfo
from jseg.data.images import canonical_image, encode_png
from jseg.data.masks import read_mask
from jseg.data.source import Example, Source, check_sizes, make_example
from jseg.types import IGNORE, InputError

_KEYS = ("image", "label", "values", "classes", "palette", "name", "splits")


def existing_source(
  name: str, fields: Mapping[str, Any], data_dir: str | os.PathLike | None = None
) -> Source:
  """A set that TFDS prepares (as array_record, without TensorFlow) or has prepared.

  Args:
    name: TFDS name, with its config if any: "scene_parse150", "my_set/config".
    fields: `image` and `label`, the names of its features; `values`, raw mask value -> train id
      (255 for void); `classes`, the names; and if wanted `palette`, `name` (the feature that
      names examples) and `splits`, our split -> TFDS split, such as {"val": "train[90%:]"}.
    data_dir: where TFDS keeps its data; None for its default.

  Raises:
    InputError: if the map does not fit the set, or the set is stored as tfrecord.
  """
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
  splits = fields.get("splits") or {split: split for split in builder.info.splits}
  items = {}
  for ours, theirs in splits.items():
    records = _records(builder, theirs, fields)
    items[ours] = [
      TfdsItem(records, i, fields, classes, table, f"{name}:{theirs}") for i in range(len(records))
    ]
  content = [builder.info.full_name, builder.info.dataset_size, sorted(fields.items(), key=str)]
  digest = hashlib.sha256(json.dumps(content, default=dict).encode()).hexdigest()[:16]
  return Source(classes, items, lambda: digest)


@dataclasses.dataclass(frozen=True)
class TfdsItem:
  """One record of a TFDS data source."""

  records: Any
  index: int
  fields: Mapping[str, Any]
  classes: ClassInfo
  table: np.ndarray
  where: str

  @property
  def name(self) -> str:
    """Its position: names may be long, repeated or absent in a set made for other ends."""
    return f"{self.index:06d}"

  def load(self) -> Example:
    """Reads, checks and canonicalises it."""
    record = self.records[self.index]
    where = f"{self.where}[{self.index}]"
    if "name" in self.fields:
      where += f" ({_text(record[self.fields['name']])})"
    image = canonical_image(_encoded(record[self.fields["image"]]), where)
    raw = read_mask(_encoded(record[self.fields["label"]]), f"{where} mask")
    check_sizes(image, where, raw, f"{where} mask")
    return make_example(image, raw, self.classes, self.table, f"{where} mask")


def _table(name: str, values: Mapping[Any, int], k: int) -> np.ndarray:
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


def _builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise InputError(f"TFDS knows no data set {name!r}; see tfds.list_builders()") from error
  if not builder.is_prepared():
    try:
      builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
      raise InputError(
        f"TFDS needs more to prepare {name}: {error}. Install TensorFlow with "
        'pip install "jaxseg[tensorflow]"'
      ) from error
  stored = {file_format.value for file_format in builder.info.available_file_formats()}
  if "array_record" not in stored:
    raise InputError(
      f"{builder.data_dir} is stored as {', '.join(sorted(stored))}, which only TensorFlow reads: "
      'pip install "jaxseg[tensorflow]" and run tfds convert_format '
      f"--dataset_dir={builder.data_dir} --out_file_format=array_record, "
      "or give another data_dir to prepare it anew"
    )
  return builder


def _records(builder: tfds.core.DatasetBuilder, split: str, fields: Mapping[str, Any]) -> Any:
  features = builder.info.features
  # Encoded bytes: TFDS would decode palette masks to colours.
  skip = {
    fields[key]: tfds.decode.SkipDecoding()
    for key in ("image", "label")
    if isinstance(features[fields[key]], tfds.features.Image)
  }
  try:
    return builder.as_data_source(split, decoders=skip)
  except ValueError as error:
    raise InputError(
      f"fields: {builder.name} has no split {split!r}; it has {', '.join(builder.info.splits)}"
    ) from error


def _encoded(value: Any) -> bytes:
  """Encoded bytes as they are, arrays (masks stored as tensors) as PNG."""
  return value if isinstance(value, bytes) else encode_png(np.squeeze(np.asarray(value)))


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)
