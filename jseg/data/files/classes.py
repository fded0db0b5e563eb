"""Classes of a data set: names, colors, and the values that stand for them in mask files."""

import collections
import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeGuard, TypeVar

import numpy as np

from jseg.data.files import parse_json, read_text, shown
from jseg.data.overlaps import mix_colors, pixels_by_class
from jseg.outputs import write_text
from jseg.types import IGNORE, InputError, Json

_Item = TypeVar("_Item")

Color = tuple[int, int, int]

EXAMPLE = '{"classes": ["background", "cell"], "ignore_label": 255}'
_LONGEST = 1000  # characters of a name, which is drawn into legends
_KEYS = (
  "classes",
  "palette",
  "ignore_label",
  "ignore_color",
  "mask_values",
  "task",
  "combinations",
)


def voc_colormap(count: int = 256) -> np.ndarray:
  """Colors of the Pascal VOC rule: the bits of the index, spread over red, green and blue.

  Args:
    count: number of colors.

  Returns:
    uint8 [count 3], all different. 0 is black, 1 is (128, 0, 0), 255 is (224, 224, 192).
  """
  index = np.arange(count)
  colors = np.zeros((count, 3), np.uint8)
  for bit in range(8):
    for channel in range(3):
      colors[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
  return colors


@dataclasses.dataclass(frozen=True, eq=False)
class ClassInfo:
  """What the pixels of a data set's masks mean.

  Attributes:
    names: one name per class; the position is the train id, 0..k-1.
    palette: uint8 [k 3], red, green and blue of each class; also what color masks are looked
      up in. Given empty, it becomes the VOC colormap.
    ignore_label: raw mask value of void pixels, or None if every pixel has a class.
    ignore_color: color of void pixels in color masks, or None.
    mask_values: raw mask value of each class; None means 0..k-1. Of COCO's JSON, category ids.
    by_color: indexed masks are read by their own colors, looked up in the palette, and not by their
      indices. So it is where a classes.json gives a palette.
    instance: masks hold instance ids, 0 being the first class. Of two classes any other id is the
      second; of more, an id is 1000 times its class and a number below 1000, as in Cityscapes.
    combinations: of classes that may overlap, what each train id stands for: for each class 1 if
      its pixels are of it, 0 if they aren't, IGNORE if that isn't known. Train ids are then the
      places in it, as many as `mask_values`. None: every pixel has one class.

  Raises:
    InputError: the fields contradict each other.
  """

  names: tuple[str, ...]
  palette: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.uint8))
  ignore_label: int | None = IGNORE
  ignore_color: Color | None = None
  mask_values: tuple[int, ...] | None = None
  instance: bool = False
  by_color: bool = False
  combinations: tuple[tuple[int, ...], ...] | None = None

  def __post_init__(self) -> None:
    names, k = self.names, len(self.names)
    if self.combinations is not None:
      _check_combinations(self.combinations, k)
    if not 1 <= k <= IGNORE and not self.instance:
      raise InputError(
        f"classes: {k} names, but 1 to {IGNORE} are possible (one byte, 255 is void)"
      )
    if long := next((name for name in names if len(name) > _LONGEST), ""):
      raise InputError(
        f"classes: {shown(long)!r} has {len(long)} characters; a name can have up to {_LONGEST}"
      )
    if twice := _duplicates(names):
      raise InputError(
        f"classes: {shown(twice[0])!r} is listed twice; give every class its own name"
      )
    palette = np.array(self.palette, np.uint8) if len(self.palette) else voc_colormap(k)
    object.__setattr__(self, "palette", palette)
    if len(palette) != k:
      raise InputError(
        f"palette: {len(palette)} colors for {k} classes; "
        "give one [red, green, blue] per class, or leave palette out"
      )
    colors = [tuple(color) for color in palette.tolist()]
    if shared := _duplicates(colors):
      same = [name for name, color in zip(names, colors, strict=True) if color == shared[0]]
      raise InputError(f"palette: {', '.join(same)} share the color {list(shared[0])}; change one")
    if self.ignore_color in colors:
      raise InputError(
        f"ignore_color: {list(self.ignore_color or ())} is also the color of a class; change one"
      )
    values = self.values
    count, what = len(self.label_names), "class" if self.combinations is None else "combination"
    if len(values) != count or _duplicates(values) or not all(0 <= v < 65536 for v in values):
      raise InputError(
        f"mask_values: {shown(list(values))} must be {count} different values from 0 to 65535, one "
        f"per {what}"
      )
    if self.ignore_label is not None and not 0 <= self.ignore_label < 65536:
      label = shown(self.ignore_label)
      raise InputError(f"ignore_label: {label} must be null or from 0 to 65535")
    if self.ignore_label in values:
      name = self.label_names[values.index(self.ignore_label)]
      raise InputError(
        f"ignore_label: {self.ignore_label} is also the mask value of class {name!r}; "
        "give the values of the classes as mask_values, or set ignore_label to null"
      )
    if self.instance and k < 2:
      raise InputError(
        f"task: instance masks need background and at least one class of objects, but {k} classes "
        "are listed; for semantic masks leave task out"
      )

  @property
  def values(self) -> tuple[int, ...]:
    """Raw mask value of each train id."""
    return tuple(range(len(self.label_names))) if self.mask_values is None else self.mask_values

  @property
  def label_names(self) -> tuple[str, ...]:
    """What each train id stands for: a class, or the classes that overlap there."""
    if self.combinations is None:
      return self.names
    return tuple(
      " + ".join(name for name, state in zip(self.names, row, strict=True) if state == 1)
      or "no class"
      for row in self.combinations
    )

  @property
  def label_palette(self) -> np.ndarray:
    """Color of each train id: uint8 [m 3]; where classes overlap, the mean of theirs."""
    if self.combinations is None:
      return self.palette
    return mix_colors(np.array(self.combinations), self.palette)

  def by_class(self, pixels: np.ndarray) -> np.ndarray:
    """Pixels of each class: int64 [k], from those of each train id, int64 [256] or fewer."""
    if self.combinations is None:
      return pixels[: len(self.names)]
    return pixels_by_class(pixels, self.combinations)

  def table(self) -> np.ndarray:
    """Lookup from raw mask value to train id: int16 [65536], IGNORE for void, -1 for unknown."""
    if self.instance and len(self.names) == 2:
      table = np.ones(65536, np.int16)
      table[0] = 0
    elif self.instance:
      table = (np.arange(65536) // 1000).astype(np.int16)
      table[1:1000] = -1
      table[table >= len(self.names)] = -1
    else:
      table = np.full(65536, -1, np.int16)
      table[list(self.values)] = np.arange(len(self.values))
    if self.ignore_label is not None:
      table[self.ignore_label] = IGNORE
    return table

  def category(self, instance: int) -> int:
    """Class of an instance id."""
    return 1 if len(self.names) == 2 else instance // 1000

  @classmethod
  def load(
    cls, path: str | os.PathLike[str], tasks: Sequence[str] = ("semantic", "instance")
  ) -> "ClassInfo":
    """Reads a classes.json.

    Args:
      path: the file; keys `classes` (required), `palette`, `ignore_label` (if absent 255, or null
        for instance ids and masks of one class each), `ignore_color`, `mask_values`, `task` (one of
        `tasks`), and in a run `combinations`. Other keys are for people. Classes that overlap have
        lists of values in `mask_values`: all those that their pixels have.
      tasks: what the data can be for; the first is the default.

    Raises:
      InputError: the file is missing, malformed or contradicts itself.
    """
    path = Path(path)
    if not path.is_file():
      raise InputError(f"{path} is missing: it names the classes; the smallest one is {EXAMPLE}")
    content = parse_json(read_text(path), path, f"A valid one is {EXAMPLE}")
    if not isinstance(content, dict) or not _is_list(content.get("classes"), str):
      raise InputError(f'{path} must hold a list of names under "classes", as in {EXAMPLE}')
    for key in content.keys() - set(_KEYS):
      if close := difflib.get_close_matches(key, _KEYS, n=1):
        raise InputError(f'{path}: unknown key "{shown(key)}"; did you mean "{close[0]}"?')
    task = content.get("task", tasks[0])
    if task not in tasks:
      kind = "volumes" if "semantic3d" in tasks else "images"
      choices = " or ".join(f'"{choice}"' for choice in tasks)
      if task == "multilabel":
        raise InputError(f'{path}: task "multilabel" is for data.name "multilabel"')
      raise InputError(f'{path}: task "{shown(task)}" is not for {kind}; choose {choices}')
    try:
      # The 255th object is one like any other.
      ignore_label = content.get("ignore_label", IGNORE if task.startswith("semantic") else None)
      ignore_color = content.get("ignore_color")
      mask_values, combinations = content.get("mask_values"), content.get("combinations")
      if mask_values and _is_list(mask_values, list):
        mask_values, combinations = _regions(mask_values, len(content["classes"]))
      overlapping = combinations is not None
      palette = _palette(content.get("palette"))
      if not len(palette) and (overlapping or task == "multilabel"):
        palette = voc_colormap(len(content["classes"]) + 1)[1:]  # black is that of no class
      return cls(
        names=tuple(content["classes"]),
        palette=palette,
        ignore_label=_integer("ignore_label", ignore_label),
        ignore_color=None if ignore_color is None else _color("ignore_color", ignore_color),
        mask_values=None if mask_values is None else _integers("mask_values", mask_values),
        instance=task == "instance",
        by_color=bool(content.get("palette")) and task != "instance" and not overlapping,
        combinations=_rows(combinations) if overlapping else None,
      )
    except InputError as error:
      raise InputError(f"{path}: {error}") from None

  def to_json(self) -> str:
    """The text of a classes.json that `load` reads back."""
    content: Json = {"classes": list(self.names), "palette": self.palette.tolist()}
    content["ignore_label"] = self.ignore_label
    if self.ignore_color is not None:
      content["ignore_color"] = list(self.ignore_color)
    if self.mask_values is not None:
      content["mask_values"] = list(self.mask_values)
    content["task"] = "instance" if self.instance else "semantic"
    if self.combinations is not None:
      content["combinations"] = [list(row) for row in self.combinations]
    return json.dumps(content)

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a classes.json, as a whole or not at all. Raises `jseg.outputs.WriteError`."""
    write_text(Path(path), self.to_json())


def _check_combinations(combinations: Sequence[Sequence[int]], k: int) -> None:
  """Raises InputError if these can't be the combinations of k classes."""
  if not 1 <= len(combinations) <= IGNORE:
    raise InputError(
      f"classes: they overlap in {len(combinations)} ways (void among them), but 1 to {IGNORE} are "
      "possible (one byte, 255 is void); leave out or join classes"
    )
  good = all(len(row) == k and set(row) <= {0, 1, IGNORE} for row in combinations)
  if not good:
    raise InputError(
      f"combinations: {shown(list(combinations))} must be lists of 0, 1 or {IGNORE}, one for each "
      f"of {k} classes"
    )


def _regions(values: Sequence[object], k: int) -> tuple[list[int], list[list[int]]]:
  """(each mask value, what it is of each class), from the values of each class. 0 is of none."""
  regions = [_integers("mask_values", each) for each in values]
  if len(regions) != k or not all(regions):
    raise InputError(f"mask_values: {shown(list(values))} must be {k} lists of values, none empty")
  if any(0 in region for region in regions):
    raise InputError(
      f"mask_values: {shown(list(values))} has 0 in a list, but 0 is of no class; leave it out"
    )
  every = sorted({0, *(value for region in regions for value in region)})
  return every, [[int(value in region) for region in regions] for value in every]


def _rows(value: object) -> tuple[tuple[int, ...], ...]:
  if not isinstance(value, list):
    raise InputError(f"combinations: {shown(value)} must be a list of lists")
  return tuple(_integers("combinations", row) for row in value)


def _duplicates(items: Iterable[_Item]) -> list[_Item]:
  return [item for item, count in collections.Counter(items).items() if count > 1]


def _is_list(value: object, kind: type[_Item]) -> TypeGuard[Sequence[_Item]]:
  # bool is an int to Python, not to whoever writes a palette.
  if not isinstance(value, Sequence) or isinstance(value, str):
    return False
  return all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _palette(value: object) -> np.ndarray:
  if value is None:
    value = []
  if not isinstance(value, list):
    raise InputError(f"palette: {shown(value)} must be a list of [red, green, blue], one per class")
  return np.array([_color("palette", color) for color in value], np.uint8)


def _color(key: str, value: object) -> Color:
  if not _is_list(value, int) or len(value) != 3 or not all(0 <= v <= 255 for v in value):
    raise InputError(f"{key}: {shown(value)} must be [red, green, blue], each from 0 to 255")
  return value[0], value[1], value[2]


def _integers(key: str, value: object) -> tuple[int, ...]:
  if not _is_list(value, int):
    raise InputError(f"{key}: {shown(value)} must be a list of whole numbers")
  return tuple(value)


def _integer(key: str, value: object) -> int | None:
  if value is None or (isinstance(value, int) and not isinstance(value, bool)):
    return value
  raise InputError(f"{key}: {shown(value)} must be a whole number or null")
