"""Nuclei of the Data Science Bowl 2018, with corrected masks."""

import collections
import pathlib

import numpy as np

from jseg.data import ClassInfo
from jseg.datasets.base import (
  Archive,
  PublishedSet,
  by_md5,
  github,
  make_folders,
  png,
  save_pair,
  told,
)

_FOLDER = "stage1_train"
_MOST = 254  # nuclei that a mask of 8 bits tells apart
_FIFTH = 5  # of each kind, every fifth image is `val`
# Images of each kind: (width, height, gray) to how many.
_COUNTS = {
  (256, 256, True): 160,
  (320, 256, False): 60,
  (360, 360, True): 40,
  (696, 520, True): 40,
  (1024, 1024, True): 6,
  (640, 512, True): 8,
}


def convert(archive: Archive, out: pathlib.Path) -> None:
  """Writes a subset of all kinds, each nucleus an id in the mask of its image."""
  classes = ClassInfo(("background", "nucleus"), np.array([(0, 0, 0), (0, 200, 0)]), instance=True)
  make_folders(out, ("train", "val"), classes)
  masks = collections.defaultdict(list)
  for name in archive.names(f"{_FOLDER}/", ".png"):
    _, image, kind, _ = name.split("/")
    if kind == "masks":
      masks[image].append(name)
  kinds = collections.defaultdict(list)
  for image in by_md5(masks):
    if len(masks[image]) <= _MOST:
      kinds[_kind(_image(archive, image))].append(image)
  splits = {
    image: "val" if i % _FIFTH == _FIFTH - 1 else "train"
    for kind, count in _COUNTS.items()
    for i, image in enumerate(kinds[kind][:count])
  }
  for image in told(list(splits)):
    pixels = _image(archive, image)
    ids = np.zeros(pixels.shape[:2], np.uint8)
    for i, name in enumerate(masks[image], 1):
      ids[archive.image(name) > 0] = i
    shown = pixels[..., 0] if _kind(pixels)[2] else pixels
    save_pair(out / splits[image], f"{image}.png", png(shown), png(ids))


def _image(archive: Archive, image: str) -> np.ndarray:
  """The red, green and blue of an image; its alpha channel says nothing."""
  return archive.image(f"{_FOLDER}/{image}/images/{image}.png")[..., :3]


def _kind(pixels: np.ndarray) -> tuple[int, int, bool]:
  gray = bool((pixels == pixels[..., :1]).all())
  return pixels.shape[1], pixels.shape[0], gray


DSB2018 = PublishedSet(
  title="Data Science Bowl 2018: 314 images of nuclei of all kinds, 12,066 objects",
  **github(
    "lopuhin", "kaggle-dsbowl-2018-dataset-fixes", "30354551efef351c1241da7c6d48cf938d76f02a"
  ),
  megabytes=110,
  license="CC0, public domain",
  cite="Caicedo et al., Nature Methods 16, 2019 (BBBC038)",
  recipe="mask_rcnn_dsb2018",
  convert=convert,
  content="82e7d4cd968389f0eafddbe7918ff5194da9d064fb7bb821169aff2224bdf4c0",
  note="a subset of the 664 of stage1_train; train and val are of this project",
)
