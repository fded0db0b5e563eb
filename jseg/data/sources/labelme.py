"""`labelme`: what the annotation tool LabelMe saves, a JSON file for each image.

ROOT/NAME.json with ROOT/NAME.jpg       ROOT/train/NAME.json ...
ROOT/labels.txt, if there is one        ROOT/val/NAME.json ...

Without folders train, val and test, images are split at random.
"""

import base64
import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jseg.data.files import FileError, is_file, parse_json, read_bytes, shown
from jseg.data.files.images import CanonicalImage, canonical_image
from jseg.data.files.instances import Annotation, Size
from jseg.data.files.listing import IMAGE_SUFFIXES
from jseg.data.files.opening import open_checked
from jseg.data.sources.annotated import (
  Flaw,
  annotate,
  annotated_source,
  draw_polygons,
  has_labels,
  leads_out,
  make_example,
  object_classes,
  on_a_drive,
  part,
  read_numbers,
  wrong_size,
)
from jseg.data.sources.base import Example, ListedSource, existing_folder
from jseg.data.sources.pairs import SPLITS, divide
from jseg.types import InputError, Json

_BACKGROUND, _VOID = "_background_", "__ignore__"  # LabelMe's own names
_MOST_BYTES = 64 << 20  # of a JSON file that is opened to see what a folder holds
_SHAPES = "polygon, rectangle, oriented_rectangle, circle and mask"


def labelme_source(
  root: str | Path,
  classes: Sequence[str] | None = None,
  fractions: Mapping[str, float] | None = None,
  seed: int = 0,
) -> ListedSource:
  """Reads a data set of LabelMe's JSON files.

  Shapes of the same label and `group_id` are one object. `_background_` is no class but cut out of
  what was drawn before, and `__ignore__` is void. docs/annotation_tools.md has the details.

  Args:
    root: the folder.
    classes: names of the classes in order; None takes those of labels.txt, or all labels in the
      order of the alphabet.
    fractions: shares of train, val and test where the folder has no such folders; they sum to 1.
      Default: 0.8 train, 0.2 val.
    seed: seed of the random split.

  Raises:
    InputError: there is no such folder, nothing of LabelMe's in it, or pycocotools is missing.
  """
  root = existing_folder(root)
  folders = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"": root}
  files = {split: _json_files(folder) for split, folder in folders.items()}
  problems: list[FileError] = []
  contents: dict[Path, _Content] = {}
  for path in itertools.chain(*files.values()):
    try:
      contents[path] = dataclasses.replace(_read(path), image_data=None)
    except FileError as problem:
      problems.append(problem)
  if not contents:
    why = f" ({problems[0]})" if problems else ""
    raise InputError(
      f"{root} holds no JSON of LabelMe{why}. Expected ROOT/NAME.json beside each image, or "
      "ROOT/train/NAME.json (likewise val, test)"
    )
  names = list(classes or _listed(root) or _found(contents.values()))
  if not names:
    raise InputError(f"{root}: no shape in its {len(contents)} JSON file(s) has a label of a class")
  info = object_classes(names)
  numbers = {name: i for i, name in enumerate(names, 1)}
  splits: dict[str, list[LabelmeItem]] = {}
  for split, paths in files.items():
    splits[split] = []
    for path in filter(contents.__contains__, paths):
      image, found = _find_image(path, root, contents[path])
      unknown = [label for label in _labels(contents[path]) if label not in numbers]
      problems += found + [_unknown(path, label, names) for label in dict.fromkeys(unknown)]
      name = path.relative_to(folders[split]).with_suffix("").as_posix()
      splits[split].append(LabelmeItem(name, path, image, numbers))
  items = list(itertools.chain(*splits.values()))
  used = {item.path for item in items} | {item.image for item in items if item.image}
  return annotated_source(
    info,
    divide(splits, root, fractions, seed),
    [(path.relative_to(root).as_posix(), path) for path in used],
    problems,
    _unused(folders.values(), items),
  )


def matches(root: Path) -> bool:
  """Whether a folder holds LabelMe's JSON files."""
  if not root.is_dir() or (root / "classes.json").exists():
    return False
  folders = [root, *(root / split for split in SPLITS)]
  files = [path for folder in folders if folder.is_dir() for path in _json_files(folder)[:20]]
  files.sort(key=lambda path: path.stat().st_size)
  try:
    return bool(files) and files[0].stat().st_size < _MOST_BYTES and bool(_read(files[0]))
  except (FileError, OSError):
    return False


@dataclasses.dataclass(frozen=True)
class LabelmeItem:
  """An image and its shapes.

  Attributes:
    name: name of the JSON file in its split, without suffix.
    path: path of the JSON file.
    image: path of the image; None if it is in the JSON file.
    numbers: class of each label.
  """

  name: str
  path: Path
  image: Path | None
  numbers: Mapping[str, int]

  def load(self) -> Example:
    """Reads the image and draws the masks; `notes` of the example say what was left out.

    Raises:
      FileError: naming the file at fault, if one is damaged or they don't fit.
    """
    content = _read(self.path)
    image = self._read_image(content.image_data)
    if content.size is not None and content.size != image.size:
      raise wrong_size(image, self.image or self.path, content.size, self.path)
    drawing = _Drawing(image.size, self.numbers)
    notes: list[FileError] = []
    for i, shape in enumerate(content.shapes, 1):
      try:
        drawing.add(shape)
      except Flaw as flaw:
        where = f"{self.path}: shape {i} ({shown(shape.get('label'))})"
        notes.append(FileError(flaw.args[0], where, flaw.args[1], "It is left out"))
    labeled = has_labels(len(self.numbers))
    return make_example(image, drawing.objects(), notes, drawing.void, labeled)

  def _read_image(self, image_data: object) -> CanonicalImage:
    if self.image is not None:
      return canonical_image(read_bytes(self.image), self.image)
    try:
      data = _decode(image_data or "")
    except (ValueError, TypeError):
      raise FileError(
        "unreadable", self.path, "its imageData is no base64", f"Put its image beside {self.path}"
      ) from None
    return canonical_image(data, f"{self.path} (imageData)")


class _Drawing:
  """The shapes of an image, drawn one after the other; `void` is what `__ignore__` covers."""

  def __init__(self, size: Size, numbers: Mapping[str, int]):
    self._size, self._numbers = size, numbers
    self._objects: dict[Hashable, Annotation] = {}
    self.void = np.zeros(size, bool)

  def add(self, shape: Json) -> None:
    """Draws one. Raises Flaw."""
    mask = _draw(shape, self._size)
    label, group = str(shape["label"]), shape.get("group_id")
    drawn = annotate(mask, self._numbers.get(label, 0))
    self.void &= ~mask
    if label == _VOID:
      self.void |= mask
    elif label == _BACKGROUND:
      for each in self._objects.values():
        each.mask[part(mask, each)] = False
    else:
      alone = group is None or not isinstance(group, int | str)
      key = (label, len(self._objects)) if alone else (label, "group", group)
      if before := self._objects.pop(key, None):
        part(mask, before)[before.mask] = True
        drawn = annotate(mask, before.category)
      self._objects[key] = drawn

  def objects(self) -> list[Annotation]:
    """The objects; void, where it can hide those of one class only, is a crowd."""
    found = list(self._objects.values())
    if self.void.any() and len(self._numbers) == 1:
      found.append(annotate(self.void, 1, crowd=True))
    return found


def _draw(shape: Json, size: Size) -> np.ndarray:
  """The mask of a shape: bool [h w]. Raises Flaw."""
  kind, points = shape.get("shape_type") or "polygon", shape.get("points")
  if not isinstance(points, list):
    raise Flaw("malformed", f"has {shown(points)} where points belong")
  corners = [read_numbers(point) for point in points]
  if not all(len(corner) == 2 for corner in corners):
    raise Flaw("malformed", "has points that aren't [x, y]")
  if kind in ("polygon", "oriented_rectangle") or (kind == "rectangle" and len(corners) == 4):
    return draw_polygons([[number for corner in corners for number in corner]], size)
  if kind not in ("rectangle", "circle", "mask"):
    raise Flaw("no area", f"is a {shown(kind)}, which has no area; what has: {_SHAPES}")
  if len(corners) != 2:
    raise Flaw("malformed", f"is a {kind} of {len(corners)} points, where 2 belong")
  (x0, y0), (x1, y1) = corners
  if kind == "rectangle":
    return draw_polygons([[x0, y0, x1, y0, x1, y1, x0, y1]], size)
  if kind == "circle":
    y, x = np.ogrid[: size[0], : size[1]]
    return (x + 0.5 - x0) ** 2 + (y + 0.5 - y0) ** 2 <= (x1 - x0) ** 2 + (y1 - y0) ** 2
  return _paste(shape.get("mask"), int(x0), int(y0), size)


def _paste(text: object, left: int, top: int, size: Size) -> np.ndarray:
  """A mask that is kept as an image, at its place: bool [h w]. Raises Flaw."""
  try:
    image = open_checked(_decode(text), "mask").image
    crop = np.asarray(image.convert("L"))
  except Exception:  # whatever the decoders make of it
    raise Flaw("malformed", "has a mask that is no image in base64") from None
  mask = np.zeros(size, bool)
  y0, x0 = max(top, 0), max(left, 0)
  inside = crop[y0 - top :, x0 - left :][: max(size[0] - y0, 0), : max(size[1] - x0, 0)]
  mask[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]] = inside > 0
  return mask


def _json_files(folder: Path) -> list[Path]:
  """JSON files in a folder and its folders, but hidden ones."""
  paths = (path for path in folder.rglob("*") if path.suffix.lower() == ".json")
  hidden = (path for path in paths if not any(part[0] == "." for part in _parts(path, folder)))
  return sorted(path for path in hidden if is_file(path))


def _parts(path: Path, folder: Path) -> tuple[str, ...]:
  return path.relative_to(folder).parts


@dataclasses.dataclass(frozen=True)
class _Content:
  """What a JSON file holds.

  Attributes:
    shapes: the shapes, whose labels are texts, and all else anything.
    image_path: what it says of where the image is.
    size: (height, width) that it says the image has; None where they aren't whole numbers above 0.
    embedded: whether the image is in it.
    image_data: the image, text in base64 if it is one.
  """

  shapes: Sequence[Json]
  image_path: object
  size: Size | None
  embedded: bool
  image_data: object


def _read(path: Path) -> _Content:
  content = parse_json(read_bytes(path), path, "Save it again, or remove it")
  values: Json = content if isinstance(content, dict) else {}
  shapes = values.get("shapes")
  if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
    text = "has no list of \"shapes\": it isn't LabelMe's"
    raise FileError("layout", path, text, "Take it out of the folder")
  if not all(isinstance(shape.get("label"), str) for shape in shapes):
    text = "has a shape whose label is no text"
    raise FileError("values", path, text, "Give each shape a label")
  height, width, data = map(values.get, ("imageHeight", "imageWidth", "imageData"))
  size = None
  if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
    size = (height, width)
  return _Content(
    shapes=shapes,
    image_path=values.get("imagePath"),
    size=size,
    embedded=bool(data),
    image_data=data,
  )


def _decode(text: object) -> bytes:
  """Bytes that are written in base64. Raises ValueError or TypeError."""
  if not isinstance(text, str):
    raise TypeError("no text")
  return base64.b64decode(text, validate=True)


def _labels(content: _Content) -> list[str]:
  labels = (str(shape["label"]) for shape in content.shapes)
  return [label for label in labels if label not in (_BACKGROUND, _VOID)]


def _found(contents: Iterable[_Content]) -> list[str]:
  return sorted({label for content in contents for label in _labels(content)})


def _listed(root: Path) -> list[str]:
  """Names in labels.txt, one per line as LabelMe takes them; none if there is no such file."""
  if not (root / "labels.txt").is_file():
    return []
  try:
    lines = read_bytes(root / "labels.txt").decode("utf-8-sig").splitlines()
  except UnicodeDecodeError as error:
    raise InputError(f"{root / 'labels.txt'} isn't encoded in UTF-8 ({error})") from None
  names = [line.strip() for line in lines]
  return [name for name in names if name and name not in (_BACKGROUND, _VOID)]


def _unknown(path: Path, label: str, names: Sequence[str]) -> FileError:
  known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
  text = f"has the label {shown(label)}, which isn't among {known}"
  return FileError("values", path, text, "Add it to the names, or rename the shape")


def _find_image(path: Path, root: Path, content: _Content) -> tuple[Path | None, list[FileError]]:
  """The image of a JSON file: where it says, beside it, or in it (None)."""
  name = content.image_path
  given = path.parent / name.replace("\\", "/") if isinstance(name, str) else path
  outside = leads_out(given, [root]) or on_a_drive(str(name))
  if given != path and not outside and is_file(given):
    return given, []
  beside = [path.with_suffix(end) for suffix in IMAGE_SUFFIXES for end in (suffix, suffix.upper())]
  if image := next(filter(is_file, beside), None):
    return image, []
  if content.embedded:
    return None, []
  text = f"its imagePath is {shown(name)}, "
  text += "which leads out of the data set" if outside else "which isn't there"
  fix = f"Put the image beside it, as {path.stem}.jpg"
  return None, [FileError("partner", path, text, fix)]


def _unused(folders: Iterable[Path], items: Sequence["LabelmeItem"]) -> list[FileError]:
  """Tells of images that no JSON file is of."""
  used = {item.image for item in items}
  found = (path for folder in folders for path in sorted(folder.rglob("*")))
  images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path not in used]
  images = [path for path in images if path.name[0] != "." and is_file(path)]
  embedded = {item.path.stem for item in items if item.image is None}
  images = [path for path in images if path.stem not in embedded]
  if not images:
    return []
  some = ", ".join(path.name for path in images[:5]) + (", ..." if len(images) > 5 else "")
  text = f"{len(images)} image(s) without a JSON file: not used ({some})"
  fix = "Nothing needs to be done if they aren't annotated"
  return [FileError("unused", images[0].parent, text, fix)]
