"""`folder`: a data set that a user lays out as images and masks.

ROOT/classes.json                        ROOT/classes.json
ROOT/{train,val,test}/images/NAME.ext    ROOT/images/NAME.ext
ROOT/{train,val,test}/masks/NAME.png     ROOT/masks/NAME.png    (split at random)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jseg.data.files import IMAGE_SUFFIXES, NIFTI_SUFFIXES, FileError
from jseg.data.files.classes import ClassInfo
from jseg.data.sources.base import ListedSource, existing_folder
from jseg.data.sources.pairs import SPLITS, FilePair, ImagePair, pair_source, split_at_random
from jseg.types import InputError

_LAYOUT = (
  "Expected ROOT/classes.json with ROOT/train/images and ROOT/train/masks (likewise val, test), "
  "or ROOT/images and ROOT/masks, which are split at random"
)


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
  source = paired_folder(root, fractions, seed, IMAGE_SUFFIXES, ImagePair, ("semantic", "instance"))
  if not any(source.splits.values()) and holds_volumes(root):
    raise InputError(f'{root} holds volumes: give "volumes" as data.name instead of "folder"')
  return source


def matches(root: Path) -> bool:
  """Whether a folder is laid out like this."""
  images = (root / folder / "images" for folder in ("", *SPLITS))
  named = (root / "classes.json").is_file() and any(map(Path.is_dir, images))
  return named and not holds_volumes(root)


def holds_volumes(root: str | Path) -> bool:
  """Whether the images of a folder are NIfTI files."""
  patterns = [f"{split}images/*{end}" for split in ("", "*/") for end in NIFTI_SUFFIXES]
  return any(any(Path(root).expanduser().glob(pattern)) for pattern in patterns)


def paired_folder(
  root: str | Path,
  fractions: Mapping[str, float] | None,
  seed: int,
  suffixes: Sequence[str],
  make_pair: Callable[..., FilePair],
  tasks: Sequence[str],
) -> ListedSource:
  """Reads a folder in the layout above.

  Args:
    root: the folder.
    fractions: shares of the splits; see `folder_source`.
    seed: seed of the random split.
    suffixes: what names of files end in.
    make_pair: the kind of `FilePair` to make.
    tasks: see `ClassInfo.load`.

  Raises:
    InputError: see `folder_source`.
  """
  root = existing_folder(root)
  if not any((root / s).is_dir() for s in SPLITS) and not (root / "images").is_dir():
    inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    raise InputError(f"{root} holds no data set ({inside} found). {_LAYOUT}")
  classes = ClassInfo.load(root / "classes.json", tasks)
  if classes.instance and classes.mask_values is not None:
    raise InputError(
      f"{root / 'classes.json'}: mask_values are for classes, but these masks hold instance ids; "
      "leave mask_values out"
    )
  plain = not any((root / split).is_dir() for split in SPLITS)
  if plain:
    pairs, problems = _find_pairs(root, classes, suffixes, make_pair)
    splits = split_at_random(pairs, fractions or {"train": 0.8, "val": 0.2}, seed) if pairs else {}
  else:
    if fractions:
      raise InputError(f"fractions: {root} has its own splits; leave fractions out")
    splits, problems = {}, _stray_splits(root)
    for split in SPLITS:
      if (root / split).is_dir():
        splits[split], found = _find_pairs(root / split, classes, suffixes, make_pair)
        problems += found
  return pair_source(root, classes, splits, problems)


def _find_pairs(
  folder: Path, classes: ClassInfo, suffixes: Sequence[str], make_pair: Callable[..., FilePair]
) -> tuple[list[FilePair], list[FileError]]:
  """Pairs the files of `folder`/images and `folder`/masks by stem; lists those without partner."""
  problems: list[FileError] = []
  images, masks = (_by_stem(folder / kind, suffixes, problems) for kind in ("images", "masks"))
  for stem in sorted(images.keys() ^ masks.keys()):
    lone = images.get(stem) or masks[stem]
    other = "mask" if stem in images else "image"
    fix = f"Put it at {folder / (other + 's') / stem}.*, or remove this file"
    problems.append(FileError("partner", lone, f"has no {other} of the same name", fix))
  if not images and not masks:
    problems.append(FileError("layout", folder, "is empty", f"{_LAYOUT}; or remove the folder"))
  table = classes.table()
  both = sorted(images.keys() & masks.keys())
  return [make_pair(stem, images[stem], masks[stem], classes, table) for stem in both], problems


def _by_stem(folder: Path, suffixes: Sequence[str], problems: list[FileError]) -> dict[str, Path]:
  files: dict[str, Path] = {}
  if not folder.is_dir():
    problems.append(FileError("layout", folder, "is missing", _LAYOUT))
    return files
  for path in sorted(folder.iterdir()):
    suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
    if suffix is None or path.name.startswith("."):
      continue
    stem = path.name[: -len(suffix)]
    if stem in files:
      fix = "Keep one of the two, or rename the other with its mask"
      problems.append(FileError("partner", path, f"{files[stem]} has the same name", fix))
    files[stem] = path
  return files


def _stray_splits(root: Path) -> list[FileError]:
  """Lists folders that look like splits but are not called so."""
  return [
    FileError("layout", path, "is not a known split", "Call splits train, val and test")
    for path in sorted(root.iterdir())
    if path.name not in SPLITS and (path / "images").is_dir()
  ]
