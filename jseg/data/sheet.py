"""A page of a data set's images with their masks laid over them, over a legend of classes."""

import os
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jseg.arithmetic import cdiv, evenly_spaced
from jseg.console import one_line
from jseg.data.files import attempt
from jseg.data.files.classes import ClassInfo, voc_colormap
from jseg.data.files.images import decode_image, decode_raw
from jseg.data.files.nifti import flatten_volume
from jseg.data.files.rows import StoredImage, every_nth
from jseg.data.files.scientific import decode_array
from jseg.data.sources import recognize
from jseg.data.sources.base import Example, Item, Source
from jseg.images import picture
from jseg.types import IGNORE, Arguments

_TILES = 16
_TILE, _CAPTION, _GAP = 256, 20, 8  # pixels
_MOST_READ = 2048  # rows and columns of a large TIFF
_INK, _PAPER = (40, 42, 54), (250, 250, 248)


def contact_sheet(
  root: str | os.PathLike[str], path: str | os.PathLike[str], options: Arguments | None = None
) -> bool:
  """Writes a PNG of up to 16 images with their masks laid over them, and a legend.

  Void is hatched. Images that cannot be read are left out. A volume shows its middle slice. Each
  object has a color of its own, and there is no legend then. Scientific images show their first
  three channels, of fewer than three the first, each stretched.

  Args:
    root: a folder, as for `check_folder`.
    path: the PNG to write.
    options: as for `check_folder`.

  Returns:
    Whether there was anything to show, and so to write.
  """
  source = recognize(root, options)
  tiles = []
  for split, item in _some_items(source, _TILES):
    example, _ = attempt(item.load)
    if example is not None:
      image, label = _picture(example)
      palette = voc_colormap(IGNORE) if source.has_objects else source.classes.label_palette
      tiles.append(_tile(image, label, palette, one_line(f"{split}/{item.name}")))
  if tiles:
    _compose(tiles, None if source.has_objects else source.classes).save(path)
  return bool(tiles)


def _some_items(source: Source, count: int) -> Sequence[tuple[str, Item]]:
  """Up to `count` items with their splits, evenly over all splits."""
  everything = [(split, item) for split, items in source.splits.items() for item in items]
  return [everything[i] for i in evenly_spaced(count, len(everything))]


def _picture(example: Example) -> tuple[np.ndarray, ...]:
  """Image uint8 [h w c] and label [h w]."""
  image, label, objects = example.image, example.label, example.objects
  if isinstance(image, StoredImage) and isinstance(label, np.ndarray):
    step = cdiv(max(label.shape), _MOST_READ)
    small = every_nth(image, step)
    shown = small if example.values is None else picture(small.astype(np.float32))
    return shown, every_nth(label, step)
  decode = decode_image if example.values is None else _stretched
  if isinstance(image, bytes) and objects is not None:
    painted = np.zeros(example.size, np.uint8)
    for i in np.argsort(-objects.areas, kind="stable").tolist():
      painted[objects.mask(i)] = IGNORE if objects.crowd[i] else 1 + i % (IGNORE - 1)
    return decode(image), painted
  if isinstance(image, bytes) and isinstance(label, bytes):
    return decode(image), decode_raw(label)
  return flatten_volume(np.asarray(image), np.asarray(label))


def _stretched(data: bytes) -> np.ndarray:
  """A scientific image as a picture: uint8 [h w 3] or [h w 1]."""
  return picture(decode_array(data).astype(np.float32))


def _tile(image: np.ndarray, label: np.ndarray, colors: np.ndarray, caption: str) -> Image.Image:
  """An image with its mask laid over it, borders drawn, scaled to fit a square."""
  scale = _TILE / max(label.shape)
  size = max(1, round(label.shape[1] * scale)), max(1, round(label.shape[0] * scale))
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  image = cv2.resize(image, size, interpolation=method).reshape(size[1], size[0], -1)
  label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
  palette = np.zeros((256, 3), np.float32)
  palette[: len(colors)] = colors
  color, void = palette[label], label == IGNORE
  diagonal = np.add.outer(np.arange(label.shape[0]), np.arange(label.shape[1]))
  color[void] = np.where(diagonal[void] // 4 % 2, 255.0, 90.0)[:, None]
  # Black classes are background by custom: tinting them would only darken the picture.
  strength = np.where(color.max(-1, keepdims=True) == 0, 0.1, 0.5)
  mixed = image * (1 - strength) + color * strength
  border = np.zeros_like(void)
  border[:, 1:] = label[:, 1:] != label[:, :-1]
  border[1:] |= label[1:] != label[:-1]
  mixed[border] = 255
  tile = Image.new("RGB", (_TILE, size[1] + _CAPTION), _PAPER)
  tile.paste(Image.fromarray(mixed.astype(np.uint8)), ((_TILE - size[0]) // 2, 0))
  draw, font = ImageDraw.Draw(tile), ImageFont.load_default(12)
  while draw.textlength(caption, font) > _TILE:
    caption = caption[:-4] + "..." if caption.endswith("...") else caption[:-3] + "..."
  draw.text((_TILE / 2, size[1] + 3), caption, _INK, font, anchor="ma")
  return tile


def _compose(tiles: list[Image.Image], classes: ClassInfo | None) -> Image.Image:
  """A grid of tiles, over a legend of classes."""
  columns = min(4, max(1, len(tiles)))
  rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
  width = columns * (_TILE + _GAP) + _GAP
  legend = _legend(classes, width - 2 * _GAP) if classes else Image.new("RGB", (1, 1), _PAPER)
  heights = [max(tile.height for tile in row) for row in rows]
  height = sum(heights) + (len(rows) + 2) * _GAP + legend.height
  sheet = Image.new("RGB", (width, height), _PAPER)
  y = _GAP
  for row, row_height in zip(rows, heights, strict=True):
    for i, tile in enumerate(row):
      sheet.paste(tile, (_GAP + i * (_TILE + _GAP), y + row_height - tile.height))
    y += row_height + _GAP
  sheet.paste(legend, (_GAP, y))
  return sheet


def _legend(classes: ClassInfo, width: int) -> Image.Image:
  """Color, number and name of each class, flowing over lines."""
  font, line = ImageFont.load_default(13), 22
  canvas = Image.new("RGB", (width, line * (len(classes.names) + 2)), _PAPER)
  draw = ImageDraw.Draw(canvas)
  x, y = 0.0, 0
  colors = [*map(tuple, classes.palette.tolist()), None]
  entries = zip([*classes.names, "void"], colors, strict=True)
  for i, (name, color) in enumerate(entries):
    text = one_line(f"{i} {name}" if color else name)
    needed = 34 + draw.textlength(text, font)
    if x and x + needed > width:
      x, y = 0, y + line
    draw.rectangle((x, y + 3, x + 14, y + 17), color, _INK)
    if color is None:
      for d in range(-14, 15, 6):
        draw.line(
          (max(x, x + d), y + 3 + max(0, -d), min(x + 14, x + 14 + d), y + 17 - max(0, d)), _INK
        )
    draw.text((x + 19, y + 2), text, _INK, font)
    x += needed
  return canvas.crop((0, 0, width, y + line))
