"""What `check_folder` found, and how it looks in a terminal."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jseg.data.files import FileError
from jseg.data.files.classes import ClassInfo
from jseg.data.files.instances import Objects
from jseg.data.sources.base import Values
from jseg.types import IGNORE, Json

_MOST_PROBLEMS = 20  # shown of each kind


@dataclasses.dataclass
class SplitReport:
  """Contents of a split.

  Attributes:
    count: number of examples.
    sizes: number of images of each (height, width), or (depth, height, width).
    pixels: int64 [256], pixels of each class; pixels[IGNORE] is void.
    labeled: pixels that aren't void.
    images_with: int64 [256], number of masks in which each class occurs.
    objects: int64 [k], number of objects of each class; empty if the set has no objects.
    images_with_objects: int64 [k], number of images with objects of each class.
    most: largest number of objects in one image.
    values: of scientific images, how many hold which type of numbers in how many channels.
    low: of scientific images, the smallest number of each channel, float64 [c].
    high: of scientific images, the largest number of each channel, float64 [c].
  """

  count: int
  sizes: collections.Counter[tuple[int, ...]] = dataclasses.field(
    default_factory=collections.Counter
  )
  pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
  labeled: int = 0
  images_with: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
  objects: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  images_with_objects: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  most: int = 0
  values: collections.Counter[tuple[str, int]] = dataclasses.field(
    default_factory=collections.Counter
  )
  low: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
  high: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

  def to_dict(self, names: Sequence[str]) -> Json:
    """Plain values for JSON, given the names of the classes."""
    counts = {"pixels": self.pixels, "masks_with": self.images_with, "objects": self.objects}
    kinds = [
      {"type": dtype, "channels": channels, "images": n}
      for (dtype, channels), n in self.values.most_common()
    ]
    ranges = np.stack([self.low, self.high], 1).tolist()
    return {
      **({"values": kinds, "ranges": ranges} if kinds else {}),
      "images": self.count,
      "sizes": [{"size": list(size), "images": n} for size, n in self.sizes.most_common()],
      "void_pixels": int(self.pixels[IGNORE]),
      **{
        key: dict(zip(names, count[: len(names)].tolist(), strict=True))
        for key, count in counts.items()
        if count.size
      },
    }

  def add_pixels(self, counts: np.ndarray, classes: ClassInfo) -> None:
    """Adds a mask: int64 [256], its pixels of each train id."""
    by_class = classes.by_class(counts)
    self.pixels[: len(by_class)] += by_class
    self.pixels[IGNORE] += counts[IGNORE]
    self.labeled += int(counts[:IGNORE].sum())
    self.images_with[: len(by_class)] += by_class > 0

  def add_values(self, values: Values) -> None:
    """Adds the numbers of a scientific image."""
    self.values[values.dtype, len(values.low)] += 1
    if not self.low.size:
      self.low, self.high = values.low, values.high
    elif len(self.low) == len(values.low):
      self.low, self.high = np.minimum(self.low, values.low), np.maximum(self.high, values.high)

  def add_objects(self, objects: Objects, k: int) -> None:
    """Adds the objects of an image; k is the number of classes."""
    counts = np.bincount(objects.classes[~objects.crowd], minlength=k)
    if not self.objects.size:
      self.objects, self.images_with_objects = np.zeros((2, k), np.int64)
    self.objects += counts
    self.images_with_objects += counts > 0
    self.most = max(self.most, len(objects))


@dataclasses.dataclass
class Report:
  """Result of `check_folder`.

  Attributes:
    root: the folder.
    classes: classes of the data set.
    splits: contents of each split.
    problems: errors: all that must be mended before training.
    notes: warnings: what training will do without, or reads otherwise than may be expected.
  """

  root: Path
  classes: ClassInfo
  splits: dict[str, SplitReport]
  problems: list[FileError]
  notes: list[FileError] = dataclasses.field(default_factory=list)

  @property
  def ok(self) -> bool:
    """Nothing is wrong: `load` will prepare this folder."""
    return not self.problems

  def to_dict(self) -> Json:
    """Plain values for JSON: contents of each split, and problems with their severity."""
    findings = [("error", problem) for problem in self.problems]
    findings += [("warning", note) for note in self.notes]
    names = self.classes.names
    return {
      "root": str(self.root),
      "ok": self.ok,
      "errors": len(self.problems),
      "warnings": len(self.notes),
      "classes": list(names),
      "splits": {split: contents.to_dict(names) for split, contents in self.splits.items()},
      "problems": [problem.to_dict(severity) for severity, problem in findings],
    }

  def table(self) -> RenderableType:
    """Counts, class shares and problems, for a rich console."""
    tables = [_splits_table(self)]
    if any(contents.values for contents in self.splits.values()):
      tables.append(_values_table(self))
    if any(contents.pixels.any() for contents in self.splits.values()):
      tables.append(_classes_table(self))
    if any(contents.objects.size for contents in self.splits.values()):
      tables.append(_objects_table(self))
    return Group(*tables, *_problem_lines(self))


def _splits_table(report: Report) -> Table:
  table = Table(title=Text(str(report.root)), title_justify="left")
  volumes = any(len(size) == 3 for contents in report.splits.values() for size in contents.sizes)
  axes = f"sizes (width x height{' x depth' if volumes else ''})"
  for column in ("split", "images", axes, "void"):
    table.add_column(column, justify="right" if column in ("images", "void") else "left")
  for split, contents in report.splits.items():
    sizes = [f"{'x'.join(map(str, s[::-1]))} ({n})" for s, n in contents.sizes.most_common(3)]
    more = len(contents.sizes) - 3
    text = ", ".join(sizes) + (f" and {more} more" if more > 0 else "")
    total = max(1, contents.labeled + contents.pixels[IGNORE])
    table.add_row(split, str(contents.count), text, f"{contents.pixels[IGNORE] / total:.1%}")
  return table


def _classes_table(report: Report) -> Table:
  table = Table(caption="share of the labeled pixels (masks that hold the class)")
  table.add_column("class")
  for split in report.splits:
    table.add_column(split, justify="right")
  for i, (name, color) in enumerate(
    zip(report.classes.names, report.classes.palette.tolist(), strict=True)
  ):
    cells = []
    for contents in report.splits.values():
      share = contents.pixels[i] / max(1, contents.labeled)
      cells.append(f"{share:.2%} ({contents.images_with[i]})")
    table.add_row(Text.assemble(("■ ", "rgb({},{},{})".format(*color)), f"{i} {name}"), *cells)
  return table


def _values_table(report: Report) -> Table:
  """What numbers scientific images hold, and how a training is told to read them."""
  caption = (
    "scientific images: train with data.name=scientific, data.channels, and data.scaling (a range "
    "such as 16bit or 0:4095, or percentiles such as 1%:99%)"
  )
  table = Table(caption=caption)
  for column in ("split", "numbers", "channels", "smallest to largest of each channel"):
    table.add_column(column)
  for split, contents in report.splits.items():
    kinds = contents.values.most_common()
    ends = zip(contents.low, contents.high, strict=True)
    ranges = [f"{low:g} to {high:g}{_bits(kinds[0][0][0], high)}" for low, high in ends]
    table.add_row(
      split,
      ", ".join(f"{dtype} ({n})" for (dtype, _), n in kinds),
      ", ".join(dict.fromkeys(str(channels) for (_, channels), _ in kinds)),
      "; ".join(ranges[:12]) + (f" and {len(ranges) - 12} more" if len(ranges) > 12 else ""),
    )
  return table


def _bits(dtype: str, high: float) -> str:
  """How many bits a largest number takes, of those that integers have."""
  return f" ({max(int(high).bit_length(), 1)} bits)" if dtype.startswith("uint") else ""


def _objects_table(report: Report) -> Table:
  most = ", ".join(f"{contents.most} in {split}" for split, contents in report.splits.items())
  table = Table(caption=f"objects (images with any); at most in one image: {most}")
  table.add_column("class")
  for split in report.splits:
    table.add_column(split, justify="right")
  for i, name in enumerate(report.classes.names):
    if i > 0:  # the background is no object
      cells = [
        f"{contents.objects[i]} ({contents.images_with_objects[i]})"
        if contents.objects.size
        else "0"
        for contents in report.splits.values()
      ]
      table.add_row(f"{i} {name}", *cells)
  return table


def _problem_lines(report: Report) -> Iterator[Text]:
  yield from _listed(report.notes, "yellow", "!")
  yield from _listed(report.problems, "red", "✗")
  if report.ok and report.notes:
    yield Text(f"No errors; {len(report.notes)} warning(s).", "green")
  elif report.ok:
    yield Text("No problems found.", "green")


def _listed(problems: Sequence[FileError], color: str, sign: str) -> Iterator[Text]:
  """A few problems of each kind."""
  by_kind: dict[str, list[FileError]] = {}
  for problem in problems:
    by_kind.setdefault(problem.kind, []).append(problem)
  for alike in by_kind.values():
    for problem in alike[:_MOST_PROBLEMS]:
      yield Text.assemble((f"{sign} ", color), (problem.file, "bold"), f": {problem.problem}")
      yield Text(f"  {problem.fix}", "dim")
    if len(alike) > _MOST_PROBLEMS:
      yield Text(f"  ... and {len(alike) - _MOST_PROBLEMS} more of this kind", color)
