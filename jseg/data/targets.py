"""Training targets of objects: their masks on a small grid, padded to a number of slots."""

import functools

import numpy as np

from jseg.data.files.instances import Objects, Size
from jseg.types import Batch


def coverage(crop: np.ndarray, cells: int) -> np.ndarray:
  """Computes how much of each cell of a grid over a mask is covered.

  Args:
    crop: bool [h w].
    cells: m, the number of cells along either side.

  Returns:
    uint8 [m m], 0 to 255, rounded; but above 0 wherever anything is covered, so that the outermost
    cells tell where a tight mask ends.
  """
  rows, columns = (_area_matrix(n, cells) for n in crop.shape)
  share = rows @ crop.astype(np.float32) @ columns.T
  touched = share > 1e-7
  return np.maximum(np.rint(255 * share), touched).astype(np.uint8)


@functools.lru_cache(4096)
def _area_matrix(pixels: int, cells: int) -> np.ndarray:
  """Share of cell i that pixel j makes up, along one axis: float32 [m n], rows sum to 1."""
  edges = np.arange(cells + 1) * (pixels / cells)
  start = np.maximum(edges[:-1, None], np.arange(pixels))
  end = np.minimum(edges[1:, None], np.arange(1, pixels + 1))
  return (np.maximum(end - start, 0) * (cells / pixels)).astype(np.float32)


def make_targets(objects: Objects, covered: Size, slots: int, cells: int) -> Batch:
  """Makes the training targets of an image that was resized.

  Args:
    objects: objects of the image at its own size.
    covered: height and width of the image after resizing.
    slots: n, the number of slots; of more objects than that, the largest are kept.
    cells: m, the number of cells along either side of a mask.

  Returns:
    The fields of `jseg.types.Targets` by name, for one image; boxes are those of the masks.
  """
  kept = np.sort(np.argsort(-objects.areas, kind="stable")[:slots])
  count = len(kept)
  scale = np.array(covered, np.float32) / np.array(objects.size, np.float32)
  frames = np.zeros((slots, 4), np.float32)
  frames[:count] = objects.frames[kept] * np.tile(scale, 2)
  masks = np.zeros((slots, cells, cells), np.uint8)
  for slot, i in enumerate(kept.tolist()):
    masks[slot] = coverage(objects.crop(i), cells)
  classes, crowd = np.zeros(slots, np.int32), np.zeros(slots, bool)
  classes[:count], crowd[:count] = objects.classes[kept], objects.crowd[kept]
  return {
    "boxes": frames.copy(),
    "frames": frames,
    "masks": masks,
    "classes": classes,
    "valid": np.arange(slots) < count,
    "crowd": crowd,
  }
