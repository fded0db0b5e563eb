"""Objects of an image: boxes, classes and one mask each, from annotation to padded targets.

Boxes are (y0 x0 y1 x1) in pixels, between the edges of pixels: a mask that covers the whole of an
image h x w has the box (0, 0, h, w).
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np

from jseg.types import Batch, InputError

Size = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Objects:
  """The objects of one image at its own size, true ones or found ones.

  Attributes:
    size: (height, width) of the image.
    boxes: float32 [n 4], as annotated or found.
    frames: int32 [n 4], what `masks` cover, within the image; of true objects their tight boxes.
    masks: n packed masks, see `crop`.
    classes: int32 [n], 1 to k - 1.
    crowd: bool [n], whether it is a region of many objects, which is neither found nor missed.
    areas: float32 [n], in pixels, as annotated; COCO sorts objects into small and large by them.
    scores: float32 [n] of found objects, else None.
  """

  size: Size
  boxes: np.ndarray
  frames: np.ndarray
  masks: list[bytes]
  classes: np.ndarray
  crowd: np.ndarray
  areas: np.ndarray
  scores: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.masks)

  def crop(self, i: int) -> np.ndarray:
    """Mask of object i within its frame: bool [h w]."""
    y0, x0, y1, x1 = self.frames[i].tolist()
    bits = np.frombuffer(zlib.decompress(self.masks[i]), np.uint8)
    count = (y1 - y0) * (x1 - x0)
    return np.unpackbits(bits, count=count).reshape(y1 - y0, x1 - x0).astype(bool)

  def mask(self, i: int) -> np.ndarray:
    """Mask of object i in the whole image: bool [H W]."""
    mask = np.zeros(self.size, bool)
    y0, x0, y1, x1 = self.frames[i].tolist()
    mask[y0:y1, x0:x1] = self.crop(i)
    return mask


@dataclasses.dataclass(frozen=True)
class Annotation:
  """One true object, before it is joined with the others of its image.

  Attributes:
    mask: bool [h w] within `corner`: of the whole image, or a part of it.
    category: its class, 1 to k - 1.
    crowd: see `Objects`.
    corner: row and column of the image where the mask begins.
    box: as annotated; None is the tight box of the mask.
    area: as annotated; None is that of the mask.
  """

  mask: np.ndarray
  category: int
  crowd: bool = False
  corner: tuple[int, int] = (0, 0)
  box: tuple[float, float, float, float] | None = None
  area: float | None = None


def join(size: Size, annotations: Iterable[Annotation]) -> Objects:
  """The objects of an image; those whose mask is empty are left out."""
  rows = []
  for each in annotations:
    down, across = np.flatnonzero(each.mask.any(1)), np.flatnonzero(each.mask.any(0))
    if not len(down):
      continue
    y0, x0, y1, x1 = int(down[0]), int(across[0]), int(down[-1]) + 1, int(across[-1]) + 1
    crop = each.mask[y0:y1, x0:x1]
    top, left = each.corner
    frame = (y0 + top, x0 + left, y1 + top, x1 + left)
    area = float(crop.sum()) if each.area is None else each.area
    rows.append((each.box or frame, frame, pack(crop), each.category, each.crowd, area))
  boxes, frames, masks, classes, crowd, areas = zip(*rows, strict=True) if rows else ((),) * 6
  return Objects(
    size,
    np.array(boxes, np.float32).reshape(-1, 4),
    np.array(frames, np.int32).reshape(-1, 4),
    list(masks),
    np.array(classes, np.int32),
    np.array(crowd, bool),
    np.array(areas, np.float32),
  )


def pack(crop: np.ndarray) -> bytes:
  """A bool mask [h w] in few bytes, losslessly; `Objects.crop` unpacks it."""
  return zlib.compress(np.packbits(crop).tobytes(), 1)


def objects_from_ids(
  ids: np.ndarray, category: Callable[[int], int], void: np.ndarray | None = None
) -> Objects:
  """The objects of a map of instance ids.

  Args:
    ids: int [h w]; 0 is none.
    category: from an id to its class.
    void: bool [h w], what becomes a crowd of class 1.
  """
  y, x = np.nonzero(ids)
  order = np.argsort(ids[y, x], kind="stable")
  y, x = y[order], x[order]
  numbers, starts = np.unique(ids[y, x], return_index=True)
  annotations = []
  parts = zip(numbers.tolist(), np.split(y, starts[1:]), np.split(x, starts[1:]), strict=True)
  for number, rows, columns in parts if len(numbers) else ():
    top, left = int(rows[0]), int(columns.min())
    mask = np.zeros((rows[-1] - top + 1, columns.max() - left + 1), bool)
    mask[rows - top, columns - left] = True
    annotations.append(Annotation(mask, category(number), corner=(top, left)))
  if void is not None:
    annotations.append(Annotation(void, 1, crowd=True))
  return join(ids.shape, annotations)


def coverage(crop: np.ndarray, cells: int) -> np.ndarray:
  """How much of each cell of a grid over a mask is covered.

  Args:
    crop: bool [h w].
    cells: m, along either side.

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
  """What a network is trained on, for an image that was resized.

  Args:
    objects: of the image at its own size.
    covered: height and width of the image after resizing.
    slots: n. Of more objects than that, the largest are kept.
    cells: m.

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


def paste(
  probabilities: np.ndarray, box: np.ndarray, size: Size, threshold: float = 0.5
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
  """Puts a mask of small resolution back into its image: the inverse of `coverage`.

  Probabilities belong to the middles of the box's cells; between them they are interpolated, and
  beyond the outermost ones they fall to 0 a cell further out, as in Detectron2's
  `paste_masks_in_image`. (torchvision's rounds the box to whole pixels first, which moves edges by
  up to one.) Only the part of the image inside the box is ever computed.

  Args:
    probabilities: float [m m].
    box: float [4].
    size: height and width of the image.
    threshold: pixels with more than this are the object.

  Returns:
    (bool [h w], its frame (y0, x0, y1, x1) within the image).
  """
  axes = []
  for start, end, length, cells in zip(box[:2], box[2:], size, probabilities.shape, strict=True):
    # Pixels whose middle lies in the box; further out no probability above a half is left.
    first = int(np.clip(np.ceil(start - 0.5), 0, length))
    last = int(np.clip(np.floor(end - 0.5) + 1, first, length))
    middles = np.arange(first, last) + 0.5
    at = (middles - start) / max(end - start, 1e-6) * cells - 0.5
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))
    axes.append((first, last, weight))
  (y0, y1, rows), (x0, x1, columns) = axes
  return rows @ probabilities @ columns.T > threshold, (y0, x0, y1, x1)


def found_objects(detections: Any, covered: Size, size: Size, threshold: float = 0.5) -> Objects:
  """Brings the detections in one image back to its own size.

  Args:
    detections: `jseg.types.Detections` of one image, without the axis b, as arrays of NumPy.
    covered: height and width of the image as the network saw it.
    size: its own.
    threshold: see `paste`.

  Raises:
    InputError: the network has no mask head.
  """
  if detections.masks is None:
    raise InputError(
      "this network finds no masks; what it finds is for Python: jseg.weights.load, and "
      "jseg.data.find_keypoints on what the model returns"
    )
  valid = np.asarray(detections.valid)
  scale = np.tile(np.array(size, np.float32) / np.array(covered, np.float32), 2)
  boxes = np.asarray(detections.boxes, np.float32)[valid] * scale
  boxes = np.clip(boxes, 0, np.tile(np.array(size, np.float32), 2))
  frames, masks, areas = [], [], []
  for box, probabilities in zip(boxes, np.asarray(detections.masks)[valid], strict=True):
    crop, frame = paste(probabilities, box, size, threshold)
    frames.append(frame)
    masks.append(pack(crop))
    areas.append(crop.sum())
  return Objects(
    size,
    boxes,
    np.array(frames, np.int32).reshape(-1, 4),
    masks,
    np.asarray(detections.classes, np.int32)[valid],
    np.zeros(len(masks), bool),
    np.array(areas, np.float32),
    np.asarray(detections.scores, np.float32)[valid],
  )


def find_keypoints(heatmaps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Where the keypoints of objects are: the best pixel of each map, enlarged to its box.

  Equal to torchvision's `heatmaps_to_keypoints`: cubic interpolation to whole pixels.

  Args:
    heatmaps: float [n s s q], logits as in `jseg.types.Detections`.
    boxes: float [n 4].

  Returns:
    float32 [n q 3]: row and column in pixels, and the logit there.
  """
  points = np.zeros((len(boxes), heatmaps.shape[-1], 3), np.float32)
  each = np.arange(heatmaps.shape[-1])
  for point, heatmap, box in zip(points, np.asarray(heatmaps), np.asarray(boxes), strict=True):
    length = np.maximum(box[2:] - box[:2], 1)
    height, width = np.ceil(length).astype(int).tolist()
    logits = cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_CUBIC)
    logits = logits.reshape(height, width, -1)
    y, x = np.divmod(logits.reshape(-1, len(each)).argmax(0), width)
    at = np.stack([y, x], 1) + 0.5
    point[:, :2] = box[:2] + at * (length / (height, width))
    point[:, 2] = logits[y, x, each]
  return points


def coco_masks() -> Any:
  """The module `pycocotools.mask`. Raises InputError that says how to install it."""
  try:
    from pycocotools import mask
  except ImportError as error:
    raise InputError(
      f'COCO\'s masks and measures need pycocotools ({error}): pip install "jaxseg[instance]"'
    ) from error
  return mask


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
  """COCO's run-length code of a bool mask [h w]: {"size": [h, w], "counts": bytes}."""
  return coco_masks().encode(np.asfortranarray(mask, np.uint8))
