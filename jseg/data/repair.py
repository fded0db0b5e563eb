"""`jseg check-data --fix`: a repaired copy of a folder, where what is meant is certain.

Nothing is changed in place. What isn't certain is copied as it is, and the check of the copy says
what is still wrong.
"""

import dataclasses
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jseg.data.files import FileError, attempt, decode_text, read_bytes
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import encode_png
from jseg.data.files.listing import IMAGE_SUFFIXES, NIFTI_SUFFIXES, counted, split_suffix
from jseg.data.files.masks import RawMask
from jseg.data.files.rows import StoredImage
from jseg.data.sources.base import existing_folder
from jseg.data.sources.folder import IMAGES, holds_volumes, read_folder
from jseg.data.sources.pairs import FilePair, ImagePair, Pair
from jseg.data.sources.volumes import VOLUMES
from jseg.types import InputError, Json


@dataclasses.dataclass
class Repairs:
  """What `repair_folder` did.

  Attributes:
    out: the new folder.
    done: the files that were repaired, by what was done to them.
    copied: number of files that were copied as they are.
    refused: what couldn't be copied, and why.
  """

  out: Path
  done: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  copied: int = 0
  refused: list[FileError] = dataclasses.field(default_factory=list)

  def lines(self) -> list[str]:
    """What was done, for people."""
    lines = [f"{counted(names)}: {what}" for what, names in self.done.items()]
    lines += [f"not copied: {problem}" for problem in self.refused]
    return [*lines, f"{self.copied} file(s) are copied to {self.out} as they are"]

  def to_dict(self) -> Json:
    """Plain values for JSON."""
    refused = [problem.to_dict("error") for problem in self.refused]
    return {"done": self.done, "copied": self.copied, "not_copied": refused}


def repair_folder(root: str | Path, out: str | Path) -> Repairs:
  """Writes a copy of a folder of images and masks in which what can be repaired for certain is.

  classes.json is saved as UTF-8; names in Unicode's form NFC; images that EXIF turns are saved
  upright, and with them masks that were drawn on the pixels as stored, if their sizes show it;
  masks of colors, of another depth than 8 bits, of floats or turned by EXIF become PNG of 8 bits
  (16 for numbers that need them) that hold the numbers of classes.json.

  Args:
    root: a folder as `jseg.data.sources.folder` and `volumes` describe it.
    out: the folder to write; it isn't there yet, or is empty.

  Raises:
    InputError: `root` is no such folder, `out` isn't empty or can't be written.
  """
  root, out = existing_folder(root), Path(out).expanduser()
  _check_places(root, out)
  if not (root / "classes.json").is_file():
    raise InputError(
      f"{root} has no classes.json: only folders of images and masks are repaired; of other "
      "layouts, repair the files that the check names"
    )
  repairs = Repairs(out)
  try:
    out.mkdir(parents=True, exist_ok=True)
    classes_file = _copy_classes(root, repairs)
    layout = VOLUMES if holds_volumes(root) else IMAGES
    source = read_folder(root, layout, ClassInfo.load(classes_file, layout.tasks))
    doubled = {_stem(Path(problem.file)) for problem in source.problems if problem.kind == "twice"}
    for split, items in source.splits.items():
      home = root / split if (root / split).is_dir() else root
      for item in items:
        assert isinstance(item, FilePair)
        certain = not doubled & {_stem(item.image), _stem(item.mask)}
        _copy_pair(item, home, root, repairs, certain=certain)
    for problem in source.problems:
      path = Path(problem.file)
      if path.is_file() and path.is_relative_to(root):
        _write(repairs, path.relative_to(root), read_bytes(path))
  except OSError as error:
    raise InputError(f"{out} can't be written ({error.strerror}); name another folder") from None
  return repairs


def _check_places(root: Path, out: Path) -> None:
  ours, theirs = out.resolve(), root.resolve()
  if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
    raise InputError(f"{out} must lie outside of {root}: nothing is repaired in place")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(f"{out} is there already; name a new folder, as no file is written over")


def _copy_classes(root: Path, repairs: Repairs) -> Path:
  path = root / "classes.json"
  content = read_bytes(path)
  text, encoding = decode_text(content, path)
  what = f"{encoding} becomes UTF-8" if encoding else ""
  _write(repairs, Path("classes.json"), text.encode(), what)
  return repairs.out / "classes.json"


def _stem(path: Path) -> tuple[Path, str]:
  """What two files of one name have in common."""
  name = unicodedata.normalize("NFC", path.name)
  return path.parent, split_suffix(name, (*IMAGE_SUFFIXES, *NIFTI_SUFFIXES))[0]


def _copy_pair(pair: Pair, home: Path, root: Path, repairs: Repairs, *, certain: bool) -> None:
  """Copies both files of a pair, repaired if it is certain that they are one."""
  target = home.relative_to(root)
  upright, repaired, what = None, None, ""
  if certain and isinstance(pair, ImagePair):
    upright, repaired, what = _repair_pair(pair)
  if upright is not None:
    _write(repairs, target / "images" / f"{pair.name}.png", upright, "EXIF's turn is applied")
  else:
    for path in (pair.image, *pair.others):
      _copy(repairs, target / "images", path, home / "images")
  if repaired is not None:
    _write(repairs, target / "masks" / f"{pair.name}.png", repaired, what)
  else:
    _copy(repairs, target / "masks", pair.mask, home / "masks")


def _repair_pair(pair: ImagePair) -> tuple[bytes | None, bytes | None, str]:
  """(the image upright as PNG, the mask as PNG, what was done to it); None stays as it is."""
  image, raw = attempt(pair.read_image)[0], attempt(pair.read_mask)[0]
  if image is None or raw is None or (raw.turned and not image.rotated):
    return None, None, ""
  shape = raw.values.shape
  fits = shape[:2] == image.size
  turn = not fits and image.rotated and not raw.turned and shape[1::-1] == image.size
  if not fits and not turn:
    return None, None, ""
  numbers, what = _repair_mask(pair, raw, image.orientation if turn else 1)
  # Where a mask fits either way, which way it was drawn is not certain.
  certain = numbers is not None if turn else raw.turned or not image.hides_rotation
  upright = image.data if image.rotated and certain else None
  assert not isinstance(upright, StoredImage)  # which isn't turned
  return upright, None if numbers is None else encode_png(numbers), what


def _repair_mask(pair: ImagePair, raw: RawMask, orientation: int) -> tuple[np.ndarray | None, str]:
  """(the mask's numbers, what was done), or None if nothing needs to be, or nothing is certain."""
  turn = orientation > 1
  colored = raw.colored or (raw.palette is not None and pair.classes.by_color)
  # What an index means, or whether 0 is white, is certain only if classes.json says so.
  odd_depth = raw.depth != 8 and raw.palette is None
  if raw.shown is not None or not (colored or odd_depth or turn or raw.turned):
    return None, ""
  numbers = _numbers(pair, raw)
  if numbers is None:
    return None, ""
  if turn:
    numbers = _turned(numbers, orientation)
  done = ["EXIF's turn is applied"] if turn or raw.turned else []
  done += ["colors become class numbers"] if colored else []
  done += ["saved with 8 or 16 bits"] if odd_depth else []
  return numbers, ", ".join(done)


def _numbers(pair: ImagePair, raw: RawMask) -> np.ndarray | None:
  """The numbers that stand for a mask's classes in classes.json; None if some have none."""
  classes = pair.classes
  gray = raw.values.ndim == 3 and (raw.values == raw.values[..., :1]).all()
  if gray and not classes.by_color:
    raw = dataclasses.replace(raw, values=raw.values[..., 0].astype(np.int32))
  label, problems = attempt(pair.make_label, raw)
  if problems or label is None:
    return None
  if classes.instance:
    numbers = label.values
  else:
    void = -1 if classes.ignore_label is None else classes.ignore_label
    numbers = np.full(256, void)
    numbers[: len(classes.values)] = classes.values
    numbers = numbers[label.ids]
  if numbers.min() < 0:  # void that only a color stands for
    return None
  return numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)


def _turned(numbers: np.ndarray, orientation: int) -> np.ndarray:
  """Turns an array as EXIF's orientation turns an image."""
  mask = Image.fromarray(numbers)
  mask.getexif()[0x0112] = orientation
  return np.asarray(ImageOps.exif_transpose(mask))


def _copy(repairs: Repairs, folder: Path, path: Path, home: Path) -> None:
  """Copies a file under its name in NFC."""
  old = path.relative_to(home).as_posix()
  new = unicodedata.normalize("NFC", old)
  _write(repairs, folder / new, read_bytes(path), "" if new == old else "name in NFC")


def _write(repairs: Repairs, target: Path, data: bytes, what: str = "") -> None:
  """Writes a file that isn't there yet."""
  path = repairs.out / target
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    with path.open("xb") as stream:
      stream.write(data)
  except FileExistsError:
    problem = "would be written twice, so the second was left out"
    fix = "Rename one of the two in the origin"
    repairs.refused.append(FileError("partner", path, problem, fix))
    return
  if what:
    repairs.done.setdefault(what, []).append(target.as_posix())
  else:
    repairs.copied += 1
