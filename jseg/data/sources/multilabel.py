"""`multilabel`: classes that may overlap, each with a mask of its own.

ROOT/classes.json                        {"classes": ["nucleus", "cell"], "task": "multilabel"}
ROOT/{train,val,test}/images/NAME.ext    or ROOT/images, split at random
ROOT/{train,val,test}/masks/CLASS/NAME.png    a mask a class: 0 and one other value
ROOT/{train,val,test}/masks/NAME.npy          or all in one file, a channel a class, also .tif, .png

A pixel of no class is background, which is no class of its own. `ignore_label` in classes.json is
the value of pixels of which a mask doesn't tell. Where one mask of numbers has regions that
contain one another, it is no such set: "mask_values" of `folder` and `volumes` may be lists.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jseg.arithmetic import count_bytes
from jseg.data.files import FileError, attempt, fingerprint, read_bytes, shown
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import canonical_image, encode_png
from jseg.data.files.listing import IMAGE_SUFFIXES, Listing, list_if_there
from jseg.data.files.masks import read_mask
from jseg.data.files.scientific import decode_scientific
from jseg.data.overlaps import ABSENT, PRESENT, distinct
from jseg.data.sources.base import Example, ListedSource, existing_folder
from jseg.data.sources.pairs import SPLITS, check_sizes, divide
from jseg.types import IGNORE, InputError

MISSING = ("refuse", "absent", "unknown")
_CHANNELS = (".npy", ".tif", ".tiff", ".png")
_LAYOUT = (
  "Expected ROOT/train/images/NAME.png with ROOT/train/masks/CLASS/NAME.png for each class, or "
  "ROOT/train/masks/NAME.npy of all (likewise val, test), or images and masks in ROOT itself, "
  "which are split at random"
)


@dataclasses.dataclass(frozen=True)
class LabeledItem:
  """An image and the masks of its classes.

  Attributes:
    name: name of the example, unique in its split.
    image: path of the image.
    masks: path of each class's mask, or None where there is none; or one path, of all.
    classes: the classes; their combinations are those of the whole data set.
    in_one: whether one file holds the masks of all classes.
    missing: what a class without a mask is, ABSENT or IGNORE.
  """

  name: str
  image: Path
  masks: tuple[Path | None, ...]
  classes: ClassInfo
  in_one: bool = False
  missing: int = ABSENT

  @property
  def files(self) -> list[Path]:
    """All files of the image and its masks."""
    return [self.image, *(path for path in self.masks if path is not None)]

  def planes(self) -> list[np.ndarray]:
    """Reads the masks: uint8 [h w] of ABSENT, PRESENT and IGNORE for each class.

    Raises:
      FileError: one can't be read or is no mask of one class, or they differ in size.
    """
    void = self.classes.ignore_label
    if self.in_one:
      path = self.masks[0]
      assert path is not None
      array, k = decode_scientific(read_bytes(path), path, yes_or_no=True), len(self.classes.names)
      if array.shape[-1] != k:
        raise FileError(
          "layout",
          path,
          f"has {array.shape[-1]} channel(s), but there are {k} classes",
          "Give one channel for each, in the order of classes.json",
        )
      return [_states(array[..., i], void, path, f" in channel {i}") for i in range(k)]
    found = [None if path is None else _read(path, void) for path in self.masks]
    shape = next((plane.shape for plane in found if plane is not None), (1, 1))
    for path, plane in zip(self.masks, found, strict=True):
      if plane is not None and plane.shape != shape:
        h, w = plane.shape
        problem = f"is {w} wide x {h} high, and another class's mask {shape[1]} x {shape[0]}"
        raise FileError("size", path or "", problem, "Save all masks at the size of the image")
    blank = np.full(shape, self.missing, np.uint8)
    return [blank if plane is None else plane for plane in found]

  def load(self) -> Example:
    """Reads and checks the example. Raises FileError."""
    image = canonical_image(read_bytes(self.image), self.image)
    if any(path is not None for path in self.masks):
      planes = self.planes()
    else:  # of no class at all
      planes = [np.full(image.size, self.missing, np.uint8)] * len(self.masks)
    check_sizes(image, self.image, planes[0].shape, next(filter(None, self.masks), self.image))
    rows, index = distinct(planes)
    assert self.classes.combinations is not None
    places = {row: i for i, row in enumerate(self.classes.combinations)}
    ids = [IGNORE if set(row) == {IGNORE} else places[tuple(row)] for row in rows.tolist()]
    label = np.array(ids, np.uint8)[index]
    traits = frozenset({"exif_damaged"} if image.exif_damaged else ())
    return Example(image.data, encode_png(label), image.size, count_bytes(label), traits=traits)


def multilabel_source(
  root: str | Path,
  fractions: Mapping[str, float] | None = None,
  seed: int = 0,
  missing: str = "refuse",
) -> ListedSource:
  """Reads a folder of images with a mask for each class.

  All masks are looked through each time, for the ways in which classes overlap.

  Args:
    root: the folder.
    fractions: shares of train, val and test where the folder has no splits of its own; they sum
      to 1. Default: 0.8 train, 0.2 val.
    seed: seed of the random split.
    missing: what an image is of a class for which it has no mask: "refuse" makes it an error,
      "absent": it holds no pixel of it, "unknown": nobody has looked, so that nothing is learned or
      measured of this class there.

  Raises:
    InputError: the folder, its classes or its layout are missing, or classes overlap in more ways
      than one byte can tell.
  """
  root = existing_folder(root)
  if missing not in MISSING:
    raise InputError(f"missing: {missing!r} is unknown; choose from {', '.join(MISSING)}")
  classes = ClassInfo.load(root / "classes.json", ("multilabel",))
  folders = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"": root}
  every: dict[str, Sequence[LabeledItem]] = {}
  problems: list[FileError] = []
  notes: list[FileError] = []
  for split, folder in folders.items():
    every[split], wrong, unused = _find_items(folder, classes, missing)
    problems += wrong
    notes += unused
  items = [item for some in every.values() for item in some]
  classes = dataclasses.replace(classes, combinations=_combinations(items, len(classes.names)))
  every = {
    split: [dataclasses.replace(item, classes=classes) for item in some]
    for split, some in every.items()
  }
  splits = divide(every, root, fractions, seed) if items else {}

  def digest() -> str:
    files = {path for some in splits.values() for item in some for path in item.files}
    members = {split: [item.name for item in some] for split, some in splits.items()}
    named = ((path.relative_to(root).as_posix(), path) for path in files)
    return fingerprint(named, f"{classes.to_json()} {members} {missing}")

  return ListedSource(classes, splits, digest, problems, notes)


def matches(root: Path) -> bool:
  """Whether a folder is laid out like this: its classes.json says so."""
  try:
    content = json.loads((root / "classes.json").read_text("utf-8"))
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(content, dict) and content.get("task") == "multilabel"


def _find_items(
  folder: Path, classes: ClassInfo, missing: str
) -> tuple[list[LabeledItem], list[FileError], list[FileError]]:
  """Joins the images of a folder and their masks: (items, problems, notes on what isn't used)."""
  images = list_if_there(folder / "images", IMAGE_SUFFIXES)
  state = IGNORE if missing == "unknown" else ABSENT
  own = {name: folder / "masks" / name for name in classes.names}
  in_one = not any(path.is_dir() for path in own.values())
  if in_one:
    listings = {"": list_if_there(folder / "masks", _CHANNELS)}
  else:
    listings = {name: list_if_there(path, IMAGE_SUFFIXES) for name, path in own.items()}
  parts: list[Listing] = [images, *listings.values()]
  problems = [problem for part in parts for problem in part.problems]
  items = []
  for name, path in images.files.items():
    masks = tuple(listing.files.get(name) for listing in listings.values())
    lacks = [kind for kind, mask in zip(listings, masks, strict=True) if mask is None]
    if lacks and (in_one or missing == "refuse"):
      problem = "has no mask" if in_one else f"has no mask of {', '.join(map(shown, lacks))}"
      fix = f"Put it at {folder / 'masks' / lacks[0] / name}.*, or remove the image"
      if not in_one:
        fix += "; data.options.missing says what it means if it is meant (absent or unknown)"
      problems.append(FileError("partner", path, problem, fix))
    else:
      items.append(LabeledItem(name, path, masks, classes, in_one, state))
  for listing in listings.values():
    for name in sorted(listing.files.keys() - images.files.keys()):
      fix = f"Put it at {folder / 'images' / name}.*, or remove this file"
      problems.append(FileError("partner", listing.files[name], "has no image of its name", fix))
  if not in_one:
    problems += _strangers(folder / "masks", own)
  if not images.files and not problems:
    problems.append(FileError("layout", folder, "holds no images", _LAYOUT))
  return items, problems, [note for part in parts for note in part.notes]


def _strangers(masks: Path, own: Mapping[str, Path]) -> list[FileError]:
  """Folders of masks that are called like no class."""
  names = sorted(path.name for path in masks.iterdir() if path.is_dir())
  fix = "Add the class to classes.json, or remove the folder"
  return [
    FileError("layout", masks / name, "is no class of classes.json", fix)
    for name in names
    if name not in own and not name.startswith(".")
  ]


def _combinations(items: Sequence[LabeledItem], k: int) -> tuple[tuple[int, ...], ...]:
  """All combinations of classes that occur, in order; what can't be read is told elsewhere."""

  def look(item: LabeledItem) -> set[tuple[int, ...]]:
    planes, _ = attempt(item.planes)
    return set() if planes is None else set(map(tuple, distinct(planes)[0].tolist()))

  with ThreadPoolExecutor() as pool:
    found = functools.reduce(set.union, pool.map(look, items), {(ABSENT,) * k})
  return tuple(sorted(found - {(IGNORE,) * k}))


def _read(path: Path, void: int | None) -> np.ndarray:
  """The mask of one class: uint8 [h w] of ABSENT, PRESENT and IGNORE. Raises FileError."""
  raw = read_mask(read_bytes(path), path)
  values = raw.values
  if raw.shown is not None:
    problem = "says that 0 is white (TIFF's MinIsWhite, or PBM): it is unclear which value means 0"
    raise FileError("values", path, problem, "Save it as PNG")
  if raw.colored:
    values = raw.colors()
    if (values != values[..., :1]).any():
      raise FileError(
        "values", path, "is a color image", "A mask of one class holds 0 and one other value"
      )
    values = values[..., 0]
  return _states(values, void, path)


def _states(values: np.ndarray, void: int | None, path: Path, where: str = "") -> np.ndarray:
  """What each pixel is of a class, from a mask's values. Raises FileError."""
  unknown = np.zeros(values.shape, bool) if void is None else values == void
  others = values[(values != 0) & ~unknown]
  if others.size and (others != others[0]).any():
    found = ", ".join(f"{value:g}" for value in np.unique(others)[:4].tolist())
    raise FileError(
      "values",
      path,
      f"holds {found}{where}: a mask of one class has 0 and one other value",
      'Give each class its own mask; a value that says "not known" is ignore_label in classes.json',
    )
  states = np.where(values != 0, PRESENT, ABSENT).astype(np.uint8)
  states[unknown] = IGNORE
  return states
