"""`yolo`: outlines of objects as Ultralytics' YOLO reads them, one text file for each image.

ROOT/data.yaml                         names of the classes, and where the images of each split are
ROOT/images/train/NAME.jpg             ROOT/train/images/NAME.jpg
ROOT/labels/train/NAME.txt             ROOT/train/labels/NAME.txt
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from jseg.data.files import FileError, is_file, read_bytes, shown
from jseg.data.files.images import canonical_image
from jseg.data.files.instances import Annotation, Size
from jseg.data.files.listing import IMAGE_SUFFIXES
from jseg.data.sources.annotated import (
  Box,
  Flaw,
  annotate,
  annotated_source,
  cover_boxes,
  draw_polygons,
  has_labels,
  leads_out,
  make_example,
  object_classes,
  on_a_drive,
)
from jseg.data.sources.base import Example, ListedSource, existing_folder
from jseg.types import InputError, Json

_SPLITS = ("train", "val", "test")
_MOST_BYTES, _DEEPEST = 128 << 10, 20  # of a data.yaml, whose reader takes its time with more
_SLACK = 0.5  # how far out of 0..1 a share may be; what is farther isn't one


def yolo_source(root: str | Path) -> ListedSource:
  """Reads a data set of YOLO's outlines: lines `CLASS x1 y1 x2 y2 ...` in shares of the image.

  Lines of boxes are told and left out, as they have no outline. An image without a text file has
  no objects. docs/annotation_tools.md has the details.

  Args:
    root: the folder of data.yaml, or a YAML file of another name.

  Raises:
    InputError: there is no such file, it isn't YOLO's, its folders aren't there, or pycocotools is
      missing.
  """
  root = Path(root).expanduser()
  path = root if is_file(root) else _find_yaml(existing_folder(root))
  content = _read_yaml(path)
  names = _names(content, path)
  home = path.parent
  numbers = {index: i for i, index in enumerate(names, 1)}
  background = next(i for i in range(len(names) + 1) if i not in names)
  try:
    classes = object_classes([*names.values()], (background, *names))
  except InputError as error:
    raise InputError(f"{path}: names: {error}") from None
  splits: dict[str, list[YoloItem]] = {}
  problems: list[FileError] = []
  notes: list[FileError] = []
  for split in _SPLITS:
    images = _images(content, split, home, path, problems)
    if images is None:
      continue
    splits[split] = [_item(image, home, numbers) for image in images]
    notes += _without_text(split, splits[split])
    if not images:
      problems.append(
        FileError("layout", path, f"{split} has no image", "Add some, or leave it out")
      )
  if not splits:
    raise InputError(
      f"{path} has neither train nor val: each is a folder of images, or a list of them"
    )
  items = list(itertools.chain(*splits.values()))
  files = {path, *(item.image for item in items), *(i.text for i in items if i.text)}
  named = [(file.relative_to(home).as_posix(), file) for file in files]
  return annotated_source(classes, splits, named, problems, notes)


def matches(root: Path) -> bool:
  """Whether a path is YOLO's YAML file, or a folder that holds it."""
  if root.is_dir() and (root / "classes.json").exists():
    return False
  try:
    content = _read_yaml(root if is_file(root) else _find_yaml(root))
  except InputError:
    return False
  return "names" in content and any(split in content for split in _SPLITS)


@dataclasses.dataclass(frozen=True)
class YoloItem:
  """An image and the text file of its objects.

  Attributes:
    name: path of the image from the data set's folder, without suffix.
    image: path of the image.
    text: path of the text file; None if there is none.
    numbers: class of each class index of the file.
  """

  name: str
  image: Path
  text: Path | None
  numbers: Mapping[int, int]

  def load(self) -> Example:
    """Reads the image and draws the masks; `notes` of the example say what was left out.

    Raises:
      FileError: naming the file at fault.
    """
    image = canonical_image(read_bytes(self.image), self.image)
    objects: list[Annotation] = []
    notes: list[FileError] = []
    boxes: list[Box] = []
    for number, line in enumerate(_lines(self.text), 1):
      words = line.split()
      if not words:
        continue
      where = f"{self.text}: line {number}"
      category = self._category(words[0], where)
      try:
        shares = _shares(words[1:])
        boxes += _box_alone(shares, image.size)
        objects.append(annotate(_draw(shares, image.size), category))
      except Flaw as flaw:
        notes.append(FileError(flaw.args[0], where, flaw.args[1], "It is left out"))
    void = cover_boxes(boxes, objects, image.size)
    return make_example(image, objects, notes, void, has_labels(len(self.numbers)))

  def _category(self, word: str, where: str) -> int:
    try:
      index = float(word)
      return self.numbers[int(index) if index.is_integer() else -1]
    except (ValueError, KeyError, OverflowError):
      known = ", ".join(map(str, list(self.numbers)[:8]))
      text = f"is of class {shown(word)}, which isn't among {known}"
      fix = "Add it to the names in the YAML file, or remove the line"
      raise FileError("values", where, text, fix) from None


def _draw(shares: Sequence[float], size: Size) -> np.ndarray:
  """The mask of an outline: bool [h w]. Raises Flaw."""
  if len(shares) == 4:
    raise Flaw("no mask", "has a box but no outline; export segmentation instead of detection")
  if len(shares) % 2:
    raise Flaw("malformed", f"has {len(shares)} numbers after its class, which make no points")
  scaled = np.array(shares).reshape(-1, 2) * size[::-1]
  return draw_polygons([scaled.ravel().tolist()], size)


def _box_alone(shares: Sequence[float], size: Size) -> list[Box]:
  """The box [x, y, width, height] of a line without an outline, its center being (x, y)."""
  if len(shares) != 4:
    return []
  x, y, w, h = np.array(shares) * (*size[::-1], *size[::-1])
  edges = np.clip([y - h / 2, x - w / 2, y + h / 2, x + w / 2], 0, (*size, *size))
  return [tuple(edges.tolist())]


def _shares(words: Sequence[str]) -> list[float]:
  """Numbers of a line. Raises Flaw."""
  try:
    shares = [float(word) for word in words]
  except ValueError:
    raise Flaw("malformed", "has words where numbers belong") from None
  far = next((n for n in shares if not -_SLACK <= n <= 1 + _SLACK), None)
  if far is not None:
    raise Flaw("malformed", f"has {far:g} where shares of the image from 0 to 1 belong")
  return shares


def _lines(path: Path | None) -> list[str]:
  if path is None:
    return []
  try:
    return read_bytes(path).decode("utf-8-sig").splitlines()
  except UnicodeDecodeError:
    raise FileError("unreadable", path, "is no text", "Restore it, or remove it") from None


class _Loader(yaml.SafeLoader):
  """Reads YAML without its merge keys, by which a few lines can stand for more than memory has."""

  def flatten_mapping(self, node: yaml.MappingNode) -> None:
    """Leaves "<<" as it is, which is no name of anything then."""


def _find_yaml(folder: Path) -> Path:
  """data.yaml, or the only YAML file."""
  if not folder.is_dir():
    raise InputError(f"{folder} is not a folder; give the data set's folder as root")
  files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".yaml", ".yml")]
  files = [path for path in files if path.name[0] != "." and is_file(path)]
  named = [path for path in files if path.stem.lower() in ("data", "dataset")]
  if len(named or files) != 1:
    found = ", ".join(path.name for path in files[:8]) or "none"
    raise InputError(
      f"{folder} must have one data.yaml, which names classes and folders of images; YAML files "
      f"there: {found}. Give the file itself as root if it has another name"
    )
  return (named or files)[0]


def _read_yaml(path: Path) -> Json:
  data = read_bytes(path)
  if len(data) > _MOST_BYTES:
    raise InputError(f"{path} is too long for a list of names and folders ({len(data)} bytes)")
  steps = np.frombuffer(data, np.uint8)
  depth = np.isin(steps, [*b"[{"]).cumsum() - np.isin(steps, [*b"]}"]).cumsum()
  if depth.max(initial=0) > _DEEPEST:
    raise InputError(f"{path} is not valid YAML for a data set (brackets in brackets)")
  try:
    content = yaml.load(data, _Loader)
  except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
    text = " ".join(shown(str(error)).split())
    raise InputError(f"{path} is not valid YAML ({text})") from None
  if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
    raise InputError(f'{path} isn\'t YOLO\'s: it must have "names", and "train" or "val"')
  return content


def _names(content: Mapping[str, object], path: Path) -> dict[int, str]:
  """Names of the classes by index."""
  names = content.get("names")
  if "kpt_shape" in content:
    raise InputError(f"{path} is of keypoints (kpt_shape); export outlines (segmentation) instead")
  if isinstance(names, list):
    names = dict(enumerate(names))
  if not isinstance(names, dict) or not names:
    raise InputError(f'{path}: "names" must list the classes, as in names: [cell, nucleus]')
  if not all(type(key) is int and 0 <= key < 65535 for key in names):
    raise InputError(f"{path}: names: {shown(list(names))} must be whole numbers from 0 on")
  plain = {key: str(name) for key, name in names.items() if isinstance(name, str | int | float)}
  if len(plain) < len(names):
    raise InputError(f"{path}: names: {shown(names)} must have texts as names")
  count = content.get("nc", len(names))
  if count != len(names):
    raise InputError(f"{path}: nc is {shown(count)}, but there are {len(names)} names; mend one")
  return dict(sorted(plain.items()))


def _images(
  content: Mapping[str, object], split: str, home: Path, path: Path, problems: list[FileError]
) -> list[Path] | None:
  """Images of a split in order; None if there is no such split."""
  given = content.get(split)
  if split == "val" and given is None:
    given = content.get("valid")
  if not given:
    return None
  base = content.get("path")
  bases = [home / base, home] if isinstance(base, str) else [home]
  found: dict[Path, None] = {}
  for entry in given if isinstance(given, list) else [given]:
    place = _find(entry, bases, home)
    if place is None:
      text = f"{split}: {shown(entry)} isn't in the folder of this file"
      fix = f"Write where it is from {home} on, as in train: images/train"
      problems.append(FileError("layout", path, text, fix))
    elif place.is_dir():
      found |= dict.fromkeys(_images_in(place))
    else:
      found |= dict.fromkeys(_listed(place, home, problems))
  return list(found)


def _find(entry: object, bases: Sequence[Path], home: Path) -> Path | None:
  """A folder or file of a data.yaml, within its folder; Roboflow writes "../" before each."""
  if not isinstance(entry, str):
    return None
  name = entry.replace("\\", "/")
  names = [name, name.removeprefix("../"), name.lstrip("/")]
  for place in (base / each for each in names for base in bases):
    if on_a_drive(name) or leads_out(place, [home]):
      continue
    try:
      if place.exists():
        return home / os.path.relpath(place, home)
    except (OSError, ValueError):
      pass
  return None


def _images_in(folder: Path) -> list[Path]:
  paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES)
  return [path for path in paths if path.name[0] != "." and is_file(path)]


def _listed(path: Path, home: Path, problems: list[FileError]) -> list[Path]:
  """Images of a list, one per line."""
  images = []
  for line in filter(str.strip, _lines(path)):
    image = _find(line.strip(), [home, path.parent], home)
    if image is None:
      text = f"lists {shown(line.strip())}, which isn't there"
      fix = f"Put it there, or take it off the list; paths count from {home}"
      problems.append(FileError("partner", path, text, fix))
    else:
      images.append(image)
  return images


def _item(image: Path, home: Path, numbers: Mapping[int, int]) -> YoloItem:
  parts = list(image.relative_to(home).parts)
  folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
  if folders:
    parts[folders[-1]] = "labels"
  text = home.joinpath(*parts).with_suffix(".txt")
  name = image.relative_to(home).with_suffix("").as_posix()
  return YoloItem(name, image, text if is_file(text) else None, numbers)


def _without_text(split: str, items: Sequence[YoloItem]) -> list[FileError]:
  missing = [item.image.name for item in items if item.text is None]
  if not missing:
    return []
  some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
  text = f"{len(missing)} image(s) without a text file: taken as without objects ({some})"
  fix = "Nothing needs to be done if there is nothing in them; else put the text files to labels/"
  return [FileError("unused", f"split {split}", text, fix)]
