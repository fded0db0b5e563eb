"""`coco`: images with objects in COCO's JSON: polygons, run-length codes, crowds.

ROOT/annotations/instances_train2017.json   ROOT/train/_annotations.coco.json   ROOT/anything.json
ROOT/train2017/NAME.jpg                     ROOT/train/NAME.jpg                 ROOT/images/NAME.jpg

Likewise val (or valid) and test; a single file is split at random.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jseg.data.files import FileError, fingerprint, read_bytes
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import canonical_image
from jseg.data.files.instances import Annotation, coco_masks, make_objects
from jseg.data.sources.base import Example, ListedSource, existing_folder
from jseg.data.sources.pairs import split_at_random
from jseg.types import InputError

_SPLIT = re.compile(r"(?:instances_)?(train|val|valid|test)(?:\d{4})?")
_LAYOUT = (
  "Expected ROOT/annotations/instances_train*.json (likewise val, test), "
  "ROOT/train/_annotations.coco.json, or a single JSON file; or name the files, as in "
  'data.options.annotations={"train": "a.json", "val": "b.json"}'
)


def coco_source(
  root: str | Path,
  annotations: Mapping[str, str] | None = None,
  images: Mapping[str, str] | None = None,
  fractions: Mapping[str, float] | None = None,
  seed: int = 0,
) -> ListedSource:
  """Reads a data set in COCO's JSON.

  Category ids may be sparse: classes are the categories in the order of their ids, after the
  background, and their ids are `ClassInfo.values`. Images without annotations are kept.
  Invalid annotations are reported and skipped; an invalid file raises.

  Args:
    root: the folder, or the JSON file.
    annotations: JSON file of each split, from the root; None looks for them.
    images: folder of each split's images, from the root; None looks for them.
    fractions: shares of the splits where there is a single JSON file; see `folder_source`.
    seed: seed of the random split.

  Raises:
    InputError: there are no such files, they are not COCO's JSON, they disagree on their
      categories, or pycocotools is missing.
  """
  coco_masks()
  root = Path(root).expanduser()
  home = root.parent if root.suffix == ".json" else existing_folder(root)
  files = _find_files(root, annotations)
  contents = {split: _read(path) for split, path in files.items()}
  classes, numbers = _classes(files, contents)
  splits: dict[str, list[CocoItem]] = {}
  problems: list[FileError] = []
  for split, path in files.items():
    folder = home / images[split] if images and split in images else None
    folder = folder or _image_folder(home, path, contents[split])
    splits[split], found = _items(path, contents[split], folder, numbers)
    problems += found
  if "" in splits:
    splits = split_at_random(splits[""], fractions or {"train": 0.8, "val": 0.2}, seed)
  elif fractions:
    raise InputError(f"fractions: {root} has its own splits; leave fractions out")

  def digest() -> str:
    paths = {item.image for items in splits.values() for item in items} | set(files.values())
    members = {split: [item.name for item in items] for split, items in splits.items()}
    return fingerprint(((str(path), path) for path in paths), f"{classes.to_json()} {members}")

  return ListedSource(
    classes=classes,
    splits=splits,
    make_fingerprint=digest,
    problems=problems,
    has_objects=True,
    has_labels=False,
  )


def matches(root: Path) -> bool:
  """Whether a path is COCO's JSON, or a folder that holds some."""
  if root.suffix == ".json":
    return True
  return root.is_dir() and not (root / "classes.json").exists() and bool(_candidates(root))


@dataclasses.dataclass(frozen=True)
class CocoItem:
  """An image and its annotations in COCO's JSON.

  Attributes:
    name: id of the image.
    image: path of the image.
    size: (height, width) as annotated, or None if it isn't.
    annotations: annotations of the image, as in the JSON.
    numbers: class of each category id.
    where: path of the JSON file.
  """

  name: str
  image: Path
  size: tuple[int, int] | None
  annotations: Sequence[dict[str, Any]]
  numbers: Mapping[int, int]
  where: Path

  def load(self) -> Example:
    """Reads the image and draws the masks; `notes` of the example say what was left out.

    Raises:
      FileError: naming the image, if it is damaged or of another size than annotated.
    """
    image = canonical_image(read_bytes(self.image), self.image)
    if self.size is not None and self.size != image.size:
      (height, width), (h, w) = image.size, self.size
      fix = "Put back the image that was annotated, or annotate this one"
      if image.rotated and self.size == image.size[::-1]:
        fix = "Its EXIF rotation was applied; save the image upright, or without that tag"
      raise FileError(
        "size", self.image, f"{width} wide x {height} high, but {self.where} says {w} x {h}", fix
      )
    objects: list[Annotation] = []
    notes: list[FileError] = []
    for raw in self.annotations:
      try:
        objects.append(self._object(raw, image.size))
      except _Flaw as flaw:
        where = f"{self.where}: annotation {raw.get('id', '?')} of {self.image.name}"
        notes.append(FileError(flaw.args[0], where, flaw.args[1], "It is left out"))
    objects_of_image = make_objects(image.size, objects)
    return Example(
      image=image.data,
      label=None,
      size=image.size,
      counts=np.zeros(256, np.int64),
      objects=objects_of_image,
      notes=tuple(notes),
    )

  def _object(self, raw: dict[str, Any], size: tuple[int, int]) -> Annotation:
    mask = _mask(raw.get("segmentation"), size)
    if not mask.any():
      raise _Flaw("empty", "covers no pixel of the image")
    box, area = raw.get("bbox"), raw.get("area")
    if box is not None:
      if len(_numbers(box)) != 4:
        raise _Flaw("malformed", f"bbox {box} isn't [x, y, width, height]")
      x, y, w, h = box
      x0, x1 = (min(max(edge, 0), size[1]) for edge in (x, x + w))
      y0, y1 = (min(max(edge, 0), size[0]) for edge in (y, y + h))
      if x0 >= x1 or y0 >= y1:
        raise _Flaw("box", f"bbox {box} covers nothing of an image {size[1]} wide x {size[0]} high")
      box = (y0, x0, y1, x1)
    area = float(_numbers([area])[0]) if area else None
    crowd = bool(raw.get("iscrowd", 0))
    category = self.numbers[raw["category_id"]]
    return Annotation(mask, category, crowd, box=box, area=area)


class _Flaw(Exception):
  """(kind, what is wrong) with one annotation."""


def _mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
  """The mask of an annotation: bool [h w]. Raises _Flaw."""
  masks = coco_masks()
  if not segmentation:
    raise _Flaw("maskless", "has a box but no mask")
  if isinstance(segmentation, list):
    polygons = [_numbers(polygon) for polygon in segmentation]
    polygons = [p[: len(p) // 2 * 2] for p in polygons if len(p) >= 6]
    if not polygons:
      points = max(len(_numbers(polygon)) // 2 for polygon in segmentation)
      raise _Flaw("polygon", f"has a polygon of {points} points, which has no inside")
    if max(abs(n) for polygon in polygons for n in polygon) > 10 * max(size):
      raise _Flaw("malformed", "has a polygon that reaches far outside of the image")
    code = masks.merge(masks.frPyObjects(polygons, *size))
    return masks.decode(code).astype(bool)
  counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
  if counts is None or segmentation.get("size") != list(size):
    raise _Flaw("malformed", f"has a mask that isn't a run-length code of {size[1]} x {size[0]}")
  if isinstance(counts, list):
    # In C, runs that don't fill the image would be read past their end.
    if not all(n >= 0 for n in _numbers(counts)) or sum(counts) != size[0] * size[1]:
      raise _Flaw(
        "malformed", f"has runs of {sum(counts)} pixels for an image of {math.prod(size)}"
      )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, np.array(counts, np.int64))
    return flat.reshape(size[::-1]).T
  try:
    runs = _runs(counts)
  except (ValueError, TypeError, IndexError):
    raise _Flaw("malformed", "has a run-length code that can't be read") from None
  return _mask({"size": list(size), "counts": runs}, size)


def _runs(text: str | bytes) -> list[int]:
  """The runs that COCO's text stands for: 5 bits a character, from the fourth run as differences.

  Not by pycocotools, which trusts the text and writes past its end where that is damaged.
  """
  codes = [c - 48 for c in (text.encode("ascii") if isinstance(text, str) else text)]
  runs: list[int] = []
  value = shift = 0
  for code in codes:
    if not 0 <= code < 64:
      raise ValueError(code)
    value |= (code & 31) << shift
    shift += 5
    if not code & 32:
      if code & 16:
        value -= 1 << shift
      runs.append(value + (runs[-2] if len(runs) > 2 else 0))
      value = shift = 0
  if shift:
    raise ValueError("cut short")
  return runs


def _numbers(values: Any) -> list[float]:
  """A list of finite numbers as it is. Raises _Flaw."""
  good = isinstance(values, list) and all(
    isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
  )
  if not good:
    raise _Flaw("malformed", f"has {str(values)[:60]} where finite numbers belong")
  return values


def _candidates(root: Path) -> dict[str, list[Path]]:
  """JSON files by split; "" is of none."""
  found: dict[str, list[Path]] = {}
  for path in sorted([*root.glob("annotations/*.json"), *root.glob("*.json")]):
    match = _SPLIT.fullmatch(path.stem)
    named = path.stem.startswith(("captions_", "person_keypoints_", "image_info_", "stuff_"))
    split = match[1].replace("valid", "val") if match else ""
    if not named:
      found.setdefault(split, []).append(path)
  for split in ("train", "val", "valid", "test"):
    for path in sorted((root / split).glob("*.json")):
      found.setdefault(split.replace("valid", "val"), []).append(path)
  if any(found.keys()):
    found.pop("", None)
  return found


def _find_files(root: Path, annotations: Mapping[str, str] | None) -> dict[str, Path]:
  if annotations:
    return {split: root / path for split, path in annotations.items()}
  if root.suffix == ".json":
    return {"": root}
  found = _candidates(root)
  if not found:
    raise InputError(f"{root} holds no COCO JSON. {_LAYOUT}")
  for split, paths in found.items():
    if len(paths) > 1:
      several = ", ".join(str(path.relative_to(root)) for path in paths)
      what = f"for the split {split}" if split else "and none is named by its split"
      raise InputError(f"{root} holds several JSON files {what}: {several}. {_LAYOUT}")
  order = ("train", "val", "test", "")
  return {split: found[split][0] for split in order if split in found}


def _read(path: Path) -> dict[str, Any]:
  try:
    content = json.loads(read_bytes(path))
  except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
    raise InputError(
      f"{path} is not valid JSON ({error}); was it cut short? Copy it again"
    ) from None
  for key in ("images", "annotations", "categories"):
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise InputError(
        f'{path} has no list of objects under "{key}": COCO\'s JSON has images, annotations and '
        "categories"
      )
  return content


def _classes(
  files: Mapping[str, Path], contents: Mapping[str, dict[str, Any]]
) -> tuple[ClassInfo, dict[int, int]]:
  """The classes, and the class of each category id."""
  first: dict[int, str] = {}
  for split, content in contents.items():
    path = files[split]
    try:
      names = {row["id"]: row["name"] for row in content["categories"]}
    except KeyError as error:
      raise InputError(f"{path}: a category has no {error}; each has an id and a name") from None
    if not names or not all(type(number) is int for number in names):
      raise InputError(f"{path}: categories {list(names)[:5]} must have whole numbers as ids")
    first = first or names
    if names != first:
      other = sorted(names.items() ^ first.items())[:3]
      raise InputError(
        f"{path}: its categories differ from those of {next(iter(files.values()))}, as in "
        f"{other}; give all splits the same categories"
      )
  ids = sorted(first)
  background = next(i for i in range(len(ids) + 1) if i not in first)
  title = "background" if "background" not in first.values() else "no object"
  try:
    classes = ClassInfo(
      names=(title, *(first[i] for i in ids)),
      ignore_label=None,
      mask_values=(background, *ids),
      instance=True,
    )
  except InputError as error:
    raise InputError(f"{next(iter(files.values()))}: categories: {error}") from None
  return classes, {number: i for i, number in enumerate(ids, 1)}


def _image_folder(home: Path, path: Path, content: dict[str, Any]) -> Path:
  """Where the first image of a JSON file is; the folder beside it if it is nowhere."""
  name = path.stem.removeprefix("instances_")
  folders = [home / name, home / "images" / name, path.parent, path.parent / "images"]
  folders += [home / "images", home, home / "train", home / "val"]
  files = [str(row.get("file_name")) for row in content["images"][:1]]
  return next((f for f in folders if any((f / file).is_file() for file in files)), folders[0])


def _items(
  path: Path, content: dict[str, Any], folder: Path, numbers: Mapping[int, int]
) -> tuple[list[CocoItem], list[FileError]]:
  problems: list[FileError] = []
  annotations: dict[Any, list[dict[str, Any]]] = {}
  rows = []
  for row in content["images"]:
    if not isinstance(row.get("id"), int | str) or not isinstance(row.get("file_name"), str):
      text = f"image {str(row)[:60]} has no id or no file_name"
      problems.append(FileError("layout", path, text, "Give each image both"))
    elif row["id"] in annotations:
      text = f"image {row['id']} is listed twice"
      problems.append(FileError("layout", path, text, "Give every image its own id"))
    else:
      annotations[row["id"]] = []
      rows.append(row)
  for row in content["annotations"]:
    problems += _misfits(row, path, annotations, numbers)
  items = []
  for row in rows:
    image = folder / row["file_name"]
    if not image.is_file():
      text = f"is image {row['id']} of {path}, but missing"
      problems.append(FileError("partner", image, text, "Put it there, or take it off the list"))
    size = (row["height"], row["width"]) if "height" in row and "width" in row else None
    items.append(CocoItem(str(row["id"]), image, size, annotations[row["id"]], numbers, path))
  if not items and not problems:
    problems.append(FileError("layout", path, "lists no image", "Add images, or leave it out"))
  return items, problems


def _misfits(
  row: dict[str, Any],
  path: Path,
  annotations: Mapping[Any, list[dict[str, Any]]],
  numbers: Mapping[int, int],
) -> list[FileError]:
  """Puts an annotation with its image, or tells why that can't be."""
  where = f"annotation {row.get('id', '?')}"
  category, image = row.get("category_id"), row.get("image_id")
  problems = []
  if type(category) is not int or category not in numbers:
    known = ", ".join(map(str, list(numbers)[:8])) + (", ..." if len(numbers) > 8 else "")
    text = f"{where} is of category {category}, which isn't among {known}"
    fix = "Add it to the categories, or remove the annotation"
    problems.append(FileError("values", path, text, fix))
  if not isinstance(image, int | str) or image not in annotations:
    text = f"{where} is of image {image}, which isn't listed"
    problems.append(FileError("partner", path, text, "List the image, or remove the annotation"))
  if not problems:
    annotations[image].append(row)
  return problems
