"""`cityscapes`: Cityscapes, as its archives unpack."""

import itertools
from pathlib import Path

import numpy as np

from jseg.data.class_lists import CITYSCAPES
from jseg.data.files import FileError
from jseg.data.files.listing import list_if_there
from jseg.data.sources.base import ListedSource, existing_folder
from jseg.data.sources.pairs import ImagePair, missing_files, pair_source
from jseg.types import IGNORE, InputError

_CITYSCAPES_IDS = 35  # labelIds 0..33, and 34 for the license plate's -1 in one byte


def matches(root: Path) -> bool:
  """Whether a folder is laid out like this."""
  return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def cityscapes_source(root: str | Path) -> ListedSource:
  """Reads Cityscapes, 19 classes, from the labelIds that the download holds.

  Splits train and val; the test split's masks are not public.

  Args:
    root: the folder that holds leftImg8bit and gtFine.

  Raises:
    InputError: there is no such folder.
  """
  root = existing_folder(root)
  table = CITYSCAPES.table()
  unmapped = table[:_CITYSCAPES_IDS] < 0
  table[:_CITYSCAPES_IDS][unmapped] = IGNORE
  splits: dict[str, list[ImagePair]] = {}
  problems: list[FileError] = []
  for split in ("train", "val"):
    folder = root / "leftImg8bit" / split
    listing = list_if_there(folder, ["_leftimg8bit.png"])
    if listing.files:
      images = listing.files.values()
      splits[split] = [_cityscapes_pair(root, split, image, table) for image in images]
    problems += listing.problems
  if not splits and problems:
    raise problems[0]
  if not splits:
    raise InputError(
      f"{root} holds no Cityscapes: no leftImg8bit/train/CITY/*_leftImg8bit.png; unpack "
      "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there"
    )
  problems += missing_files(itertools.chain(*splits.values()))
  return pair_source(root, CITYSCAPES, splits, problems)


def _cityscapes_pair(root: Path, split: str, image: Path, table: np.ndarray) -> ImagePair:
  name = image.name.removesuffix("_leftImg8bit.png")
  mask = root / "gtFine" / split / image.parent.name / f"{name}_gtFine_labelIds.png"
  return ImagePair(name=name, image=image, mask=mask, classes=CITYSCAPES, table=table)
