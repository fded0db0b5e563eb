"""`folder`: a data set that a user lays out as images and masks.

ROOT/classes.json                        ROOT/classes.json
ROOT/{train,val,test}/images/NAME.ext    ROOT/images/NAME.ext
ROOT/{train,val,test}/masks/NAME.png     ROOT/masks/NAME.png    (split at random)

NAME may have folders in front, the same below images and below masks.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jseg.data.files import FileError
from jseg.data.files.channels import join_channels
from jseg.data.files.classes import ClassInfo
from jseg.data.files.listing import (
  IMAGE_SUFFIXES,
  NIFTI_SUFFIXES,
  Listing,
  count_files,
  likeliest_partner,
  list_files,
  usual_suffixes,
)
from jseg.data.sources.base import ListedSource, existing_folder
from jseg.data.sources.pairs import (
  DEFAULT_FRACTIONS,
  SPLITS,
  ImagePair,
  Pair,
  pair_source,
  split_at_random,
)
from jseg.types import InputError

_LAYOUT = (
  "Expected ROOT/classes.json with ROOT/train/images and ROOT/train/masks (likewise val, test), "
  "or ROOT/images and ROOT/masks, which are split at random"
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """What kind of files a folder in the layout above holds.

  Attributes:
    suffixes: what names of images end in.
    make_pair: the kind of `FilePair` they make.
    tasks: see `ClassInfo.load`.
    mask_suffixes: what names of masks end in; empty: as those of images.
    channels: whether an image may be several files, one a channel: see `join_channels`.
  """

  suffixes: Sequence[str]
  make_pair: Callable[..., Pair]
  tasks: Sequence[str]
  mask_suffixes: Sequence[str] = ()
  channels: bool = False


IMAGES = Layout(IMAGE_SUFFIXES, ImagePair, ("semantic", "instance"))


def folder_source(
  root: str | Path, fractions: Mapping[str, float] | None = None, seed: int = 0
) -> ListedSource:
  """Reads a folder of images and masks.

  Args:
    root: the folder.
    fractions: shares of train, val and test where the folder has no splits of its own; they sum
      to 1. Default: 0.8 train, 0.2 val.
    seed: seed of the random split.

  Raises:
    InputError: the folder, its classes or its layout are missing.
  """
  source = read_folder(root, IMAGES, None, fractions, seed)
  if not any(source.splits.values()) and count_images(root, NIFTI_SUFFIXES):
    raise InputError(f'{root} holds volumes: give "volumes" as data.name instead of "folder"')
  return source


def matches(root: Path) -> bool:
  """Whether a folder is laid out like this."""
  images = (root / folder / "images" for folder in ("", *SPLITS))
  named = (root / "classes.json").is_file() and any(map(Path.is_dir, images))
  return named and not holds_volumes(root)


def holds_volumes(root: Path) -> bool:
  """Whether a folder in this layout has more volumes than images; the fewer are told as unused."""
  return count_images(root, NIFTI_SUFFIXES) > count_images(root, IMAGE_SUFFIXES)


def count_images(root: str | Path, suffixes: Sequence[str]) -> int:
  """Number of images that end like this in a folder in this layout."""
  root = Path(root).expanduser()
  return sum(count_files(root / split / "images", suffixes) for split in ("", *SPLITS))


def read_folder(
  root: str | Path,
  layout: Layout,
  classes: ClassInfo | None = None,
  fractions: Mapping[str, float] | None = None,
  seed: int = 0,
) -> ListedSource:
  """Reads a folder in the layout above.

  Args:
    root: the folder.
    layout: what kind of files it holds.
    classes: its classes, if they aren't to be read from its classes.json.
    fractions: shares of the splits; see `folder_source`.
    seed: seed of the random split.

  Raises:
    InputError: see `folder_source`.
  """
  root = existing_folder(root)
  if not any((root / s).is_dir() for s in SPLITS) and not (root / "images").is_dir():
    inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    raise InputError(f"{root} holds no data set ({inside} found). {_LAYOUT}")
  classes = classes or ClassInfo.load(root / "classes.json", layout.tasks)
  if classes.instance and classes.mask_values is not None:
    raise InputError(
      f"{root / 'classes.json'}: mask_values are for classes, but these masks hold instance ids; "
      "leave mask_values out"
    )
  if not any((root / split).is_dir() for split in SPLITS):
    pairs, problems, notes = _find_pairs(root, classes, layout)
    splits = split_at_random(pairs, fractions or DEFAULT_FRACTIONS, seed) if pairs else {}
    return pair_source(root, classes, splits, problems, notes)
  if fractions:
    raise InputError(f"fractions: {root} has its own splits; leave fractions out")
  splits, problems, notes = {}, *_stray_folders(root, layout.suffixes)
  for split in SPLITS:
    if (root / split).is_dir():
      splits[split], wrong, unused = _find_pairs(root / split, classes, layout)
      problems += wrong
      notes += unused
  return pair_source(root, classes, splits, problems, notes)


def _find_pairs(
  folder: Path, classes: ClassInfo, layout: Layout
) -> tuple[list[Pair], list[FileError], list[FileError]]:
  """Pairs the files of `folder`/images and `folder`/masks by name.

  Returns:
    (pairs, problems such as files without partner, notes on what isn't used).
  """
  images = _list(folder / "images", layout.suffixes)
  masks = _list(folder / "masks", layout.mask_suffixes or layout.suffixes)
  others: dict[str, tuple[Path, ...]] = {}
  if layout.channels:
    images, others = join_channels(images, masks.files)
  lone = sorted(images.files.keys() ^ masks.files.keys())
  problems = [*images.problems, *masks.problems]
  known = {problem.file for problem in problems}
  lone_names = {
    "mask": [name for name in lone if name not in images.files],
    "image": [name for name in lone if name in images.files],
  }
  for name in lone:
    file, other = (
      (images.files[name], "mask") if name in images.files else (masks.files[name], "image")
    )
    fix = f"Put it at {folder / (other + 's') / name}.*, or remove this file"
    if (meant := likeliest_partner(name, lone_names[other])) is not None:
      kind = masks if other == "mask" else images
      fix = f"If it is {kind.files[meant]}, give both the same name; else remove this file"
    problems.append(FileError("partner", file, f"has no {other} of the same name", fix))
  if not images.files and not masks.files and not known:
    problems.append(_empty(folder, layout.suffixes))
  table = classes.table()
  pairs = [
    layout.make_pair(name, path, masks.files[name], classes, table, others.get(name, ()))
    for name, path in images.files.items()
    if name in masks.files
  ]
  return pairs, problems, [*images.notes, *masks.notes]


def _list(folder: Path, suffixes: Sequence[str]) -> Listing:
  """The files of a folder; if that can't be, an empty listing that says why."""
  if not folder.is_dir():
    return Listing({}, [FileError("layout", folder, "is missing", _LAYOUT)], [])
  try:
    return list_files(folder, suffixes)
  except FileError as error:
    return Listing({}, [error], [])


def _empty(folder: Path, suffixes: Sequence[str]) -> FileError:
  kinds = usual_suffixes(suffixes)
  fix = f"Put files that end in {kinds} into its images and masks, or remove the folder"
  return FileError("layout", folder, "is empty", fix)


def _stray_folders(root: Path, suffixes: Sequence[str]) -> tuple[list[FileError], list[FileError]]:
  """Folders that look like splits but are not called so, and those that splits make void."""
  problems = [
    FileError("layout", path, "is not a known split", "Call splits train, val and test")
    for path in sorted(root.iterdir())
    if path.name not in SPLITS and (path / "images").is_dir() and not path.name.startswith(".")
  ]
  fix = "Move its files into one of the splits if they are to be used"
  notes = [
    FileError("unused", root / kind, "isn't used, because there are folders of splits", fix)
    for kind in ("images", "masks")
    if count_files(root / kind, suffixes)
  ]
  return problems, notes
