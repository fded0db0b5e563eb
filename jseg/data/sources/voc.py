"""`voc`: Pascal VOC, as its development kit unpacks."""

import json
import re
import unicodedata
from pathlib import Path

from jseg.data.class_lists import VOC
from jseg.data.files import FileError, read_text
from jseg.data.files.listing import IMAGE_SUFFIXES, Listing, list_if_there, split_suffix
from jseg.data.sources.base import ListedSource, existing_folder
from jseg.data.sources.pairs import ImagePair, missing_files, pair_source
from jseg.types import InputError, Json

# CVAT: "label:red,green,blue:parts:actions", and a comment.
_LABELMAP = re.compile(r"\s*([^#:]+):(\d+,\d+,\d+):")
_CLASS_NAME = re.compile(r"\s*(\S.*)")


def matches(root: Path) -> bool:
  """Whether a folder is laid out like this."""
  return _find_home(root) is not None


def voc_source(root: str | Path) -> ListedSource:
  """Reads Pascal VOC, as its development kit unpacks.

  The splits are those of ImageSets/Segmentation: train and val, test where its masks are there
  (2007), and train_aug (the SBD annotations) where its list and SegmentationClassAug are. The
  official trainval is the split "train+val".

  Args:
    root: VOCdevkit, or one year's folder, or the folder above VOCdevkit.

  Raises:
    InputError: there is no such folder, or it says that its classes are others.
  """
  root = existing_folder(root)
  home = _find_home(root)
  if home is None:
    raise InputError(
      f"{root} holds no Pascal VOC: no SegmentationClass folder here, in VOC20*, or in "
      "VOCdevkit/VOC20*; give the unpacked VOCdevkit as root"
    )
  _check_classes(home)
  images = list_if_there(home / "JPEGImages", IMAGE_SUFFIXES)
  splits: dict[str, list[ImagePair]] = {}
  kinds = ("SegmentationClass", "SegmentationClassAug")
  listings = {kind: list_if_there(home / kind, IMAGE_SUFFIXES) for kind in kinds}
  problems = [*images.problems, *(each for kind in kinds for each in listings[kind].problems)]
  lists = {"train": "train", "val": "val", "test": "test"}
  lists |= {"train_aug": "train_aug", "trainaug": "train_aug"}
  for stem, split in lists.items():
    path = home / "ImageSets" / "Segmentation" / f"{stem}.txt"
    folder = home / ("SegmentationClassAug" if split == "train_aug" else "SegmentationClass")
    if not path.is_file() or not folder.is_dir():
      continue
    masks = listings[folder.name]
    names = [_name(line.strip(), images) for line in read_text(path).splitlines() if line.strip()]
    if split == "test" and not any(name in masks.files for name in names):
      continue
    splits[split] = [_make_pair(name, images, masks, home, folder) for name in names]
    if not names:
      problems.append(FileError("layout", path, "lists no image", "Restore the list"))
    problems += missing_files(splits[split])
  if not splits:
    raise InputError(
      f"{home / 'ImageSets' / 'Segmentation'} holds no train.txt or val.txt; restore the lists"
    )
  return pair_source(home, VOC, splits, problems)


def _check_classes(home: Path) -> None:
  """Refuses the layout with other classes than VOC's, as CVAT and labelme export it."""
  for name, pattern in (("labelmap.txt", _LABELMAP), ("class_names.txt", _CLASS_NAME)):
    if not (home / name).is_file():
      continue
    matches = [m for line in read_text(home / name).splitlines() if (m := pattern.match(line))]
    names = [match[1].strip() for match in matches if match[1].strip() != "__ignore__"]
    if tuple(names) == VOC.names:
      continue
    content: Json = {"classes": names}
    if name == "labelmap.txt":
      content["palette"] = [[int(value) for value in match[2].split(",")] for match in matches]
    raise InputError(
      f"{home / name} names other classes than Pascal VOC's; make a folder of images and masks: "
      "put the images into train/images, the PNG files of SegmentationClass into train/masks, "
      f"likewise for val, and beside them a classes.json of {json.dumps(content)}"
    )


def _name(line: str, images: Listing) -> str:
  """Name of the image in a line of a list: a name, or a pair of paths as in the lists of SBD."""
  line = unicodedata.normalize("NFC", line)
  first, last = line.split()[0], line.split()[-1]
  # Names may have blanks and dots, so that only the images tell which part of a line is one.
  paths = [split_suffix(part, IMAGE_SUFFIXES)[0] for part in (line, first)]
  names = [line, *paths, *(path.rpartition("/")[2] for path in paths)]
  if last in ("1", "0", "-1"):  # lists of a class say whether it is in the image
    names += [line.removesuffix(last).rstrip()]
  likely = names[-1] if "/" in line else line
  return next((name for name in names if name in images.files), likely)


def _make_pair(name: str, images: Listing, masks: Listing, home: Path, folder: Path) -> ImagePair:
  return ImagePair(
    name=name,
    image=images.files.get(name, home / "JPEGImages" / f"{name}.jpg"),
    mask=masks.files.get(name, folder / f"{name}.png"),
    classes=VOC,
    table=VOC.table(),
  )


def _find_home(root: Path) -> Path | None:
  """The folder of the latest year that holds masks."""
  years = [root, *sorted(root.glob("VOC20*"), reverse=True)]
  years += sorted(root.glob("VOCdevkit/VOC20*"), reverse=True)
  return next((year for year in years if (year / "SegmentationClass").is_dir()), None)
