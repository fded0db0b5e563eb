"""Images with objects that an annotation tool wrote down: outlines become masks and labels.

Every outline is drawn as COCO draws it (pycocotools): coordinates are those of pixels' corners, the
first pixel's being (0, 0) and (1, 1).
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np

from jseg.arithmetic import count_bytes
from jseg.data.files import FileError, fingerprint, shown
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import CanonicalImage, encode_png
from jseg.data.files.instances import Annotation, Size, coco_masks, make_objects
from jseg.data.sources.base import Example, Item, ListedSource
from jseg.types import IGNORE

Box = tuple[float, float, float, float]
_FAR = 10  # times its size that a polygon may reach out of an image
_LONG = 100  # times the sides of an image that an outline may be longer than around all its pixels


class Flaw(Exception):
  """(kind, what is wrong) with one annotation; it is left out and told."""


def object_classes(names: Sequence[str], values: Sequence[int] | None = None) -> ClassInfo:
  """Makes the classes of objects, after a background.

  Args:
    names: names of the classes of objects.
    values: the number that the files give to the background and to each class.

  Raises:
    InputError: there is no name, or one occurs twice.
  """
  title = "background" if "background" not in names else "no object"
  return ClassInfo(
    names=(title, *names),
    ignore_label=None,
    mask_values=None if values is None else tuple(values),
    instance=True,
  )


def has_labels(count: int) -> bool:
  """Whether so many classes of objects fit in one byte, beside background and void."""
  return count < IGNORE


def make_example(
  image: CanonicalImage,
  objects: Sequence[Annotation],
  notes: Sequence[FileError],
  void: np.ndarray,
  labeled: bool,
) -> Example:
  """Joins an image and its objects.

  The label has the class of every pixel: where objects overlap, that of the last. Crowds are of
  their class.

  Args:
    image: the image.
    objects: its objects, in the order in which they are drawn.
    notes: what was left out.
    void: bool [h w], pixels whose class isn't known.
    labeled: whether to make a label.
  """
  label, counts = None, np.zeros(256, np.int64)
  if labeled:
    pixels = np.zeros(image.size, np.uint8)
    for each in objects:
      part(pixels, each)[each.mask] = each.category
    pixels[void] = IGNORE
    label, counts = encode_png(pixels), count_bytes(pixels)
  return Example(
    image=image.data,
    label=label,
    size=image.size,
    counts=counts,
    objects=make_objects(image.size, objects),
    notes=tuple(notes),
  )


def annotated_source(
  classes: ClassInfo,
  splits: Mapping[str, Sequence[Item]],
  files: Iterable[tuple[str, Path]],
  problems: Sequence[FileError],
  notes: Sequence[FileError],
  options: str = "",
) -> ListedSource:
  """Makes the source of a data set of objects.

  Args:
    classes: its classes, the background among them.
    splits: images and their objects by split.
    files: name and path of every file that is read.
    problems: what keeps the set from being used.
    notes: what is to be known.
    options: what else changes the examples.
  """

  def digest() -> str:
    members = {split: [item.name for item in items] for split, items in splits.items()}
    return fingerprint(files, f"{classes.to_json()} {members}{options}")

  return ListedSource(
    classes=classes,
    splits=splits,
    make_fingerprint=digest,
    problems=problems,
    notes=notes,
    has_objects=True,
    has_labels=has_labels(len(classes.names) - 1),
  )


def cover_boxes(boxes: Iterable[Box], objects: Iterable[Annotation], size: Size) -> np.ndarray:
  """Pixels of boxes (y0 x0 y1 x1) that no object covers: bool [h w]."""
  covered = np.zeros(size, bool)
  for y0, x0, y1, x1 in boxes:
    covered[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
  for each in objects:
    part(covered, each)[each.mask] = False
  return covered


def annotate(
  mask: np.ndarray,
  category: int,
  crowd: bool = False,
  box: Box | None = None,
  area: float | None = None,
) -> Annotation:
  """Makes an annotation of a mask [h w] of the whole image, of which it keeps a part.

  Raises:
    Flaw: the mask is empty.
  """
  down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(down):
    raise Flaw("empty", "covers no pixel of the image")
  top, left = int(down[0]), int(across[0])
  crop = mask[top : down[-1] + 1, left : across[-1] + 1].copy()
  return Annotation(crop, category, crowd, corner=(top, left), box=box, area=area)


def part(pixels: np.ndarray, annotation: Annotation) -> np.ndarray:
  """The part [h w] of an image's pixels that an annotation's mask covers."""
  (top, left), (height, width) = annotation.corner, annotation.mask.shape
  return pixels[top : top + height, left : left + width]


def draw_polygons(polygons: Sequence[Sequence[float]], size: Size) -> np.ndarray:
  """Draws the union of polygons [x0, y0, x1, y1, ...]: bool [h w].

  Raises:
    Flaw: they have no inside, reach far out of the image, or are far longer than any outline.
  """
  whole = [polygon[: len(polygon) // 2 * 2] for polygon in polygons if len(polygon) >= 6]
  if not whole:
    points = max((len(polygon) // 2 for polygon in polygons), default=0)
    raise Flaw("polygon", f"has a polygon of {points} points, which has no inside")
  if max(abs(n) for polygon in whole for n in polygon) > _FAR * max(size):
    raise Flaw("malformed", "has a polygon that reaches far outside of the image")
  if sum(map(_length, whole)) > 2 * math.prod(size) + _LONG * sum(size):
    raise Flaw("malformed", "has a polygon that runs to and fro without end")
  masks = coco_masks()
  return masks.decode(masks.merge(masks.frPyObjects(whole, *size))).astype(bool)


def _length(polygon: Sequence[float]) -> float:
  """How far it is around a polygon, in pixels that are drawn."""
  points = np.reshape(polygon, (-1, 2))
  return float(np.abs(np.roll(points, 1, 0) - points).max(1).sum())


def read_numbers(values: object) -> list[float]:
  """Returns a list of finite numbers, which may be written as text. Raises Flaw."""
  try:
    if isinstance(values, list) and not any(isinstance(v, bool) for v in values):
      numbers = [v if isinstance(v, int | float) else float(v) for v in values]
      if all(math.isfinite(v) for v in numbers):
        return numbers
  except (TypeError, ValueError, OverflowError):
    pass
  raise Flaw("malformed", f"has {shown(values)} where finite numbers belong")


def is_text(value: object) -> TypeGuard[str]:
  """Whether a value is a text that isn't empty and can be written."""
  try:
    return isinstance(value, str) and bool(value.encode())
  except UnicodeEncodeError:  # half a character, which no file name has
    return False


def read_id(value: object) -> int | str | None:
  """An id, or a whole number, however it is written: 1, 1.0 and "1" are the same; else None."""
  if isinstance(value, float) and value.is_integer():
    return int(value)
  if isinstance(value, str):
    plain = len(value) < 16 and re.fullmatch(r"0|-?[1-9][0-9]*", value)
    return int(value) if plain else value
  return value if isinstance(value, int) and not isinstance(value, bool) else None


def wrong_size(image: CanonicalImage, path: Path, size: Size, where: Path) -> FileError:
  """What is wrong with an image of another size than its annotations say."""
  (height, width), (h, w) = image.size, size
  fix = "Put back the image that was annotated, or annotate this one"
  if image.rotated and size == image.size[::-1]:
    fix = "Its EXIF rotation was applied; save the image upright, or without that tag"
  return FileError("size", path, f"{width} wide x {height} high, but {where} says {w} x {h}", fix)


def leads_out(path: Path, roots: Iterable[Path]) -> bool:
  """Whether a path is outside of folders."""
  absolute = Path(os.path.abspath(path))
  return not any(absolute.is_relative_to(os.path.abspath(root)) for root in roots)


def on_a_drive(name: str) -> bool:
  """Whether a file name begins with a drive of Windows."""
  return len(name) > 1 and name[0].isalpha() and name[1] == ":"
