"""Which files of a folder are a data set's: one rule for checks, preparation and prediction."""

import bisect
import dataclasses
import os
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from PIL import Image

from jseg.data.files import FileError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
# What Pillow recognizes but leaves to a program that may not be there, or is about to drop.
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "IM", "MPEG", "WMF"}
_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")
_MOST_NAMES = 5  # that a message lists


Image.init()
IMAGE_FORMATS = tuple(name for name in Image.ID if name not in _NO_IMAGES)
"""Pillow's names of the formats that are read."""

IMAGE_SUFFIXES = tuple(
  suffix
  for suffix, name in sorted(Image.registered_extensions().items())
  if name in {*IMAGE_FORMATS, "MPO"}
)
"""Name endings of all images that Pillow reads, in lower case: .png, .jpg, .tif, .ppm and more."""


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files of a folder.

  Attributes:
    files: path of each file by name: relative to the folder, "/" between folders, without suffix,
      in Unicode's form NFC; sorted by name.
    problems: what can't be used and must be mended, such as links to nowhere.
    notes: what else is in the folder and isn't used, by count and name.
  """

  files: dict[str, Path]
  problems: list[FileError]
  notes: list[FileError]


def list_files(
  folder: Path,
  suffixes: Collection[str],
  ignore: Callable[[Path], bool] = lambda _: False,
) -> Listing:
  """Lists the files of a folder and its sub-folders whose names end in one of the suffixes.

  Suffixes are compared without case. Links are followed. What begins with a dot is hidden and left
  out, resource forks (`._a.png`) among it. A folder is a folder, whatever its name ends in.

  Args:
    folder: the folder.
    suffixes: name endings in lower case, such as `IMAGE_SUFFIXES` or `NIFTI_SUFFIXES`.
    ignore: whether a file is neither listed nor worth a note.

  Raises:
    FileError: there is no such folder, or it can't be read. A sub-folder that can't be read is one
      of the problems.
  """
  listing = Listing({}, [], [])
  unused: dict[str, list[str]] = {}
  found: list[tuple[str, Path]] = []
  for path in _walk(folder, listing.problems):
    if ignore(path):
      continue
    relative = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
    stem, suffix = split_suffix(relative, suffixes)
    if why := _why_unused(path, suffix):
      unused.setdefault(why, []).append(relative)
    elif suffix and path.is_file():
      found.append((stem, path))
  for stem, path in sorted(found):
    if stem in listing.files:
      fix = "Keep one of the two, or rename the other with its mask"
      problem = f"{listing.files[stem]} has the same name"
      listing.problems.append(FileError("twice", path, problem, fix))
    else:
      listing.files[stem] = path
  for why, names in unused.items():
    fix = "Nothing needs to be done if this is meant; else convert or rename them"
    listing.notes.append(FileError("unused", folder, f"{counted(names)} {why}: not used", fix))
  return listing


def list_if_there(folder: Path, suffixes: Collection[str]) -> Listing:
  """Lists the files of a folder as `list_files` does, and nothing if there is no such folder."""
  return list_files(folder, suffixes) if folder.is_dir() else Listing({}, [], [])


def split_suffix(name: str, suffixes: Collection[str]) -> tuple[str, str]:
  """Splits a file's name into (stem, suffix); the suffix is "" if it is none of these.

  Args:
    name: the name, also with folders in front.
    suffixes: name endings in lower case; the longest that fits counts.
  """
  fitting = [s for s in suffixes if name.lower().endswith(s) and len(Path(name).name) > len(s)]
  suffix = max(fitting, key=len, default="")
  return name[: len(name) - len(suffix)], name[len(name) - len(suffix) :]


def counted(names: Collection[str]) -> str:
  """Says how many files there are and names the first: `7 file(s) (a, b, c, d, e, ...)`."""
  first = ", ".join(sorted(names)[:_MOST_NAMES])
  return f"{len(names)} file(s) ({first}{', ...' if len(names) > _MOST_NAMES else ''})"


def _why_unused(path: Path, suffix: str) -> str:
  """Why something in a folder is no file of it, for the user; "" if it is one, or nobody's loss."""
  if path.name.startswith("."):
    return "are hidden, with a dot in front of the name" if suffix else ""
  if path.is_dir():
    return "are empty folders with the name of a file" if suffix else ""
  if not path.is_file():
    return "are no regular files"
  if suffix:
    return ""
  ending = path.suffix.lower()
  return f"end in {ending}, which isn't read here" if ending else "have no suffix"


def _walk(
  folder: Path, problems: list[FileError], above: frozenset[str] = frozenset()
) -> Iterator[Path]:
  """Everything in a folder and its sub-folders that isn't clutter; of folders, the empty ones."""
  above = above | {os.path.realpath(folder)}
  try:
    entries = sorted(folder.iterdir())
  except OSError as error:
    fix = "Check the path and its permissions"
    raise FileError("unreadable", folder, error.strerror or str(error), fix) from error
  for path in entries:
    if path.name.lower() in _CLUTTER:
      continue
    try:
      kind = path.stat().st_mode
    except OSError as error:
      if not path.name.startswith("."):
        problems.append(_dangling(path, error))
      continue
    if not stat.S_ISDIR(kind):
      yield path
    elif os.path.realpath(path) in above:
      fix = "Remove the link"
      problems.append(FileError("layout", path, "links to a folder that it is in", fix))
    elif not path.name.startswith("."):
      try:
        inside = list(_walk(path, problems, above))
      except FileError as error:
        problems.append(error)
      else:
        yield from inside or [path]


def _dangling(path: Path, error: OSError) -> FileError:
  if not path.is_symlink():
    reason = error.strerror or str(error)
    return FileError("unreadable", path, reason, "Check the path and its permissions")
  fix = "Put the file back, or remove the link together with its partner"
  return FileError("missing", path, f"is a link to {os.readlink(path)}, which isn't there", fix)


def count_files(folder: Path, suffixes: Collection[str]) -> int:
  """Number of files that end like this in a folder, which may not be there, and those below it."""
  if not folder.is_dir():
    return 0
  files = (p for p in _walk(folder, []) if not p.name.startswith(".") and p.is_file())
  return sum(bool(split_suffix(path.name, suffixes)[1]) for path in files)


def likeliest_partner(name: str, others: Sequence[str]) -> str | None:
  """Which of some sorted names may have been meant by another: `b/A1` or `a1_mask` for `a1`."""
  place = bisect.bisect_left(others, name)
  near = [*others[place : place + 1], *others[max(place - 1, 0) : place]]
  same = (other for other in others if _folded(other) == _folded(name))
  return next(same, next((other for other in near if _begins(name, other)), None))


def _begins(one: str, other: str) -> bool:
  """Whether one name is the other with something like `_mask` behind it."""
  short, long = sorted((one, other), key=len)
  return long.startswith(short) and long[len(short) : len(short) + 1] in ("_", "-", ".", " ")


def _folded(name: str) -> str:
  """A name without its folder, its case and its blanks."""
  return "".join(name.rpartition("/")[2].casefold().split())


def usual_suffixes(suffixes: Collection[str]) -> str:
  """Lists the best-known of some suffixes, for messages."""
  usual = (".png", ".jpg", ".tif", ".bmp", ".webp", *NIFTI_SUFFIXES)
  return ", ".join(suffix for suffix in usual if suffix in suffixes)
