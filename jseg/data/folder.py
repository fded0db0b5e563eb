"""`folder`: a data set that a user lays out as images and masks.

ROOT/classes.json                        ROOT/classes.json
ROOT/{train,val,test}/images/NAME.ext    ROOT/images/NAME.ext
ROOT/{train,val,test}/masks/NAME.png     ROOT/masks/NAME.png    (split at random)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jseg.data.classes import ClassInfo
from jseg.data.files import IMAGE_SUFFIXES, NIFTI_SUFFIXES, FileError, fingerprint
from jseg.data.source import Pair, Source
from jseg.types import InputError

SPLITS = ("train", "val", "test")
_LAYOUT = (
  "Expected ROOT/classes.json with ROOT/train/images and ROOT/train/masks (likewise val, test), "
  "or ROOT/images and ROOT/masks, which are split at random"
)


def folder_source(
  root: str | Path, fractions: Mapping[str, float] | None = None, seed: int = 0
) -> Source:
  """A folder of images and masks.

  Args:
    root: the folder.
    fractions: shares of train, val and test where the folder has no splits of its own; they sum
      to 1. Default: 0.8 train, 0.2 val.
    seed: of that split.

  Raises:
    InputError: if the folder, its classes or its layout are missing.
  """
  source = paired_folder(root, fractions, seed, IMAGE_SUFFIXES, Pair, ("semantic", "instance"))
  if not any(source.splits.values()) and holds_volumes(root):
    raise InputError(f'{root} holds volumes: give "volumes" as data.name instead of "folder"')
  return source


def holds_volumes(root: str | Path) -> bool:
  """Whether the images of a folder are NIfTI files."""
  patterns = [f"{split}images/*{end}" for split in ("", "*/") for end in NIFTI_SUFFIXES]
  return any(any(Path(root).expanduser().glob(pattern)) for pattern in patterns)


def paired_folder(
  root: str | Path,
  fractions: Mapping[str, float] | None,
  seed: int,
  suffixes: Sequence[str],
  make_pair: Callable[..., Any],
  tasks: Sequence[str],
) -> Source:
  """A folder in the layout above, for files that end in `suffixes`; see `folder_source`.

  `make_pair` is `Pair` or a class with its fields and methods; for `tasks` see `ClassInfo.load`.
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
    splits = split_pairs(pairs, fractions or {"train": 0.8, "val": 0.2}, seed) if pairs else {}
  else:
    if fractions:
      raise InputError(f"fractions: {root} has its own splits; leave fractions out")
    splits, problems = {}, _stray_splits(root)
    for split in SPLITS:
      if (root / split).is_dir():
        splits[split], found = _find_pairs(root / split, classes, suffixes, make_pair)
        problems += found
  return pair_source(root, classes, splits, problems)


def existing_folder(root: str | Path) -> Path:
  """`root` as a path; raises InputError if there is no such folder."""
  path = Path(root).expanduser()
  if not path.is_dir():
    raise InputError(f"{path} is not a folder; give the data set's folder as root")
  return path


def pair_source(
  root: Path,
  classes: ClassInfo,
  splits: Mapping[str, Sequence[Pair]],
  problems: Sequence[FileError] = (),
) -> Source:
  """A source of file pairs, with the fingerprint of their contents."""

  def digest() -> str:
    files = {p for pairs in splits.values() for pair in pairs for p in (pair.image, pair.mask)}
    named = ((path.relative_to(root).as_posix(), path) for path in files)
    members = {split: [pair.name for pair in pairs] for split, pairs in splits.items()}
    table = next(pair.table for pairs in splits.values() for pair in pairs).tobytes()
    return fingerprint(named, f"{classes.to_json()} {members} {table.hex()}")

  return Source(classes, splits, digest, problems, classes.instance)


def split_pairs(
  pairs: Sequence[Any], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Any]]:
  """Splits at random; the same seed and the same names give the same splits.

  Args:
    pairs: all pairs.
    fractions: share of each split, summing to 1.
    seed: of the shuffle.

  Raises:
    InputError: if the fractions are none, or leave a split empty.
  """
  shares = dict(fractions)
  valid = set(shares) <= set(SPLITS) and min(shares.values()) > 0
  if not valid or not np.isclose(sum(shares.values()), 1):
    raise InputError(
      f"fractions: {shares} must give train, val and test shares above 0 that sum to 1"
    )
  order = np.random.default_rng(seed).permutation(len(pairs))
  ends = np.rint(np.cumsum(list(shares.values())) * len(pairs)).astype(int)
  splits, start = {}, 0
  for split, end in zip(shares, ends, strict=True):
    splits[split] = [pairs[i] for i in sorted(order[start:end])]
    start = end
    if not splits[split]:
      raise InputError(
        f"fractions: {shares} of {len(pairs)} images leave split {split!r} empty; "
        "add images or raise its share"
      )
  return splits


def _find_pairs(
  folder: Path, classes: ClassInfo, suffixes: Sequence[str], make_pair: Callable[..., Any]
) -> tuple[list[Any], list[FileError]]:
  """Pairs of `folder`/images and `folder`/masks by stem, and what lacks a partner."""
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
  """Folders that look like splits but are not called so."""
  return [
    FileError("layout", path, "is not a known split", "Call splits train, val and test")
    for path in sorted(root.iterdir())
    if path.name not in SPLITS and (path / "images").is_dir()
  ]
