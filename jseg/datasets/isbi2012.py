"""ISBI 2012: membranes in electron microscopy, U-Net's data."""

import pathlib

import numpy as np

from jseg.data import ClassInfo
from jseg.datasets.base import Archive, PublishedSet, github, make_folders, png, save_pair, told

_SLICES = 30
_TRAIN = 24  # the others, which follow them in the tissue, are `val`


def convert(archive: Archive, out: pathlib.Path) -> None:
  """Writes slices in their order; the challenge's own test slices have no public labels."""
  classes = ClassInfo(("membrane", "cell"), np.array([(0, 0, 0), (255, 255, 255)]))
  make_folders(out, ("train", "val"), classes)
  for number in told([str(i) for i in range(_SLICES)]):
    split = "train" if int(number) < _TRAIN else "val"
    name = f"slice_{int(number):02}.png"
    image = archive.read(f"data/membrane/train/image/{number}.png")
    mask = archive.image(f"data/membrane/train/label/{number}.png")
    save_pair(out / split, name, image, png(mask == 255))


ISBI2012 = PublishedSet(
  title="ISBI 2012: 30 slices of electron microscopy of 512 x 512, membranes and cells",
  **github("zhixuhao", "unet", "b45af4d458437d8281cc218a07fd4380818ece4a"),
  megabytes=55,
  license="data of a challenge, for research; its copy's repository is MIT for the code",
  cite="Arganda-Carreras et al., Frontiers in Neuroanatomy 9, 2015; Cardona et al., PLoS Biology "
  "8(10), 2010",
  recipe="unet_isbi2012",
  convert=convert,
  content="ae19dc208485f1e31fdc40c81282f1ea2c32495726e7a3610c88e352ec015e87",
  note="slices 0 to 23 are train, 24 to 29 val: the challenge has no split of its own",
)
