"""Masks of objects, and how much two of them overlap."""

import numpy as np


def disc(size, center, radius):
  y, x = np.ogrid[: size[0], : size[1]]
  return (y + 0.5 - center[0]) ** 2 + (x + 0.5 - center[1]) ** 2 < radius**2


def iou(a, b):
  return (a & b).sum() / max((a | b).sum(), 1)
