"""What can only be said of many examples together, said alike by checks and by preparation."""

from collections.abc import Sequence

import numpy as np

from jseg.data.files import FileError, attempt
from jseg.data.files.classes import ClassInfo, Color
from jseg.data.files.listing import counted
from jseg.data.files.masks import check_binary
from jseg.data.sources.base import Example, Source
from jseg.types import IGNORE

# By trait of an example: what it means, and what to do.
_TRAITS = {
  "turned": (
    "EXIF turns or mirrors the image and not its mask; they fit in size",
    "If the masks were drawn on the pixels as stored, turn them in the same way; if they were "
    "drawn on what viewers show, nothing needs to be done",
  ),
  "mask_turned": (
    "EXIF turns or mirrors the mask and not its image; they fit in size",
    "Look at the contact sheet; if masks lie wrongly, save them without EXIF",
  ),
  "exif_damaged": (
    "the image's EXIF data are damaged, so that it isn't known whether they turn it: read as it is "
    "stored",
    "Look at the contact sheet; if it lies on its side, save it upright and without EXIF",
  ),
  "white_is_zero": (
    "the mask says that 0 is white (TIFF's MinIsWhite, or PBM): of the two ways to read it, the "
    "one with known classes was taken, else what is shown as white is the higher number",
    "Look at the contact sheet; if classes changed places, save them as PNG",
  ),
  "reordered": (
    "the mask's palette has the classes in another order than classes.json: read by its colors",
    "Nothing needs to be done; if the indices are class numbers, take palette out of classes.json",
  ),
  "transparent": (
    "the mask has transparent pixels, which count like all others",
    "If they are to be void, give them the ignore value",
  ),
}


class Survey:
  """Gathers examples and says what their sum means for training.

  Args:
    source: the source of the examples.
  """

  def __init__(self, source: Source):
    self._classes = source.classes
    self._has_objects, self._has_labels = source.has_objects, source.has_labels
    self._splits = {split: _Split(len(items)) for split, items in source.splits.items()}
    self._traits: dict[str, list[str]] = {}
    self._colors: dict[int, dict[Color, list[str]]] = {}
    self._numbers: dict[tuple[str, int], list[str]] = {}

  def add(self, split: str, name: str, example: Example) -> None:
    """Adds an example; `name` is what messages call it."""
    self._splits[split].add(name, example)
    for trait in example.traits:
      self._traits.setdefault(trait, []).append(name)
    for index, color in example.colors.items():
      self._colors.setdefault(index, {}).setdefault(color, []).append(name)
    if example.values is not None:
      kind = example.values.dtype, len(example.values.low)
      self._numbers.setdefault(kind, []).append(name)

  def refusals(self, split: str) -> list[FileError]:
    """Why a split can't be prepared, though each of its examples can; all have been added."""
    contents = self._splits[split]
    if contents.missing:
      return []
    problems = attempt(check_binary, contents.pixels, self._classes, f"split {split}")[1]
    return problems + self._odd_numbers(split)

  def _odd_numbers(self, split: str) -> list[FileError]:
    """Scientific images of a split that aren't of the type and channels of most so far."""
    if len(self._numbers) < 2:
      return []
    usual = max(self._numbers, key=lambda kind: len(self._numbers[kind]))
    fix = "Give all images the same type of numbers and the same channels in the same order"
    problems = []
    for (dtype, channels), names in self._numbers.items():
      ours = [name for name in names if name.startswith(f"{split}/")]
      if ours and (dtype, channels) != usual:
        problem = (
          f"hold {dtype} in {channels} channel(s), but most images {usual[0]} in {usual[1]}: one "
          "scaling can't suit both"
        )
        problems.append(FileError("values", counted(ours), problem, fix))
    return problems

  def obstacles(self, split: str) -> list[FileError]:
    """Why training on a split would teach nothing, or evaluating on it would measure nothing."""
    contents = self._splits[split]
    if contents.missing or self.refusals(split):
      return []
    if split.startswith("train"):
      found = self._nothing_to_learn(split)
    elif split == "test" or self._has_objects:  # perhaps to be predicted only
      found = None
    else:
      found = self._nothing_to_measure(split)
    return [found] if found else []

  def notes(self) -> list[FileError]:
    """What training will do without, or should be looked at, once all splits are complete."""
    notes = [
      FileError(trait, counted(names), *_TRAITS[trait]) for trait, names in self._traits.items()
    ]
    notes += self._palettes() + self._mixed()
    for split, contents in self._splits.items():
      if contents.missing or self.refusals(split) or self.obstacles(split):
        continue
      if split.startswith("train"):
        notes += self._absent(split) + self._constant(split)
      elif found := self._nothing_to_measure(split):
        notes.append(found)
    return notes

  def _nothing_to_learn(self, split: str) -> FileError | None:
    contents, names = self._splits[split], self._classes.label_names
    if self._has_objects:
      return no_object(split, int(contents.objects.sum()), contents.crowds)
    return one_class(split, contents.pixels[: len(names)], names) if self._has_labels else None

  def _nothing_to_measure(self, split: str) -> FileError | None:
    contents = self._splits[split]
    if self._has_objects:
      return no_object(split, int(contents.objects.sum()), contents.crowds)
    pixels = contents.pixels[: len(self._classes.label_names)]
    return no_label(split, pixels) if self._has_labels else None

  def _absent(self, split: str) -> list[FileError]:
    """Classes that training will never see."""
    contents, names = self._splits[split], self._classes.names
    found = contents.objects if self._has_objects else self._classes.by_class(contents.pixels)
    first = 1 if self._has_objects else 0
    absent = [name for i, name in enumerate(names) if i >= first and not found[i]]
    if not absent:
      return []
    fix = "Add examples, or take them out of classes.json"
    more = ", ..." if len(absent) > 8 else ""
    text = f"{len(absent)} class(es) never occur: {', '.join(absent[:8])}{more}"
    return [FileError("absent", f"split {split}", text, fix)]

  def _constant(self, split: str) -> list[FileError]:
    """Channels of scientific images that hold one number in a whole split."""
    contents = self._splits[split]
    if contents.low is None or contents.high is None:
      return []
    flat = np.flatnonzero(contents.low == contents.high)
    if not flat.size:
      return []
    names = ", ".join(f"{i} (always {contents.low[i]:g})" for i in flat[:8])
    problem = f"{flat.size} channel(s) never change: {names}"
    fix = "Nothing can be learned from them: leave them out of the files, or look why"
    return [FileError("constant", f"split {split}", problem, fix)]

  def _palettes(self) -> list[FileError]:
    """Indexed masks whose palettes give the same index different colors."""
    for index, colors in sorted(self._colors.items()):
      if len(colors) > 1 and index != self._classes.ignore_label:
        (one, some), (other, few) = sorted(colors.items(), key=lambda item: -len(item[1]))[:2]
        problem = (
          f"index {index} of these indexed masks is {other}, but {one} in {counted(some)}; read as "
          f"class {index} in all"
        )
        fix = (
          'Give the colors of the classes in classes.json, "palette": [[r, g, b], ...], to have '
        )
        fix += "masks read by their colors; if indices are class numbers, nothing needs to be done"
        return [FileError("palettes", counted(few), problem, fix)]
    return []

  def _mixed(self) -> list[FileError]:
    """Two classes as 0 and 1 in some masks and, it seems, as 0 and 255 in others."""
    if not _plain_binary(self._classes):
      return []
    ones = [name for contents in self._splits.values() for name in contents.ones]
    whites = [name for contents in self._splits.values() for name in contents.whites]
    if not ones or not whites:
      return []
    name = self._classes.names[1]
    problem = (
      f"hold only 0 and 255, but {counted(ones)} only 0 and 1: 255 is void, so that class {name!r} "
      "is missed where 255 stands for it"
    )
    return [FileError("mixed", counted(whites), problem, "Give the class the same value in all")]


class _Split:
  """Sums over a split.

  Attributes:
    missing: number of examples that haven't been added.
    pixels: int64 [256], pixels of each train id.
    objects: int64 [256], objects of each class that aren't crowds.
    crowds: number of crowds.
    ones: names of masks of 0 and 1 alone.
    whites: names of masks of 0 and 255 alone.
    low: of scientific images, the smallest number of each channel, float64 [c].
    high: of scientific images, the largest number of each channel, float64 [c].
  """

  def __init__(self, count: int):
    self.missing, self.crowds = count, 0
    self.pixels, self.objects = np.zeros((2, 256), np.int64)
    self.ones: list[str] = []
    self.whites: list[str] = []
    self.low: np.ndarray | None = None
    self.high: np.ndarray | None = None

  def add(self, name: str, example: Example) -> None:
    self.missing -= 1
    self._add_values(example)
    self.pixels += example.counts
    if example.counts[1] and not example.counts[IGNORE]:
      self.ones.append(name)
    if example.counts[IGNORE] and not example.counts[1]:
      self.whites.append(name)
    if example.objects is not None:
      crowd = example.objects.crowd
      self.crowds += int(crowd.sum())
      self.objects += np.bincount(example.objects.classes[~crowd], minlength=256)[:256]

  def _add_values(self, example: Example) -> None:
    values = example.values
    if values is None:
      return
    if self.low is None or self.high is None:
      self.low, self.high = values.low, values.high
    elif len(values.low) == len(self.low):  # others are refused
      self.low, self.high = np.minimum(self.low, values.low), np.maximum(self.high, values.high)


def _plain_binary(classes: ClassInfo) -> bool:
  """Whether masks hold 0, 1, and 255 for void."""
  plain = classes.mask_values in (None, (0, 1)) and classes.ignore_label == IGNORE
  return plain and len(classes.names) == 2 and not classes.instance


def no_label(split: str, pixels: np.ndarray) -> FileError | None:
  """What is wrong with masks of nothing but void, given the pixels of each class; else None."""
  if not len(pixels) or pixels.any():
    return None
  fix = "Check what value the masks have for void (ignore_label in classes.json), or label some"
  return FileError("void", f"split {split}", "no pixel is labeled: every mask is void", fix)


def one_class(split: str, pixels: np.ndarray, names: Sequence[str]) -> FileError | None:
  """What is wrong with masks of void or of one class alone; None if there are two or more."""
  present = np.flatnonzero(pixels)
  if len(present) != 1:
    return no_label(split, pixels)
  name = names[present[0]]
  problem = f"all labeled pixels are of one class, {name!r}, so there is nothing to tell apart"
  fix = "Check what the masks hold, and whether classes.json names their values"
  return FileError("one class", f"split {split}", problem, fix)


def no_object(split: str, objects: int, crowds: int) -> FileError | None:
  """What is wrong with images without an object, of which crowds are none; else None."""
  if objects:
    return None
  what = f"no object, and {crowds} crowd(s), which aren't learned" if crowds else "no object"
  fix = "Check the masks, or the annotations and what was left out of them"
  return FileError("no objects", f"split {split}", f"holds {what}", fix)
