"""Penn-Fudan: pedestrians as objects."""

import pathlib

import numpy as np

from jseg.data import ClassInfo
from jseg.datasets.base import Archive, PublishedSet, make_folders, png, save_pair, told

_FIFTH = 5  # every fifth image is `val`


def convert(archive: Archive, out: pathlib.Path) -> None:
  """Writes images as they are, and masks in which each pedestrian has an id."""
  classes = ClassInfo(
    ("background", "pedestrian"), np.array([(0, 0, 0), (220, 20, 60)]), instance=True
  )
  make_folders(out, ("train", "val"), classes)
  names = archive.names("PNGImages/", ".png")
  for name in told(names):
    split = "val" if names.index(name) % _FIFTH == _FIFTH - 1 else "train"
    file = name.rpartition("/")[2]
    mask = archive.image(f"PedMasks/{file.removesuffix('.png')}_mask.png")
    save_pair(out / split, file, archive.read(name), png(mask))


PENN_FUDAN = PublishedSet(
  title="Penn-Fudan: 170 street images, 345 pedestrians as objects",
  url="https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip",
  inside="PennFudanPed/",
  megabytes=54,
  license="none is stated by its authors; for research",
  cite="Wang, Shi, Song, Shen, ACCV 2007",
  recipe="mask_rcnn_dsb2018",
  convert=convert,
  note="every fifth image is val: it has no split of its own",
)
