"""Pascal VOC 2012: as it is published, and the small subset that the CPU recipes train on."""

import pathlib

from jseg.data.class_lists import VOC
from jseg.datasets.base import Archive, PublishedSet, by_md5, make_folders, save_pair, told

_INSIDE = "VOCdevkit/VOC2012/"
_TRAIN, _VAL = 250, 100


def convert(archive: Archive, out: pathlib.Path) -> None:
  """Writes VOCdevkit/VOC2012: what its segmentation needs, with all images, for other masks."""
  wanted = ("ImageSets/Segmentation/", "JPEGImages/", "SegmentationClass/", "SegmentationObject/")
  for name in told([name for folder in wanted for name in archive.names(folder, "")]):
    if name.endswith("/"):
      continue
    path = out / _INSIDE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive.read(name))


def convert_subset(archive: Archive, out: pathlib.Path) -> None:
  """Writes 350 images of the official val list, byte for byte, as a folder data set."""
  make_folders(out, ("train", "val"), VOC)
  ids = by_md5(archive.read("ImageSets/Segmentation/val.txt").decode().split())[: _TRAIN + _VAL]
  for image in told(ids):
    folder = out / ("train" if image in ids[:_TRAIN] else "val")
    photo = archive.read(f"JPEGImages/{image}.jpg")
    mask = archive.read(f"SegmentationClass/{image}.png")
    save_pair(folder, f"{image}.jpg", photo, mask, f"{image}.png")


_ARCHIVE = {
  "url": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
  "inside": _INSIDE,
  "sha256": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
  "license": "images are Flickr's, under its terms of use; annotations are for research",
  "cite": "Everingham et al., IJCV 111(1), 2015",
}
VOC2012 = PublishedSet(
  title="Pascal VOC 2012: 2,913 images with masks of 20 classes and objects, official lists",
  megabytes=2000,
  recipe="paper/deeplab_v3:phase1",
  convert=convert,
  note="SegmentationClassAug isn't part of it; put that folder beside SegmentationClass",
  **_ARCHIVE,
)
VOC2012_SUBSET = PublishedSet(
  title="Pascal VOC 2012: 250 + 100 images of the official val list, for small experiments",
  megabytes=2000,
  recipe="fcn8s_voc",
  convert=convert_subset,
  note="never compare a score on it with VOC's: both parts come from the official val list",
  **_ARCHIVE,
)
