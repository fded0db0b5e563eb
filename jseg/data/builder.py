"""Preparation as TFDS array_record, without TensorFlow."""

import collections
import contextlib
import contextvars
import dataclasses
import hashlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow_datasets as tfds

from jseg.arithmetic import cdiv, strips
from jseg.console import ERRORS, progress
from jseg.data.files import FileError
from jseg.data.files.rows import StoredImage, write_rows
from jseg.data.files.scientific import decode_array
from jseg.data.sources.base import Example, Item, Source
from jseg.data.survey import Survey
from jseg.lock import locked
from jseg.outputs import WriteError
from jseg.types import IGNORE, InputError, Json

OBJECTS_PER_IMAGE = "objects_an_image"  # as prepared sets call it
SPACINGS = "spacings"  # of the volumes of each split, in order; sets of before 0.2 have none
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_MOST_NOTES = 5  # objects left out that a note names
_READ_AHEAD = {2: 64, 3: 4}  # examples read ahead of the writer: images, volumes
_MOST_BYTES = 256 << 20  # of them, as they are written; reading takes several times as much
SAMPLE = 2**21
"""Pixels of a split of scientific images that are kept for percentiles, means and deviations."""


def prepare(
  source: Source, name: str, data_dir: str | os.PathLike[str] | None
) -> tuple["Builder", str]:
  """Prepares a source, unless that was done before.

  Args:
    source: the source.
    name: name of the data set in lower case, digits and _.
    data_dir: where prepared data are kept; None is TFDS's default, ~/tensorflow_datasets.

  Returns:
    (the builder that reads the prepared set, the fingerprint under which it is kept).

  Raises:
    InputError: the data are wrong, or cannot be written; nothing half-made stays behind.
  """
  _refuse(source.problems)
  fingerprint = source.fingerprint()
  if not _FINGERPRINT.fullmatch(fingerprint):
    fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
  # TFDS would make a folder that is called "~".
  if os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR).startswith("~"):
    raise InputError(
      "data.data_dir: there is no home directory to keep prepared data in; name a folder, or set "
      "TFDS_DATA_DIR"
    )
  data_dir = os.path.expanduser(data_dir) if data_dir else None
  with _quiet():
    builder = _open(source, name, fingerprint, data_dir)
    if not builder.is_prepared():
      _write(builder)
      builder = _open(source, name, fingerprint, data_dir)
  _tell(builder.info.metadata["notes"])
  return builder, fingerprint


def _open(
  source: Source, name: str, fingerprint: str, data_dir: str | os.PathLike[str] | None
) -> "Builder":
  """Opens a prepared set, or what is to become one."""
  folder = pathlib.Path(data_dir or os.path.expanduser(tfds.core.constants.DATA_DIR))
  with prepared(folder / f"jseg_{name}" / fingerprint):
    builder = Builder(source, name, fingerprint, data_dir)
    if builder.data_path.exists():
      sizes = builder.info.metadata["max_size"]
      if missing := [split for split in source.splits if split not in sizes]:
        raise ValueError(f"metadata.json doesn't know the split {missing[0]}")
      if missing := [split for split in source.splits if split not in builder.info.splits]:
        raise ValueError(f"dataset_info.json doesn't know the split {missing[0]}")
  return builder


@contextlib.contextmanager
def prepared(folder: pathlib.Path) -> Iterator[None]:
  """Tells whatever reading a prepared set fails with, and how it is made again.

  Args:
    folder: the folder of the set.

  Raises:
    InputError: reading failed.
  """
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # damaged files fail in any way
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"the prepared data in {folder} are damaged ({reason}); remove that folder: the next start "
      "prepares them again"
    ) from error


def _sweep(folder: pathlib.Path) -> None:
  """Removes what preparations that were killed have left; the lock says that none is going on."""
  for path in folder.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*"):
    shutil.rmtree(path, ignore_errors=True)


class _Info(tfds.core.DatasetInfo):
  """What is known of a set, which no bucket of TFDS has.

  Where a set isn't prepared yet, TFDS makes a temporary folder for what a bucket may have of it,
  and leaves it there.
  """

  def initialize_from_bucket(self) -> None:
    """Asks nobody."""


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Writes a source's examples, in a folder named by the data set.

  The config is named by the source's fingerprint: a changed source is another config, prepared
  again beside the old one, which stays until it is deleted.
  """

  name = "jseg"  # of each builder: that of its data set
  VERSION = tfds.core.Version("1.3.0")  # of the canonical form: raise it when reading changes

  def __init__(
    self, source: Source, name: str, fingerprint: str, data_dir: str | os.PathLike[str] | None
  ):
    self._source = source
    self._survey = Survey(source)
    self.name = f"jseg_{name}"
    super().__init__(config=tfds.core.BuilderConfig(name=fingerprint), data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    source = self._source
    scientific = getattr(source, "scientific", False)  # which sources of others may not know
    image = tfds.features.Text() if scientific else _image_feature(source.ndim)
    features = {"image": image, "name": tfds.features.Text()}
    if source.has_labels:
      features["label"] = _label_feature(source.ndim)
    if source.has_objects:
      features["objects"] = _objects_feature()
    metadata = {
      "classes": list(source.classes.names),
      "palette": source.classes.palette.tolist(),
      "max_size": {},
      "pixel_counts": {},
      "pixels_where_present": {},
      OBJECTS_PER_IMAGE: {},
      "crowds": {},
      SPACINGS: {},
      "notes": [],
    }
    if scientific:
      metadata["values"] = {}
    return _Info(
      builder=self,
      description="Segmentation in canonical form: labels are train ids, 255 is void; objects have "
      "boxes, classes and masks.",
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(metadata),
      disable_shuffling=True,  # keep the order of the source; training shuffles as it reads
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, Json]]]:
    return {split: self._generate_examples(split) for split in self._source.splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Json]]:
    items, classes = self._source.splits[split], self._source.classes
    statistics = SplitStatistics(self._source.ndim)
    loaded = _load_all(items, _READ_AHEAD[self._source.ndim])
    examples = progress(loaded, f"Preparing {split}", len(items), ERRORS, transient=False)
    left_out: list[FileError] = []
    sample: list[np.ndarray] = []
    for i, example in enumerate(examples):
      statistics.add(example)
      if example.values is not None:
        sample.append(_some_pixels(example, i, SAMPLE // len(items)))
      self._survey.add(split, f"{split}/{items[i].name}", example)
      left_out += example.notes
      yield i, _record(example, items[i].name, pathlib.Path(self.data_dir, f"{split}_{i}"))
    _refuse(self._survey.refusals(split))
    for key, value in statistics.metadata(len(classes.label_names)).items():
      self.info.metadata[key][split] = value
    if sample:
      self.info.metadata["values"][split] = [sample[0].dtype.name, sample[0].shape[1]]
      np.save(sample_file(self.data_dir, split), np.concatenate(sample))
    notes = _left_out(split, left_out) + self._survey.obstacles(split)
    if split == [*self._source.splits][-1]:
      notes += [*self._source.notes, *self._survey.notes()]
    self.info.metadata["notes"] += [[n.kind, n.file, n.problem, n.fix] for n in notes]

  def _log_download_bytes(self) -> None:
    """Silenced: we show our own progress bar."""

  def _log_download_done(self) -> None:
    """Silenced."""


def sample_file(folder: str | os.PathLike[str], split: str) -> pathlib.Path:
  """Returns where a prepared set of scientific images keeps some pixels of a split, [n c]."""
  return pathlib.Path(folder) / f"sample_{split}.npy"


def _some_pixels(example: Example, seed: int, most: int) -> np.ndarray:
  """Pixels of a scientific image [n c]: all, or up to `most` at random."""
  most, rng = max(most, 1), np.random.default_rng(seed)
  if isinstance(example.image, StoredImage):
    return _spread_pixels(example.image, rng, most)
  assert isinstance(example.image, bytes)
  image = decode_array(example.image)
  pixels = image.reshape(-1, image.shape[-1])
  return pixels if len(pixels) <= most else pixels[rng.integers(len(pixels), size=most)]


def _spread_pixels(image: StoredImage, rng: np.random.Generator, most: int) -> np.ndarray:
  """Pixels at random [n c], about equally many of all strips of an image; one is in memory."""
  height, width, channels = image.shape
  parts = strips((height, width))
  each = cdiv(most, len(parts))
  found = []
  for rows in parts:
    pixels = image[rows].reshape(-1, channels)
    found.append(pixels[rng.integers(len(pixels), size=min(each, len(pixels)))])
  return np.concatenate(found)


class SplitStatistics:
  """What the metadata of a prepared set says of a split, gathered example by example.

  Attributes:
    counts: int64 [256], pixels of each train id.
  """

  def __init__(self, ndim: int):
    self.counts = np.zeros(256, np.int64)
    self._where_present = np.zeros(256, np.int64)
    self._largest = np.zeros(ndim, np.int64)
    self._objects_per_image: collections.Counter[int] = collections.Counter()
    self._crowds = 0
    self._spacings: list[Sequence[float]] = []

  def add(self, example: Example) -> None:
    """Adds an example."""
    self.counts += example.counts
    valid = example.counts.sum() - example.counts[IGNORE]
    self._where_present += np.where(example.counts > 0, valid, 0)
    self._largest = np.maximum(self._largest, example.size)
    if example.spacing is not None:
      self._spacings.append(example.spacing)
    if example.objects is not None:
      self._objects_per_image[len(example.objects)] += 1
      self._crowds += int(example.objects.crowd.sum())

  def metadata(self, num_labels: int) -> Json:
    """Everything by its key in the metadata."""
    return {
      "max_size": self._largest.tolist(),
      "pixel_counts": self.counts[:num_labels].tolist(),
      "pixels_where_present": self._where_present[:num_labels].tolist(),
      OBJECTS_PER_IMAGE: sorted(self._objects_per_image.items()),
      "crowds": self._crowds,
      SPACINGS: self._spacings,
    }


def _image_feature(ndim: int) -> tfds.features.FeatureConnector:
  if ndim == 2:
    return tfds.features.Image(shape=(None, None, None))
  # Masks shrink to nothing; images to half at best, and unpacking would slow every reading.
  return tfds.features.Tensor(shape=(None,) * 4, dtype=np.float16, encoding="bytes")


def _label_feature(ndim: int) -> tfds.features.FeatureConnector:
  if ndim == 2:
    return tfds.features.Image(shape=(None, None, 1), encoding_format="png")
  return tfds.features.Tensor(shape=(None,) * 3, dtype=np.uint8, encoding="zlib")


def _objects_feature() -> tfds.features.FeaturesDict:
  return tfds.features.FeaturesDict(
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


def _record(example: Example, name: str, beside: pathlib.Path) -> Json:
  """An example by features; rows of a large image and of its label go to files of their own.

  Args:
    example: the example.
    name: its name.
    beside: beginning of these files' paths.
  """
  record: Json = {"image": example.image, "name": name}
  if example.label is not None:
    record["label"] = example.label
  if isinstance(example.image, StoredImage):
    assert isinstance(example.label, np.ndarray)
    for key, rows in (("image", example.image), ("label", example.label)):
      record[key] = write_rows(rows, beside.with_name(f"{beside.name}_{key}.npy"))
  if example.objects is not None:
    record["objects"] = {
      field.name: getattr(example.objects, field.name)
      for field in dataclasses.fields(example.objects)
      if field.name != "scores"
    }
  return record


def _refuse(problems: Sequence[FileError]) -> None:
  """Raises the first problems, if there are any."""
  if problems:
    more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
    raise InputError("\n".join(map(str, problems[:5])) + more)


def _left_out(split: str, notes: Sequence[FileError]) -> list[FileError]:
  """What was left out of a split's examples, as one note."""
  if not notes:
    return []
  kinds = collections.Counter(note.kind for note in notes)
  counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
  such = "; ".join(f"{note.file}: {note.problem}" for note in notes[:_MOST_NOTES])
  problem = f"left out {len(notes)} object(s) ({counts}), such as {such}"
  return [FileError("left out", split, problem, "jseg check-data lists all of them")]


def _tell(notes: Sequence[Sequence[str]]) -> None:
  """Prints what is to be known before training; every time, not only at preparation."""
  for note in notes:
    ERRORS.print(f"! {FileError(*note)}", style="yellow", soft_wrap=True)


def _write(builder: Builder) -> None:
  """Prepares a set, unless another process has done so while this one waited for it."""
  folder = builder.data_path.parent
  try:
    with locked(pathlib.Path(f"{folder}.lock"), str(folder), "wait for it", wait=True):
      _sweep(folder)
      if not builder.data_path.exists():
        builder.download_and_prepare(file_format="array_record")
  except OSError as error:
    # Where the file system has no locks, the last to finish finds it in place.
    if not builder.data_path.exists():
      raise WriteError(
        f"cannot write prepared data to {builder.data_dir}: {error}; "
        "make room, or give another data_dir"
      ) from error


def _load_all(
  items: Sequence[Item], ahead: int, most_bytes: int = _MOST_BYTES
) -> Iterator[Example]:
  """Loads in threads, in order, a bounded number ahead, and of large examples one at a time."""
  start, largest = 0, most_bytes  # the first tells how large they are
  with ThreadPoolExecutor() as pool:
    while start < len(items):
      some = items[start : start + max(1, min(ahead, most_bytes // largest))]
      contexts = [contextvars.copy_context() for _ in some]  # the limits of what is read
      loaded = pool.map(lambda context, item: context.run(item.load), contexts, some)
      sizes = []
      for example in loaded:
        image = example.image
        sizes.append(len(image) if isinstance(image, bytes) else image.nbytes)
        yield example
      start, largest = start + len(some), max(1, *sizes)


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
