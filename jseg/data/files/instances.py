"""Objects of an image as they are annotated and stored: boxes, classes and one mask each.

Boxes are (y0 x0 y1 x1) in pixels, between the edges of pixels: a mask that covers the whole of an
image h x w has the box (0, 0, h, w).
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

import numpy as np

from jseg.install import install_line
from jseg.types import InputError, Json

Size = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Objects:
  """The objects of one image at its own size, annotated or detected.

  Attributes:
    size: (height, width) of the image.
    boxes: float32 [n 4], as annotated or detected.
    frames: int32 [n 4], the boxes that `masks` cover, within the image; of annotated objects, those
      that are tight.
    masks: n packed masks, see `crop`.
    classes: int32 [n], 1 to k - 1.
    crowd: bool [n], whether it is a region of many objects, which is neither found nor missed.
    areas: float32 [n], in pixels, as annotated; COCO sorts objects into small and large by them.
    scores: float32 [n], confidences of detected objects; None for annotated ones.
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
  """One annotated object.

  Attributes:
    mask: bool [h w] within `corner`: of the whole image, or a part of it.
    category: class of the object, 1 to k - 1.
    crowd: whether it is a region of many objects; see `Objects`.
    corner: row and column of the image where the mask begins.
    box: annotated box (y0 x0 y1 x1); None is the tight box of the mask.
    area: annotated area in pixels; None is that of the mask.
  """

  mask: np.ndarray
  category: int
  crowd: bool = False
  corner: tuple[int, int] = (0, 0)
  box: tuple[float, float, float, float] | None = None
  area: float | None = None


def make_objects(size: Size, annotations: Iterable[Annotation]) -> Objects:
  """Packs the annotations of an image; those whose mask is empty are left out."""
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
    size=size,
    boxes=np.array(boxes, np.float32).reshape(-1, 4),
    frames=np.array(frames, np.int32).reshape(-1, 4),
    masks=list(masks),
    classes=np.array(classes, np.int32),
    crowd=np.array(crowd, bool),
    areas=np.array(areas, np.float32),
  )


def pack(crop: np.ndarray) -> bytes:
  """Packs a bool mask [h w] losslessly; `Objects.crop` unpacks it."""
  return zlib.compress(np.packbits(crop).tobytes(), 1)


def objects_from_ids(
  ids: np.ndarray, category: Callable[[int], int], void: np.ndarray | None = None
) -> Objects:
  """Makes the objects of a map of instance ids.

  Args:
    ids: int [h w], instance ids; 0 is no object.
    category: function from an id to its class.
    void: bool [h w], pixels that become a crowd of class 1.
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
  return make_objects(ids.shape, annotations)


def coco_masks() -> ModuleType:
  """Imports `pycocotools.mask`. Raises InputError that says how to install it."""
  try:
    from pycocotools import mask
  except ImportError as error:
    raise InputError(
      f"COCO's masks and metrics need pycocotools ({error}): {install_line('instance')}"
    ) from error
  return mask


def encode_rle(crop: np.ndarray, corner: Sequence[int] = (0, 0), size: Size = ()) -> Json:
  """Encodes a mask as COCO's run-length code: {"size": [H, W], "counts": bytes}.

  Only the crop is looked at, so that the objects of a large image cost what they cover.

  Args:
    crop: bool [h w].
    corner: row and column of the image where the crop begins.
    size: (H, W) of the image; () is that of the crop.
  """
  height, width = size or crop.shape
  # Down the columns, the pixels before which the mask begins or ends; both at once where it goes on
  # from the foot of a column to the head of the next.
  column, row = np.nonzero(np.diff(np.pad(crop.T, ((0, 0), (1, 1))), axis=1))
  place, times = np.unique((column + corner[1]) * height + row + corner[0], return_counts=True)
  ends = place[(times == 1) & (place < height * width)]
  runs = np.diff(ends, prepend=0, append=height * width).tolist()
  return coco_masks().frPyObjects({"size": [height, width], "counts": runs}, height, width)
