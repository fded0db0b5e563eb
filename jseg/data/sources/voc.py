"""`voc`: Pascal VOC, as its development kit unpacks."""

from pathlib import Path

from jseg.data.class_lists import VOC
from jseg.data.files import FileError
from jseg.data.sources.base import ListedSource, existing_folder
from jseg.data.sources.pairs import ImagePair, missing_files, pair_source
from jseg.types import InputError


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
    InputError: there is no such folder.
  """
  root = existing_folder(root)
  home = _find_home(root)
  if home is None:
    raise InputError(
      f"{root} holds no Pascal VOC: no SegmentationClass folder here, in VOC20*, or in "
      "VOCdevkit/VOC20*; give the unpacked VOCdevkit as root"
    )
  table = VOC.table()
  splits: dict[str, list[ImagePair]] = {}
  problems: list[FileError] = []
  lists = {"train": "train", "val": "val", "test": "test"}
  lists |= {"train_aug": "train_aug", "trainaug": "train_aug"}
  for stem, split in lists.items():
    path = home / "ImageSets" / "Segmentation" / f"{stem}.txt"
    masks = home / ("SegmentationClassAug" if split == "train_aug" else "SegmentationClass")
    if not path.is_file() or not masks.is_dir():
      continue
    # The SBD lists of the field hold pairs of paths instead of names.
    names = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
    if split == "test" and not any((masks / f"{name}.png").is_file() for name in names):
      continue
    splits[split] = [
      ImagePair(
        name=name,
        image=home / "JPEGImages" / f"{name}.jpg",
        mask=masks / f"{name}.png",
        classes=VOC,
        table=table,
      )
      for name in names
    ]
    if not names:
      problems.append(FileError("layout", path, "lists no image", "Restore the list"))
    problems += missing_files(splits[split])
  if not splits:
    raise InputError(
      f"{home / 'ImageSets' / 'Segmentation'} holds no train.txt or val.txt; restore the lists"
    )
  return pair_source(home, VOC, splits, problems)


def _find_home(root: Path) -> Path | None:
  """The folder of the latest year that holds masks."""
  years = [root, *sorted(root.glob("VOC20*"), reverse=True)]
  years += sorted(root.glob("VOCdevkit/VOC20*"), reverse=True)
  return next((year for year in years if (year / "SegmentationClass").is_dir()), None)
