"""The hippocampus of the Medical Segmentation Decathlon: small volumes."""

import pathlib

import numpy as np

from jseg.data import ClassInfo
from jseg.datasets.base import Archive, PublishedSet, by_md5, github, make_folders, save_pair, told

_FOLDER = "data/TrainingSet"
# Of these, image and mask don't belong together.
_LEFT_OUT = ("hippocampus_010.nii.gz", "hippocampus_281.nii.gz")
_TRAIN, _VAL = 90, 30


def convert(archive: Archive, out: pathlib.Path) -> None:
  """Writes 90 volumes for training and 30 for validation, byte for byte."""
  names = ("background", "anterior", "posterior")
  make_folders(
    out, ("train", "val"), ClassInfo(names, np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)]))
  )
  files = [name.rpartition("/")[2] for name in archive.names(f"{_FOLDER}/labels/hippo", ".nii.gz")]
  chosen = [name for name in by_md5(files) if name not in _LEFT_OUT][: _TRAIN + _VAL]
  for name in told(chosen):
    split = "train" if name in chosen[:_TRAIN] else "val"
    image, mask = (archive.read(f"{_FOLDER}/{kind}/{name}") for kind in ("images", "labels"))
    save_pair(out / split, name, image, mask)


HIPPOCAMPUS3D = PublishedSet(
  title="Decathlon's hippocampus: 120 MR volumes of about 36 x 50 x 35 voxels, two parts",
  **github("udacity", "nd320-c3-3d-imaging-starter", "895fee683624aafe2033521f4d9b6d99accd66d5"),
  megabytes=90,
  license="CC BY-SA 4.0, of the Decathlon",
  cite="Antonelli et al., Nature Communications 13, 2022; Simpson et al., arXiv:1902.09063",
  recipe="unet3d_hippocampus",
  convert=convert,
  content="90dadf88828bd95c055b1b72690c426a83eed15500ef5148e26bc39d0991a231",
  note="120 of the 260 labeled volumes; train and val are of this project",
)
