"""Classes of published data sets that both their files and published weights speak of."""

import numpy as np

from jseg.data.files.classes import ClassInfo

VOC = ClassInfo(
  names=(
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
  ),
  ignore_color=(224, 224, 192),
)

CITYSCAPES = ClassInfo(
  names=(
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
  ),
  palette=np.array(
    [
      (128, 64, 128),
      (244, 35, 232),
      (70, 70, 70),
      (102, 102, 156),
      (190, 153, 153),
      (153, 153, 153),
      (250, 170, 30),
      (220, 220, 0),
      (107, 142, 35),
      (152, 251, 152),
      (70, 130, 180),
      (220, 20, 60),
      (255, 0, 0),
      (0, 0, 142),
      (0, 0, 70),
      (0, 60, 100),
      (0, 80, 100),
      (0, 0, 230),
      (119, 11, 32),
    ]
  ),
  # labelIds of the 19 evaluated classes, cityscapesScripts `helpers/labels.py`.
  mask_values=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
)
