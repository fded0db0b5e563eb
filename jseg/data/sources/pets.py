"""`oxford_iiit_pet`: Oxford-IIIT Pet, as its archives unpack."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jseg.data.files import read_text
from jseg.data.files.classes import ClassInfo
from jseg.data.files.listing import IMAGE_SUFFIXES, list_if_there
from jseg.data.sources.base import ListedSource, existing_folder
from jseg.data.sources.pairs import ImagePair, missing_files, pair_source, split_at_random
from jseg.types import InputError

PET = ClassInfo(
  # Trimaps: 1 is the animal, 2 is background, 3 is "not classified", the ring in between.
  names=("background", "pet"),
  palette=np.array([(0, 0, 0), (255, 176, 0)]),
  mask_values=(2, 1),
  ignore_label=3,
)
_PET_URL = "https://thor.robots.ox.ac.uk/~vgg/data/pets/"


def matches(root: Path) -> bool:
  """Whether a folder is laid out like this."""
  return (root / "annotations" / "trainval.txt").is_file()


def oxford_iiit_pet_source(root: str | Path | None = None, seed: int = 0) -> ListedSource:
  """Reads Oxford-IIIT Pet: animal against background, the ring "not classified" is void.

  A tenth of the official trainval list, drawn at random, is val; test is the official one. Read
  from the files, because the TFDS builder of this set repairs twelve damaged JPEGs with
  TensorFlow; here they are read as what they are.

  Args:
    root: folder that holds images and annotations; None downloads both (800 MB) through TFDS.
    seed: seed of the random split into train and val.

  Raises:
    InputError: there is no such folder.
  """
  root = _download_pet() if root is None else existing_folder(root)
  lists = root / "annotations"
  if not (lists / "trainval.txt").is_file():
    raise InputError(
      f"{root} holds no Oxford-IIIT Pet: no annotations/trainval.txt; unpack images.tar.gz and "
      f"annotations.tar.gz of {_PET_URL} there, or leave root out to download them"
    )
  table = PET.table()
  images, masks = (list_if_there(f, IMAGE_SUFFIXES) for f in (root / "images", lists / "trimaps"))
  listed: dict[str, list[ImagePair]] = {}
  for stem in ("trainval", "test"):
    lines = read_text(lists / f"{stem}.txt").splitlines()
    words = (line.split()[0] for line in lines if line.strip() and not line.startswith("#"))
    names = [word.rpartition("/")[2] for word in words]
    listed[stem] = [
      ImagePair(
        name=name,
        image=images.files.get(name, root / "images" / f"{name}.jpg"),
        mask=masks.files.get(name, lists / "trimaps" / f"{name}.png"),
        classes=PET,
        table=table,
      )
      for name in names
    ]
  splits = split_at_random(listed["trainval"], {"train": 0.9, "val": 0.1}, seed)
  splits["test"] = listed["test"]
  problems = [*images.problems, *masks.problems]
  problems += missing_files(itertools.chain(*splits.values()))
  return pair_source(root, PET, splits, problems)


def _download_pet() -> Path:
  """Downloads and unpacks both archives once, checked against the checksums of TFDS."""
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
