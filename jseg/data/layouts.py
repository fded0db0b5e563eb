"""Published data sets as their owners lay them out: Pascal VOC, Cityscapes, Oxford-IIIT Pet."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jseg.data.classes import ClassInfo
from jseg.data.files import FileError
from jseg.data.folder import existing_folder, pair_source, split_pairs
from jseg.data.source import Pair, Source
from jseg.types import IGNORE, InputError

VOC = ClassInfo(
  names=(
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
  ),
  ignore_color=(224, 224, 192),
)

CITYSCAPES = ClassInfo(
  names=(
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
  ),
  palette=np.array(
    [
      *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
      *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
      *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
      *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ]
  ),
  # labelIds of the 19 evaluated classes, cityscapesScripts `helpers/labels.py`.
  mask_values=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
)
_CITYSCAPES_IDS = 35  # labelIds 0..33, and 34 for the licence plate's -1 in one byte

PET = ClassInfo(
  # Trimaps: 1 is the animal, 2 is background, 3 is "not classified", the ring in between.
  names=("background", "pet"),
  palette=np.array([(0, 0, 0), (255, 176, 0)]),
  mask_values=(2, 1),
  ignore_label=3,
)
_PET_URL = "https://thor.robots.ox.ac.uk/~vgg/data/pets/"


def voc_source(root: str | Path) -> Source:
  """Pascal VOC, as its development kit unpacks.

  The splits are those of ImageSets/Segmentation: train and val, test where its masks are there
  (2007), and train_aug (the SBD annotations) where its list and SegmentationClassAug are. The
  official trainval is the split "train+val".

  Args:
    root: VOCdevkit, or one year's folder, or the folder above VOCdevkit.

  Raises:
    InputError: if no such folder is found.
  """
  root = existing_folder(root)
  years = [root, *(path for path in sorted(root.glob("VOC20*"), reverse=True))]
  years += sorted(root.glob("VOCdevkit/VOC20*"), reverse=True)
  home = next((year for year in years if (year / "SegmentationClass").is_dir()), None)
  if home is None:
    raise InputError(
      f"{root} holds no Pascal VOC: no SegmentationClass folder here, in VOC20*, or in "
      "VOCdevkit/VOC20*; give the unpacked VOCdevkit as root"
    )
  table = VOC.table()
  splits: dict[str, list[Pair]] = {}
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
      Pair(name, home / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png", VOC, table)
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


def cityscapes_source(root: str | Path) -> Source:
  """Cityscapes, 19 classes, from the labelIds that the download holds.

  Splits train and val; the test split's masks are not public.

  Args:
    root: the folder that holds leftImg8bit and gtFine.

  Raises:
    InputError: if no such folder is found.
  """
  root = existing_folder(root)
  table = CITYSCAPES.table()
  unmapped = table[:_CITYSCAPES_IDS] < 0
  table[:_CITYSCAPES_IDS][unmapped] = IGNORE
  splits: dict[str, list[Pair]] = {}
  for split in ("train", "val"):
    images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if images:
      splits[split] = [_cityscapes_pair(root, split, image, table) for image in images]
  if not splits:
    raise InputError(
      f"{root} holds no Cityscapes: no leftImg8bit/train/CITY/*_leftImg8bit.png; unpack "
      "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there"
    )
  problems = [problem for pairs in splits.values() for problem in missing_files(pairs)]
  return pair_source(root, CITYSCAPES, splits, problems)


def _cityscapes_pair(root: Path, split: str, image: Path, table: np.ndarray) -> Pair:
  name = image.name.removesuffix("_leftImg8bit.png")
  mask = root / "gtFine" / split / image.parent.name / f"{name}_gtFine_labelIds.png"
  return Pair(name, image, mask, CITYSCAPES, table)


def oxford_iiit_pet_source(root: str | Path | None = None, seed: int = 0) -> Source:
  """Oxford-IIIT Pet: animal against background, the ring "not classified" is void.

  A tenth of the official trainval list, drawn at random, is val; test is the official one. Read
  from the files, because the TFDS builder of this set repairs twelve damaged JPEGs with
  TensorFlow; here they are read as what they are.

  Args:
    root: folder that holds images and annotations; None downloads both (800 MB) through TFDS.
    seed: of the split into train and val.

  Raises:
    InputError: if no such folder is found.
  """
  root = _download_pet() if root is None else existing_folder(root)
  lists = root / "annotations"
  if not (lists / "trainval.txt").is_file():
    raise InputError(
      f"{root} holds no Oxford-IIIT Pet: no annotations/trainval.txt; unpack images.tar.gz and "
      f"annotations.tar.gz of {_PET_URL} there, or leave root out to download them"
    )
  table = PET.table()
  listed: dict[str, list[Pair]] = {}
  for stem in ("trainval", "test"):
    lines = (lists / f"{stem}.txt").read_text().splitlines()
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    listed[stem] = [
      Pair(name, root / "images" / f"{name}.jpg", lists / "trimaps" / f"{name}.png", PET, table)
      for name in names
    ]
  splits = split_pairs(listed["trainval"], {"train": 0.9, "val": 0.1}, seed)
  splits["test"] = listed["test"]
  problems = [problem for pairs in splits.values() for problem in missing_files(pairs)]
  return pair_source(root, PET, splits, problems)


def _download_pet() -> Path:
  """Downloads and unpacks both archives once, checked against TFDS's checksums."""
  home = Path(tfds.core.constants.DATA_DIR).expanduser() / "downloads" / "oxford_iiit_pet"
  manager = tfds.download.DownloadManager(
    download_dir=home, url_infos=tfds.builder_cls("oxford_iiit_pet").url_infos
  )
  for part in ("images", "annotations"):
    if not (home / part).is_dir():
      # TFDS's own unpacking needs TensorFlow. Unpacked aside first: a killed run leaves no half.
      archive = manager.download(f"{_PET_URL}{part}.tar.gz")
      shutil.unpack_archive(archive, home / f"{part}.incomplete", "gztar", filter="data")
      (home / f"{part}.incomplete" / part).rename(home / part)
  return home


def missing_files(pairs: Sequence[Pair]) -> list[FileError]:
  """A problem for each listed file that is not there."""
  return [
    FileError("partner", path, "is listed but missing", "Unpack the archive again")
    for pair in pairs
    for path in (pair.image, pair.mask)
    if not path.is_file()
  ]
