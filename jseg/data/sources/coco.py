"""`coco`: images with objects in COCO's JSON: polygons, run-length codes, crowds.

ROOT/annotations/instances_train2017.json   ROOT/train/_annotations.coco.json   ROOT/anything.json
ROOT/train2017/NAME.jpg                     ROOT/train/NAME.jpg                 ROOT/images/NAME.jpg

Likewise val (or valid) and test; a single file is split at random.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from jseg.data.files import FileError, fingerprint, read_bytes
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import canonical_image
from jseg.data.files.instances import Annotation, coco_masks
from jseg.data.sources.annotated import (
  Box,
  Flaw,
  cover_boxes,
  covering,
  draw_polygons,
  has_labels,
  is_file,
  leads_out,
  make_example,
  object_classes,
  on_a_drive,
  read_numbers,
  shown,
  wrong_size,
)
from jseg.data.sources.base import Example, ListedSource, existing_folder
from jseg.data.sources.pairs import split_at_random
from jseg.types import InputError

_SPLIT = re.compile(r"(?:instances_)?(train|val|valid|test)(?:\d{4})?")
_LAYOUT = (
  "Expected ROOT/annotations/instances_train*.json (likewise val, test), "
  "ROOT/train/_annotations.coco.json, or a single JSON file; or name the files, as in "
  'data.options.annotations={"train": "a.json", "val": "b.json"}'
)
_SAMPLE = 200  # file names by which the folder of the images is found
_DIGITS = 12  # of 5 bits, in one number of a run-length code


def coco_source(
  root: str | Path,
  annotations: Mapping[str, str] | None = None,
  images: Mapping[str, str] | None = None,
  fractions: Mapping[str, float] | None = None,
  seed: int = 0,
  groups: bool = False,
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
    places = _Places.find(home, path, contents[split], given)
    splits[split], found = _items(path, contents[split], places, numbers)
    problems += found
  if "" in splits:
    splits = split_at_random(splits[""], fractions or {"train": 0.8, "val": 0.2}, seed)
  elif fractions:
    raise InputError(f"fractions: {root} has its own splits; leave fractions out")

  def digest() -> str:
    paths = {item.image for items in splits.values() for item in items} | set(files.values())
    members = {split: [item.name for item in items] for split, items in splits.items()}
    named = ((str(path), path) for path in paths)
    return fingerprint(named, f"{classes.to_json()} {members} labels")

  return ListedSource(
    classes=classes,
    splits=splits,
    make_fingerprint=digest,
    problems=problems,
    notes=notes,
    has_objects=True,
    has_labels=has_labels(len(numbers)),
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

  def _object(self, raw: dict[str, Any], size: tuple[int, int]) -> Annotation:
    mask = covering(_mask(raw.get("segmentation"), size))
    area = raw.get("area")
    area = float(read_numbers([area])[0]) if area else 0
    if area > 2 * mask.size:  # rounding and all
      raise Flaw("malformed", f"has an area of {area:g} in an image of {mask.size} pixels")
    category = self.numbers[int(raw["category_id"])]
    crowd = _flag(raw.get("iscrowd"))
    return Annotation(mask, category, crowd, box=_box(raw, size), area=area if area > 0 else None)


def _box(raw: Mapping[str, Any], size: tuple[int, int]) -> Box | None:
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


def _box_of_left_out(raw: Mapping[str, Any], size: tuple[int, int]) -> list[Box]:
  """Where an object that is left out must be, if that is known."""
  try:
    box = _box(raw, size)
  except Flaw:
    return []
  return [box] if box else []


def _flag(value: Any) -> bool:
  """Whether `iscrowd` says so. Raises Flaw."""
  if value in (None, "", 0, "0", "false", "False"):
    return False
  if value in (1, "1", "true", "True"):
    return True
  raise Flaw("malformed", f"has {shown(value)} as iscrowd, where 0 or 1 belongs")


def _mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
  """The mask of an annotation: bool [h w]. Raises Flaw."""
  if not segmentation:
    raise Flaw("no mask", "has a box but no mask")
  if isinstance(segmentation, dict):
    return _decode(segmentation, size)
  if not isinstance(segmentation, list):
    raise Flaw("malformed", f"has {shown(segmentation)} where polygons belong")
  if all(isinstance(part, dict) for part in segmentation):
    return np.any([_decode(part, size) for part in segmentation], 0)
  if not any(isinstance(part, list) for part in segmentation):
    segmentation = [segmentation]  # one polygon that isn't in a list
  elif len(segmentation) > 2 and all(_is_point(part) for part in segmentation):
    segmentation = [segmentation]  # one polygon, point by point
  return draw_polygons([_polygon(part) for part in segmentation], size)


def _is_point(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _polygon(values: Any) -> list[float]:
  """[x0, y0, x1, y1, ...] of a polygon, which may be a list of points. Raises Flaw."""
  if isinstance(values, list) and values and all(_is_point(value) for value in values):
    values = [number for point in values for number in point]
  return read_numbers(values)


def _decode(code: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
  """The mask of a run-length code: bool [h w]. Raises Flaw."""
  counts, given = code.get("counts"), code.get("size", list(size))
  if counts is None:
    raise Flaw("malformed", "has a mask that is neither polygons nor a run-length code")
  if not isinstance(given, list) or [_id(n) for n in given] != list(size):
    of = " x ".join(shown(n) for n in given[::-1]) if isinstance(given, list) else shown(given)
    what = f"has a mask that isn't a run-length code of {size[1]} x {size[0]} but of {of}"
    raise Flaw("run lengths", what)
  pixels = size[0] * size[1]
  try:
    runs = _whole(counts) if isinstance(counts, list) else _runs(counts)
  except (ValueError, TypeError, IndexError, AttributeError):
    raise Flaw("malformed", "has a run-length code that can't be read") from None
  # Runs are below 2^60, and their sum may be above what 64 bits hold.
  if (
    len(runs) > 2 * pixels + 2 or (runs < 0).any() or (runs > pixels).any() or runs.sum() != pixels
  ):
    total = sum(runs[: 2 * pixels + 2].tolist())
    raise Flaw("run lengths", f"has runs of {total} pixels for an image of {pixels}")
  return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _whole(counts: Sequence[Any]) -> np.ndarray:
  """Whole numbers as int64. Raises ValueError."""
  numbers = [_id(count) for count in counts]
  if not all(isinstance(number, int) and 0 <= number < 1 << 60 for number in numbers):
    raise ValueError("not whole")
  return np.array(numbers, np.int64)


def _runs(text: str | bytes) -> np.ndarray:
  """The runs that COCO's text stands for: 5 bits a character, from the fourth run as differences.

  Not by pycocotools, which trusts the text and writes past its end where that is damaged.
  """
  data = text.encode("ascii") if isinstance(text, str) else text
  codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
  if (codes < 0).any() or (codes >= 64).any():
    raise ValueError("another character")
  ends = np.flatnonzero(codes & 32 == 0)
  if len(codes) and (not len(ends) or ends[-1] != len(codes) - 1):
    raise ValueError("cut short")
  starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
  lengths = ends - starts + 1
  if not len(ends) or lengths.max() > _DIGITS:
    raise ValueError("too long a number")
  place = np.arange(len(codes)) - np.repeat(starts, lengths)
  values = np.add.reduceat((codes & 31) << 5 * place, starts)
  runs = values - np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
  runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
  return runs


def _id(value: Any) -> int | str | None:
  """An id, or a whole number, however it is written: 1, 1.0 and "1" are the same; else None."""
  if isinstance(value, float) and value.is_integer():
    return int(value)
  if isinstance(value, str):
    plain = len(value) < 16 and re.fullmatch(r"0|-?[1-9][0-9]*", value)
    return int(value) if plain else value
  return value if isinstance(value, int) and not isinstance(value, bool) else None


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


def _read(path: Path) -> dict[str, Any]:
  try:
    content = json.loads(read_bytes(path))
  # JSONDecodeError, UnicodeDecodeError, numbers of thousands of digits, and depth without end.
  except (ValueError, RecursionError) as error:
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
  files: Mapping[str, Path], contents: Mapping[str, dict[str, Any]], groups: bool
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


def _category_names(content: Mapping[str, Any], path: Path) -> dict[int, str]:
  try:
    pairs = [(_id(row["id"]), row["name"]) for row in content["categories"]]
  except KeyError as error:
    raise InputError(f"{path}: a category has no {error}; each has an id and a name") from None
  if not pairs or not all(isinstance(number, int) for number, _ in pairs):
    ids = shown([row["id"] for row in content["categories"][:5]])
    raise InputError(f"{path}: categories {ids} must have whole numbers as ids")
  names = {int(number): name for number, name in pairs if number is not None}
  if not all(isinstance(name, str) for name in names.values()):
    raise InputError(f"{path}: categories {shown(list(names.values()))} must have texts as names")
  if len(names) < len(pairs):
    twice = collections.Counter(number for number, _ in pairs).most_common(1)[0][0]
    raise InputError(f"{path}: two categories have the id {twice}; give each its own")
  return names


def _groups(contents: Mapping[str, dict[str, Any]]) -> set[int]:
  """Categories that others name as their group, and that no annotation is of, as Roboflow has."""
  rows = [row for content in contents.values() for row in content["categories"]]
  annotations = (row for content in contents.values() for row in content["annotations"])
  used = {_id(row.get("category_id")) for row in annotations}
  found = set()
  for row in rows:
    others = (other for other in rows if other["id"] != row["id"])
    if _id(row["id"]) not in used and any(o.get("supercategory") == row["name"] for o in others):
      found.add(int(row["id"]))
  return found if len(found) < len({_id(row["id"]) for row in rows}) else set()


def _group_note(path: Path, number: int, name: str) -> FileError:
  text = (
    f"category {number}, {shown(name)}, has no annotation and only groups others: it is no class"
  )
  return FileError("unused", path, text, "To have it as a class, set data.options.groups=True")


@dataclasses.dataclass(frozen=True)
class _Places:
  """Where the images of a JSON file are.

  Attributes:
    folder: folder from which file names count.
    dropped: number of folders that names begin with and that aren't there.
    roots: folders that no name may lead out of.
  """

  folder: Path
  dropped: int
  roots: tuple[Path, ...]

  @classmethod
  def find(
    cls, home: Path, path: Path, content: Mapping[str, Any], given: Path | None
  ) -> "_Places":
    """Finds the folder in which most of the images are; the likeliest one if none is there."""
    name = path.stem.removeprefix("instances_")
    folders = [home / name, home / "images" / name, path.parent, path.parent / "images"]
    folders += [home / "images", home, home / "train", home / "val"]
    folders = [given] if given else list(dict.fromkeys(folders))
    roots = (home, *([given] if given else []))
    names = [row["file_name"] for row in content["images"] if _is_text(row.get("file_name"))]
    choices = [cls(folder, dropped, roots) for dropped in range(4) for folder in folders]
    sample = names[:: max(1, len(names) // _SAMPLE)]
    counts = [sum(is_file(place.path(each)) for each in sample) for place in choices]
    best = choices[int(np.argmax(counts))]
    # Without their folders, names may stand for several images.
    distinct = len({best.path(each) for each in names}) == len(set(names))
    return best if distinct else cls(best.folder, 0, roots)

  def path(self, name: str) -> Path:
    """Path of an image, of whatever form its file name is."""
    parts = _plain_name(name).split("/")
    inside = "" not in parts[:1] and ".." not in parts
    return self.folder / "/".join(parts[min(self.dropped, len(parts) - 1) :] if inside else parts)

  def leads_out(self, name: str) -> bool:
    """Whether a file name, of whatever form, means a file outside of the data set."""
    return on_a_drive(_plain_name(name)) or leads_out(self.path(name), self.roots)


def _plain_name(name: str) -> str:
  """A file name as a path with "/" between folders; of a URL, its last part."""
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) or "/local-files/?d=" in name:
    try:
      url = urlsplit(name)
      path = parse_qs(url.query).get("d", [url.path])[0]
    except ValueError:  # a URL that is none
      path = name
    return unquote(path).replace("\\", "/").rpartition("/")[2]
  return name.replace("\\", "/")


def _is_text(value: Any) -> bool:
  try:
    return isinstance(value, str) and bool(value.encode())
  except UnicodeEncodeError:  # half a character, which no file name has
    return False


def _items(
  path: Path, content: Mapping[str, Any], places: _Places, numbers: Mapping[int, int]
) -> tuple[list[CocoItem], list[FileError]]:
  problems: list[FileError] = []
  annotations: dict[int | str, list[dict[str, Any]]] = {}
  rows = []
  for row in content["images"]:
    number = _id(row.get("id"))
    if number is None or not _is_text(str(number)) or not _is_text(row.get("file_name")):
      text = f"image {shown(row)} has no id or no file_name"
      problems.append(FileError("layout", path, text, "Give each image both"))
    elif number in annotations:
      text = f"image {shown(number)} is listed twice"
      problems.append(FileError("layout", path, text, "Give every image its own id"))
    else:
      annotations[number] = []
      rows.append((number, row))
  for row in content["annotations"]:
    problems += _misfits(row, path, annotations, numbers)
  items = []
  for number, row in rows:
    image = places.path(row["file_name"])
    problems += _misplaced(image, number, row, path, places)
    size, found = _size(row, path)
    problems += found
    items.append(CocoItem(str(number), image, size, annotations[number], numbers, path))
  if not items and not problems:
    problems.append(FileError("layout", path, "lists no image", "Add images, or leave it out"))
  return items, problems


def _misplaced(
  image: Path, number: int | str, row: Mapping[str, Any], path: Path, places: _Places
) -> list[FileError]:
  """Tells that an image isn't there, or is where none may be."""
  name = row["file_name"]
  if places.leads_out(name):
    text = f"image {shown(number)} has the file_name {shown(name)}, which leads out of the data set"
    fix = f"Name images from {places.folder} on, as in {image.name!r}"
    return [FileError("layout", path, text, fix)]
  if not is_file(image):
    text = f"is image {shown(number)} of {path}, but missing"
    if _plain_name(name) != name:
      text += f"; its file_name is {shown(name)}"
    return [FileError("partner", image, text, "Put it there, or take it off the list")]
  return []


def _size(row: Mapping[str, Any], path: Path) -> tuple[tuple[int, int] | None, list[FileError]]:
  """(height, width) of an image, None if the file doesn't say; and what is wrong with it."""
  values = [row.get("height"), row.get("width")]
  if any(value in (None, 0, "", "0") for value in values):
    return None, []
  numbers = [_id(value) for value in values]
  height, width = numbers
  if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
    return (height, width), []
  text = f"image {shown(row.get('id'))} is {shown(values[1])} wide and {shown(values[0])} high"
  return None, [FileError("layout", path, text, "Give whole numbers, or leave both out")]


def _misfits(
  row: dict[str, Any],
  path: Path,
  annotations: Mapping[Any, list[dict[str, Any]]],
  numbers: Mapping[int, int],
) -> list[FileError]:
  """Puts an annotation with its image, or tells why that can't be."""
  where = f"annotation {shown(row.get('id', '?'))}"
  category, image = _id(row.get("category_id")), _id(row.get("image_id"))
  problems = []
  if category not in numbers:
    known = ", ".join(map(str, list(numbers)[:8])) + (", ..." if len(numbers) > 8 else "")
    given = shown(row.get("category_id"))
    text = f"{where} is of category {given}, which isn't among {known}"
    fix = "Add it to the categories, or remove the annotation"
    problems.append(FileError("values", path, text, fix))
  if image not in annotations:
    text = f"{where} is of image {shown(row.get('image_id'))}, which isn't listed"
    problems.append(FileError("partner", path, text, "List the image, or remove the annotation"))
  if not problems:
    annotations[image].append(row)
  return problems
