"""`coco`: images with objects in COCO's JSON: polygons, run-length codes, crowds.

ROOT/annotations/instances_train2017.json   ROOT/train/_annotations.coco.json   ROOT/anything.json
ROOT/train2017/NAME.jpg                     ROOT/train/NAME.jpg                 ROOT/images/NAME.jpg

Likewise val (or valid) and test; a single file is split at random.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jseg.data.files import FileError, is_file, parse_json, read_bytes, shown
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import canonical_image
from jseg.data.files.instances import Annotation, coco_masks
from jseg.data.sources.annotated import (
  Box,
  Flaw,
  annotate,
  annotated_source,
  cover_boxes,
  has_labels,
  is_text,
  make_example,
  object_classes,
  read_id,
  read_numbers,
  wrong_size,
)
from jseg.data.sources.base import Example, ListedSource, existing_folder
from jseg.data.sources.coco_masks import read_mask
from jseg.data.sources.image_places import ImagePlaces, plain_name
from jseg.data.sources.pairs import divide
from jseg.types import InputError, Json

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
  groups: bool = False,
  crowds_are_objects: bool = False,
) -> ListedSource:
  """Reads a data set in COCO's JSON, as COCO and annotation tools write it.

  Category ids may be sparse: classes are the categories in the order of their ids, after the
  background, and their ids are `ClassInfo.values`. Images without annotations are kept.
  Invalid annotations are reported and skipped; an invalid file raises. docs/annotation_tools.md
  tells how what the tools write is read.

  Args:
    root: the folder, or the JSON file.
    annotations: JSON file of each split, from the root; None looks for them.
    images: folder of each split's images, from the root; None looks for them.
    fractions: shares of the splits where there is a single JSON file; see `folder_source`.
    seed: seed of the random split.
    groups: whether categories that only name a group of others (`supercategory`), without one
      annotation, are classes too.
    crowds_are_objects: whether what is annotated as a crowd (`iscrowd`) is one object instead. CVAT
      writes crowds for whatever was drawn with its brush.

  Raises:
    InputError: there are no such files, they are not COCO's JSON, they disagree on their
      categories, or pycocotools is missing.
  """
  coco_masks()
  root = Path(root).expanduser()
  home = root.parent if _is_json(root) else existing_folder(root)
  files = _find_files(root, annotations)
  contents = {split: _read(path) for split, path in files.items()}
  classes, numbers, notes = _classes(files, contents, groups)
  splits: dict[str, list[CocoItem]] = {}
  problems: list[FileError] = []
  for split, path in files.items():
    given = home / images[split] if images and split in images else None
    names = [row.get("file_name") for row in contents[split].images]
    places = ImagePlaces.find(home, path, list(filter(is_text, names)), given)
    splits[split], found = _items(path, contents[split], places, numbers, not crowds_are_objects)
    problems += found
    notes += [] if crowds_are_objects else _only_crowds(path, contents[split])
  paths = {item.image for items in splits.values() for item in items} | set(files.values())
  return annotated_source(
    classes,
    divide(splits, root, fractions, seed),
    [(str(path), path) for path in paths],
    problems,
    notes,
    f" labels {crowds_are_objects}",
  )


def matches(root: Path) -> bool:
  """Whether a path is COCO's JSON, or a folder that holds some."""
  if _is_json(root):
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
    crowds: whether there are crowds, or what is annotated so is an object.
  """

  name: str
  image: Path
  size: tuple[int, int] | None
  annotations: Sequence[Json]
  numbers: Mapping[int, int]
  where: Path
  crowds: bool = True

  def load(self) -> Example:
    """Reads the image and draws the masks; `notes` of the example say what was left out.

    Raises:
      FileError: naming the image, if it is damaged or of another size than annotated.
    """
    image = canonical_image(read_bytes(self.image), self.image)
    if self.size is not None and self.size != image.size:
      raise wrong_size(image, self.image, self.size, self.where)
    objects: list[Annotation] = []
    notes: list[FileError] = []
    boxes: list[Box] = []
    for raw in self.annotations:
      try:
        objects.append(self._object(raw, image.size))
      except Flaw as flaw:
        where = f"{self.where}: annotation {shown(raw.get('id', '?'))} of {self.image.name}"
        notes.append(FileError(flaw.args[0], where, flaw.args[1], "It is left out"))
        boxes += _box_of_left_out(raw, image.size)
    void = cover_boxes(boxes, objects, image.size)
    return make_example(image, objects, notes, void, has_labels(len(self.numbers)))

  def _object(self, raw: Json, size: tuple[int, int]) -> Annotation:
    mask = read_mask(raw.get("segmentation"), size)
    area = raw.get("area")
    area = float(read_numbers([area])[0]) if area else 0
    if area > 2 * mask.size:  # rounding and all
      raise Flaw("malformed", f"has an area of {area:g} in an image of {mask.size} pixels")
    category = read_id(raw["category_id"])
    assert isinstance(category, int), "only such annotations are put with images"
    crowd = _flag(raw.get("iscrowd")) and self.crowds
    return annotate(
      mask, self.numbers[category], crowd, _box(raw, size), area if area > 0 else None
    )


def _box(raw: Json, size: tuple[int, int]) -> Box | None:
  """The annotated box within the image: (y0 x0 y1 x1); None if there is none. Raises Flaw."""
  if not (box := raw.get("bbox")):
    return None
  numbers = read_numbers(box)
  if len(numbers) != 4:
    raise Flaw("malformed", f"bbox {shown(box)} isn't [x, y, width, height]")
  x, y, w, h = numbers
  x0, x1 = (min(max(edge, 0), size[1]) for edge in (x, x + w))
  y0, y1 = (min(max(edge, 0), size[0]) for edge in (y, y + h))
  if x0 >= x1 or y0 >= y1:
    what = f"bbox {shown(box)} covers nothing of an image {size[1]} wide x {size[0]} high"
    raise Flaw("box", what)
  return y0, x0, y1, x1


def _box_of_left_out(raw: Json, size: tuple[int, int]) -> list[Box]:
  """Where an object that is left out must be, if that is known."""
  try:
    box = _box(raw, size)
  except Flaw:
    return []
  return [box] if box else []


def _flag(value: object) -> bool:
  """Whether `iscrowd` says so. Raises Flaw."""
  if value in (None, "", 0, "0", "false", "False"):
    return False
  if value in (1, "1", "true", "True"):
    return True
  raise Flaw("malformed", f"has {shown(value)} as iscrowd, where 0 or 1 belongs")


def _is_json(path: Path) -> bool:
  return path.suffix.lower() == ".json" and not path.is_dir()


def _json_files(folder: Path) -> list[Path]:
  """JSON files of a folder but hidden ones, such as the `._*` of macOS."""
  paths = sorted(folder.iterdir()) if folder.is_dir() else []
  return [path for path in paths if _is_json(path) and not path.name.startswith(".")]


def _candidates(root: Path) -> dict[str, list[Path]]:
  """JSON files by split; "" is of none."""
  found: dict[str, list[Path]] = {}
  for path in sorted([*_json_files(root / "annotations"), *_json_files(root)]):
    match = _SPLIT.fullmatch(path.stem)
    named = path.stem.startswith(("captions_", "person_keypoints_", "image_info_", "stuff_"))
    split = match[1].replace("valid", "val") if match else ""
    if not named:
      found.setdefault(split, []).append(path)
  for split in ("train", "val", "valid", "test"):
    for path in _json_files(root / split):
      found.setdefault(split.replace("valid", "val"), []).append(path)
  if any(found.keys()):
    found.pop("", None)
  return found


def _find_files(root: Path, annotations: Mapping[str, str] | None) -> dict[str, Path]:
  if annotations:
    return {split: root / path for split, path in annotations.items()}
  if _is_json(root):
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


@dataclasses.dataclass(frozen=True)
class _Content:
  """The lists of objects of a JSON file, whose values are anything."""

  images: Sequence[Json]
  annotations: Sequence[Json]
  categories: Sequence[Json]


def _read(path: Path) -> _Content:
  content = parse_json(read_bytes(path), path, "Was it cut short? Copy it again")
  found: dict[str, Sequence[Json]] = {}
  for key in ("images", "annotations", "categories"):
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise InputError(
        f'{path} has no list of objects under "{key}": COCO\'s JSON has images, annotations and '
        "categories"
      )
    found[key] = rows
  return _Content(**found)


def _classes(
  files: Mapping[str, Path], contents: Mapping[str, _Content], groups: bool
) -> tuple[ClassInfo, dict[int, int], list[FileError]]:
  """The classes, the class of each category id, and what is to be told of them."""
  first: dict[int, str] = {}
  for split, content in contents.items():
    names = _category_names(content, files[split])
    first = first or names
    if names != first:
      other = shown(sorted(names.items() ^ first.items())[:3])
      raise InputError(
        f"{files[split]}: its categories differ from those of {next(iter(files.values()))}, as in "
        f"{other}; give all splits the same categories"
      )
  where = next(iter(files.values()))
  unused = set() if groups else _groups(contents)
  notes = [_group_note(where, i, first[i]) for i in sorted(unused)]
  ids = sorted(first.keys() - unused)
  if ids and not 0 <= ids[0] <= ids[-1] < 65536:
    outside = ids[-1] if ids[0] >= 0 else ids[0]
    raise InputError(
      f"{where}: a category has the id {shown(outside)}; number the categories from 1 on (ids from "
      "0 to 65535 are possible)"
    )
  background = next(i for i in range(len(ids) + 1) if i not in ids)
  try:
    classes = object_classes([first[i] for i in ids], (background, *ids))
  except InputError as error:
    raise InputError(f"{where}: categories: {error}") from None
  return classes, {number: i for i, number in enumerate(ids, 1)}, notes


def _category_names(content: _Content, path: Path) -> dict[int, str]:
  try:
    pairs = [(read_id(row["id"]), row["name"]) for row in content.categories]
  except KeyError as error:
    raise InputError(f"{path}: a category has no {error}; each has an id and a name") from None
  if not pairs or not all(isinstance(number, int) for number, _ in pairs):
    ids = shown([row["id"] for row in content.categories[:5]])
    raise InputError(f"{path}: categories {ids} must have whole numbers as ids")
  given = {number: name for number, name in pairs if isinstance(number, int)}
  names = {number: name for number, name in given.items() if isinstance(name, str)}
  if len(names) < len(given):
    raise InputError(f"{path}: categories {shown(list(given.values()))} must have texts as names")
  if len(names) < len(pairs):
    twice = collections.Counter(number for number, _ in pairs).most_common(1)[0][0]
    raise InputError(f"{path}: two categories have the id {twice}; give each its own")
  return names


def _groups(contents: Mapping[str, _Content]) -> set[int]:
  """Categories that others name as their group, and that no annotation is of, as Roboflow has."""
  rows = [row for content in contents.values() for row in content.categories]
  annotations = (row for content in contents.values() for row in content.annotations)
  used = {read_id(row.get("category_id")) for row in annotations}
  found = set()
  for row in rows:
    number = read_id(row["id"])
    others = (other for other in rows if other["id"] != row["id"])
    if (
      isinstance(number, int)
      and number not in used
      and any(o.get("supercategory") == row["name"] for o in others)
    ):
      found.add(number)
  return found if len(found) < len({read_id(row["id"]) for row in rows}) else set()


def _group_note(path: Path, number: int, name: str) -> FileError:
  text = (
    f"category {number}, {shown(name)}, has no annotation and only groups others: it is no class"
  )
  return FileError("unused", path, text, "To have it as a class, set data.options.groups=True")


def _only_crowds(path: Path, content: _Content) -> list[FileError]:
  """Tells that every annotation is a crowd, if that is so."""
  count = len(content.annotations)
  if not count or any(row.get("iscrowd") in (None, "", 0, "0") for row in content.annotations):
    return []
  text = f"all {count} annotations are crowds (iscrowd), which are neither found nor missed"
  fix = "If each is an object, as what was drawn with CVAT's brush, set "
  return [FileError("crowds", path, text, f"{fix}data.options.crowds_are_objects=True")]


def _items(
  path: Path,
  content: _Content,
  places: ImagePlaces,
  numbers: Mapping[int, int],
  crowds: bool,
) -> tuple[list[CocoItem], list[FileError]]:
  problems: list[FileError] = []
  annotations: dict[int | str, list[Json]] = {}
  rows = []
  for row in content.images:
    number, name = read_id(row.get("id")), row.get("file_name")
    if number is None or not is_text(str(number)) or not is_text(name):
      text = f"image {shown(row)} has no id or no file_name"
      problems.append(FileError("layout", path, text, "Give each image both"))
    elif number in annotations:
      text = f"image {shown(number)} is listed twice"
      problems.append(FileError("layout", path, text, "Give every image its own id"))
    else:
      annotations[number] = []
      rows.append((number, name, row))
  for row in content.annotations:
    problems += _misfits(row, path, annotations, numbers)
  items = []
  for number, name, row in rows:
    image = places.path(name)
    problems += _misplaced(image, number, name, path, places)
    size, found = _size(row, path)
    problems += found
    rows_of_image = annotations[number]
    items.append(CocoItem(str(number), image, size, rows_of_image, numbers, path, crowds))
  if not items and not problems:
    problems.append(FileError("layout", path, "lists no image", "Add images, or leave it out"))
  return items, problems


def _misplaced(
  image: Path, number: int | str, name: str, path: Path, places: ImagePlaces
) -> list[FileError]:
  """Tells that an image isn't there, or is where none may be."""
  if places.leads_out(name):
    text = f"image {shown(number)} has the file_name {shown(name)}, which leads out of the data set"
    fix = f"Name images from {places.folder} on, as in {image.name!r}"
    return [FileError("layout", path, text, fix)]
  if not is_file(image):
    text = f"is image {shown(number)} of {path}, but missing"
    if plain_name(name) != name:
      text += f"; its file_name is {shown(name)}"
    return [FileError("partner", image, text, "Put it there, or take it off the list")]
  return []


def _size(row: Json, path: Path) -> tuple[tuple[int, int] | None, list[FileError]]:
  """(height, width) of an image, None if the file doesn't say; and what is wrong with it."""
  values = [row.get("height"), row.get("width")]
  if any(value in (None, 0, "", "0") for value in values):
    return None, []
  numbers = [read_id(value) for value in values]
  height, width = numbers
  if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
    return (height, width), []
  text = f"image {shown(row.get('id'))} is {shown(values[1])} wide and {shown(values[0])} high"
  return None, [FileError("layout", path, text, "Give whole numbers, or leave both out")]


def _misfits(
  row: Json,
  path: Path,
  annotations: Mapping[int | str, list[Json]],
  numbers: Mapping[int, int],
) -> list[FileError]:
  """Puts an annotation with its image, or tells why that can't be."""
  where = f"annotation {shown(row.get('id', '?'))}"
  category, image = read_id(row.get("category_id")), read_id(row.get("image_id"))
  problems = []
  if category not in numbers:
    known = ", ".join(map(str, list(numbers)[:8])) + (", ..." if len(numbers) > 8 else "")
    given = shown(row.get("category_id"))
    text = f"{where} is of category {given}, which isn't among {known}"
    fix = "Add it to the categories, or remove the annotation"
    problems.append(FileError("values", path, text, fix))
  rows = None if image is None else annotations.get(image)
  if rows is None:
    text = f"{where} is of image {shown(row.get('image_id'))}, which isn't listed"
    problems.append(FileError("partner", path, text, "List the image, or remove the annotation"))
  if rows is not None and not problems:
    rows.append(row)
  return problems
