"""From the detections of a network back to an image: masks at its own size, and keypoints."""

import cv2
import numpy as np

from jseg.data.files.instances import Objects, Size, pack
from jseg.types import Detections, InputError


def paste(
  probabilities: np.ndarray, box: np.ndarray, size: Size, threshold: float = 0.5
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
  """Puts a mask of small resolution back into its image: the inverse of `coverage`.

  Args:
    probabilities: float [m m].
    box: float [4].
    size: height and width of the image.
    threshold: pixels with more than this probability belong to the object.

  Returns:
    (bool [h w], its frame (y0, x0, y1, x1) within the image).
  """
  enlarged, frame = paste_probabilities(probabilities, box, size)
  return enlarged > threshold, frame


def paste_probabilities(
  probabilities: np.ndarray, box: np.ndarray, size: Size
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
  """Enlarges a mask of small resolution to its box in an image.

  Probabilities belong to the middles of the box's cells; between them they are interpolated, and
  beyond the outermost ones they fall to 0 a cell further out, as in Detectron2's
  `paste_masks_in_image`. (torchvision's rounds the box to whole pixels first, which moves edges by
  up to one.) Only the part of the image inside the box is ever computed.

  Args:
    probabilities: float [m m].
    box: float [4].
    size: height and width of the image.

  Returns:
    (float [h w], its frame (y0, x0, y1, x1) within the image).
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
  return rows @ probabilities @ columns.T, (y0, x0, y1, x1)


def objects_from_detections(
  detections: Detections, covered: Size, size: Size, threshold: float = 0.5
) -> Objects:
  """Brings the detections in one image back to its own size.

  Args:
    detections: the detections in one image: without the axis b, as NumPy arrays.
    covered: height and width of the image as the network saw it.
    size: height and width of the image itself.
    threshold: pixels with more than this probability belong to the object.

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
    size=size,
    boxes=boxes,
    frames=np.array(frames, np.int32).reshape(-1, 4),
    masks=masks,
    classes=np.asarray(detections.classes, np.int32)[valid],
    crowd=np.zeros(len(masks), bool),
    areas=np.array(areas, np.float32),
    scores=np.asarray(detections.scores, np.float32)[valid],
  )


def find_keypoints(heatmaps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Finds the keypoints of objects: the best pixel of each map, enlarged to its box.

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
