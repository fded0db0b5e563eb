"""Anchors: the boxes that proposals start from (Ren et al. 2015, arXiv:1506.01497, section 3.1)."""

from collections.abc import Sequence

import numpy as np


def anchors(
  size: Sequence[int],
  grids: Sequence[Sequence[int]],
  sizes: Sequence[Sequence[float]],
  ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> list[np.ndarray]:
  """Anchors of each level, as torchvision's AnchorGenerator makes them.

  Args:
    size: (height, width) of the canvas in pixels.
    grids: (h, w) of each level's feature map.
    sizes: of each level: square roots of the anchors' areas, in pixels.
    ratios: height over width, at every level.

  Returns:
    float32 [h w a 4] for each level, a being ratios times sizes. They are centred on the upper left
    corners of cells, their edges are whole pixels, and cells lie size // grid apart.
  """
  made = []
  for grid, edges in zip(grids, sizes, strict=True):
    tall = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    edge = np.asarray(edges, np.float32)[None]
    half = np.stack([(tall * edge).ravel(), ((1 / tall) * edge).ravel()], -1) / 2
    cell = np.round(np.concatenate([-half, half], -1))
    y, x = (np.arange(n) * (whole // n) for n, whole in zip(grid, size, strict=True))
    corner = np.stack(np.meshgrid(y, x, indexing="ij"), -1)
    made.append((np.tile(corner, 2)[:, :, None] + cell).astype(np.float32))
  return made
