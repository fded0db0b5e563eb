"""Pictures of objects: masks, boxes, names and scores over an image, and maps of instances."""

import colorsys
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jseg.console import one_line
from jseg.data import Objects
from jseg.data.files.instances import coco_masks
from jseg.metrics.average_precision import coco_annotations
from jseg.types import InputError

_CROWD = (150, 150, 150)
_MOST_IDS = 2**16 - 1
_SAME = 0.5  # IoU of masks from which on they are of one object, as for AP50


def draw_objects(
  image: np.ndarray,
  objects: Objects | None,
  names: Sequence[str],
  *,
  longest: int = 1024,
  least_score: float = 0.5,
  numbers: Sequence[int] | None = None,
) -> np.ndarray:
  """An image with the mask, the outline, the box, the name and the score of each object.

  Every object has a color of its own, crowds are gray. Names and scores are left out where they
  would hide what is small.

  Args:
    image: uint8 [h w 3] or [h w 1].
    objects: objects of the image, at its own size; None draws the image alone.
    names: names of the classes.
    longest: longest side of the picture in pixels, to which images are resized.
    least_score: score below which detected objects are not drawn.
    numbers: number of each object's color, of an endless row (`same_colors`); None: its place.

  Returns:
    uint8 [H W 3].
  """
  height, width = image.shape[:2]
  scale = longest / max(height, width)
  shape = max(1, round(width * scale)), max(1, round(height * scale))
  colors = np.broadcast_to(image, (height, width, 3)).astype(np.uint8, copy=False)
  method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
  canvas = np.array(Image.fromarray(colors).resize(shape, method))
  if objects is None:
    return canvas
  shown = np.arange(len(objects))
  if objects.scores is not None:
    shown = np.flatnonzero(objects.scores >= least_score)
  # The best and the smallest come last, on top.
  rank = -objects.areas if objects.scores is None else objects.scores
  order = shown[np.argsort(rank[shown], kind="stable")].tolist()
  numbers = range(len(objects)) if numbers is None else numbers
  inks = {i: _CROWD if objects.crowd[i] else _distinct(numbers[i]) for i in order}
  for i in order:
    _tint(canvas, objects.crop(i), objects.frames[i] * scale, inks[i])
  picture = Image.fromarray(canvas)
  pen = ImageDraw.Draw(picture)
  font = ImageFont.load_default(max(10, longest // 60))
  for i in order:
    y0, x0, y1, x1 = (float(edge) * scale for edge in objects.boxes[i])
    pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=inks[i])
  for i in order:
    _tag(pen, font, objects, i, names, scale, inks[i])
  return np.asarray(picture)


def same_colors(truth: Objects, found: Objects) -> list[int]:
  """Numbers of detected objects' colors, such that each has the color of the true one it covers.

  The best detection chooses first: of the true objects that are left, crowds aside, the one whose
  mask agrees most, from an IoU of .5 on. The class doesn't count; the name tells it. What covers
  none has a color that no true object has.

  Args:
    truth: true objects of an image.
    found: its detected objects, with scores.

  Returns:
    For each detected object a number, as `draw_objects` takes them.
  """
  masks = [[row["segmentation"] for row in coco_annotations(each)] for each in (found, truth)]
  ious = np.reshape(coco_masks().iou(*masks, [False] * len(truth)), (len(found), len(truth)))
  ious[:, truth.crowd] = 0
  numbers = list(range(len(truth), len(truth) + len(found)))
  scores = np.zeros(len(found)) if found.scores is None else found.scores
  for i in np.argsort(-scores, kind="stable").tolist():
    if ious[i].max(initial=0) >= _SAME:
      numbers[i] = int(ious[i].argmax())
      ious[:, numbers[i]] = 0
  return numbers


def _tint(
  canvas: np.ndarray, crop: np.ndarray, frame: np.ndarray, ink: tuple[int, int, int]
) -> None:
  """Colors a mask, and its outline more strongly, in place."""
  y0, x0, y1, x1 = np.rint(frame).astype(int).tolist()
  y1, x1 = max(y1, y0 + 1), max(x1, x0 + 1)
  if not crop.size:
    return
  mask = Image.fromarray(255 * crop.astype(np.uint8)).resize(
    (x1 - x0, y1 - y0), Image.Resampling.BILINEAR
  )
  part = canvas[y0:y1, x0:x1]
  share = np.asarray(mask, np.float32)[: part.shape[0], : part.shape[1], None] / 255
  solid = np.pad(share[..., 0] > 0.5, 1)
  inner = solid[:-2, 1:-1] & solid[2:, 1:-1] & solid[1:-1, :-2] & solid[1:-1, 2:]
  outline = solid[1:-1, 1:-1] & ~inner
  share = np.where(outline[..., None], 0.9, 0.45 * share)
  part[:] = (part * (1 - share) + np.array(ink) * share).round()


def _tag(
  pen: ImageDraw.ImageDraw,
  font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
  objects: Objects,
  i: int,
  names: Sequence[str],
  scale: float,
  ink: tuple[int, int, int],
) -> None:
  """Writes name and score at a box, or as much of them as is in proportion to it."""
  y0, x0, y1, x1 = (float(edge) * scale for edge in objects.boxes[i])
  name = one_line(names[int(objects.classes[i])]) + (" (crowd)" if objects.crowd[i] else "")
  score = "" if objects.scores is None else f"{100 * objects.scores[i]:.0f}"
  for text in (f"{name} {score}".strip(), score):
    left, top, right, bottom = pen.textbbox((0, 0), text, font)
    width, height = right - left + 4, bottom - top + 4
    if text and width < 1.4 * (x1 - x0) and 2.2 * height < y1 - y0:
      x0 = min(max(x0, 0), max(pen.im.size[0] - width, 0))
      y0 = y0 - height if y0 >= height else y0  # above the box, or at its top
      light = sum(ink) > 380
      pen.rectangle((x0, y0, x0 + width, y0 + height), ink)
      pen.text((x0 + 2 - left, y0 + 2 - top), text, (0, 0, 0) if light else (255,) * 3, font)
      return


def _distinct(i: int) -> tuple[int, int, int]:
  """Color i of an endless row, neighbors far apart."""
  # Steps of the golden ratio never come near one another; three levels help where hues meet.
  hue, level = i * 0.618034 % 1, (1.0, 0.78, 0.9)[i % 3]
  r, g, b = colorsys.hsv_to_rgb(hue, 0.85, level)
  return round(255 * r), round(255 * g), round(255 * b)


def save_instance_map(objects: Objects, path: pathlib.Path) -> None:
  """Writes a PNG of 16 bits: pixels hold the number of their object, from 1; 0 is none.

  Where found objects overlap, the one of the higher score is in front; of true ones the smaller.

  Raises:
    InputError: there are more objects than 16 bits can number.
  """
  if len(objects) > _MOST_IDS:
    raise InputError(
      f"{path.name}: {len(objects):,} objects were found, and a PNG of 16 bits numbers "
      f"{_MOST_IDS:,}; raise model.min_score, or write no mask (--write overlay): detections.json "
      "has them all"
    )
  ids = np.zeros(objects.size, np.uint16)
  rank = -objects.areas if objects.scores is None else objects.scores
  for i in np.argsort(rank, kind="stable").tolist():
    y0, x0, y1, x1 = objects.frames[i].tolist()
    ids[y0:y1, x0:x1][objects.crop(i)] = i + 1
  Image.fromarray(ids).save(path)
