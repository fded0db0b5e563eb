"""Anchors: the boxes that proposals start from (Ren et al. 2015, arXiv:1506.01497, section 3.1)."""

from collections.abc import Sequence

import numpy as np


def make_anchors(
  canvas: Sequence[int],
  grids: Sequence[Sequence[int]],
  sizes: Sequence[Sequence[float]],
  ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> list[np.ndarray]:
  """Anchors of each level, as torchvision's AnchorGenerator makes them.

  Args:
    canvas: (height, width) of the input in pixels.
    grids: (h, w) of each level's feature map.
    sizes: square roots of the anchors' areas in pixels, one or more per level.
    ratios: height over width of the anchors, the same at every level.

  Returns:
    float32 [h*w*a 4] for each level, a being the number of ratios times that of sizes. Anchors are
    centered on the upper left corners of cells, their edges are whole pixels, and cells lie
    canvas // grid pixels apart.
  """
  anchors = []
  for grid, edges in zip(grids, sizes, strict=True):
    tall = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    edge = np.asarray(edges, np.float32)[None]
    half = np.stack([(tall * edge).ravel(), ((1 / tall) * edge).ravel()], -1) / 2
    cell = np.round(np.concatenate([-half, half], -1))
    y, x = (np.arange(n) * (pixels // n) for n, pixels in zip(grid, canvas, strict=True))
    corner = np.stack(np.meshgrid(y, x, indexing="ij"), -1)
    boxes = np.tile(corner, 2)[:, :, None] + cell
    anchors.append(boxes.reshape(-1, 4).astype(np.float32))
  return anchors
