"""`jseg check-data`: everything that is wrong with a data folder, and what it looks like.

Reads through the same functions as preparation, so that what passes here can be prepared.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console, Group, RenderableType
from rich.progress import track
from rich.table import Table
from rich.text import Text

from jseg.data.classes import ClassInfo, voc_colormap
from jseg.data.coco import CocoItem, coco_source, holds_coco
from jseg.data.files import FileError
from jseg.data.folder import folder_source, holds_volumes
from jseg.data.images import decode_image, decode_raw
from jseg.data.layouts import voc_source
from jseg.data.masks import check_binary
from jseg.data.source import Example, Pair, Source
from jseg.data.volumes import VolumePair, flatten_volume, volumes_source
from jseg.types import IGNORE

_MOST_PROBLEMS = 20  # shown of each kind


@dataclasses.dataclass
class SplitReport:
  """What a split holds.

  Attributes:
    count: pairs of image and mask.
    sizes: how many images of each (height, width), or (depth, height, width).
    pixels: int64 [256], pixels of each train id; pixels[IGNORE] is void.
    images_with: int64 [256], in how many masks each train id occurs.
    objects: int64 [k], how many objects of each class there are; of sets of objects.
    images_with_objects: int64 [k], in how many images.
    most: objects in one image.
  """

  count: int
  sizes: collections.Counter[tuple[int, ...]] = dataclasses.field(
    default_factory=collections.Counter
  )
  pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
  images_with: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
  objects: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  images_with_objects: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  most: int = 0


@dataclasses.dataclass
class Report:
  """Result of `check_folder`.

  Attributes:
    root: the folder.
    classes: its classes.
    splits: what each split holds.
    problems: all that must be mended before training.
    notes: what training will do without.
  """

  root: Path
  classes: ClassInfo
  splits: dict[str, SplitReport]
  problems: list[FileError]
  notes: list[FileError] = dataclasses.field(default_factory=list)

  @property
  def ok(self) -> bool:
    """Nothing is wrong: `load` will prepare this folder."""
    return not self.problems

  def table(self) -> RenderableType:
    """Counts, class shares and problems, for a rich console."""
    tables = [self._splits_table()]
    if any(report.pixels.any() for report in self.splits.values()):
      tables.append(self._classes_table())
    if any(report.objects.size for report in self.splits.values()):
      tables.append(self._objects_table())
    return Group(*tables, *self._problem_lines())

  def _splits_table(self) -> Table:
    table = Table(title=str(self.root), title_justify="left")
    volumes = any(len(size) == 3 for report in self.splits.values() for size in report.sizes)
    axes = f"sizes (width x height{' x depth' if volumes else ''})"
    for column in ("split", "images", axes, "void"):
      table.add_column(column, justify="right" if column in ("images", "void") else "left")
    for split, report in self.splits.items():
      sizes = [f"{'x'.join(map(str, s[::-1]))} ({n})" for s, n in report.sizes.most_common(3)]
      more = len(report.sizes) - 3
      text = ", ".join(sizes) + (f" and {more} more" if more > 0 else "")
      total = max(1, report.pixels.sum())
      table.add_row(split, str(report.count), text, f"{report.pixels[IGNORE] / total:.1%}")
    return table

  def _classes_table(self) -> Table:
    table = Table(caption="share of the labelled pixels (masks that hold the class)")
    table.add_column("class")
    for split in self.splits:
      table.add_column(split, justify="right")
    for i, (name, color) in enumerate(
      zip(self.classes.names, self.classes.palette.tolist(), strict=True)
    ):
      cells = []
      for report in self.splits.values():
        labelled = max(1, report.pixels[:IGNORE].sum())
        cells.append(f"{report.pixels[i] / labelled:.2%} ({report.images_with[i]})")
      table.add_row(Text.assemble(("■ ", "rgb({},{},{})".format(*color)), f"{i} {name}"), *cells)
    return table

  def _objects_table(self) -> Table:
    most = ", ".join(f"{report.most} in {split}" for split, report in self.splits.items())
    table = Table(caption=f"objects (images with any); at most in one image: {most}")
    table.add_column("class")
    for split in self.splits:
      table.add_column(split, justify="right")
    for i, name in enumerate(self.classes.names):
      if i > 0:  # the background is no object
        cells = [
          f"{report.objects[i]} ({report.images_with_objects[i]})" if report.objects.size else "0"
          for report in self.splits.values()
        ]
        table.add_row(f"{i} {name}", *cells)
    return table

  def _problem_lines(self) -> Iterator[Text]:
    yield from _listed(self.notes, "yellow", "!")
    if self.ok:
      yield Text("No problems found.", "green")
    else:
      yield from _listed(self.problems, "red", "✗")


def _listed(problems: Sequence[FileError], color: str, sign: str) -> Iterator[Text]:
  """A few problems of each kind."""
  by_kind: dict[str, list[FileError]] = {}
  for problem in problems:
    by_kind.setdefault(problem.kind, []).append(problem)
  for alike in by_kind.values():
    for problem in alike[:_MOST_PROBLEMS]:
      yield Text.assemble((f"{sign} ", color), (problem.file, "bold"), f": {problem.problem}")
      yield Text(f"  {problem.fix}", "dim")
    if len(alike) > _MOST_PROBLEMS:
      yield Text(f"  ... and {len(alike) - _MOST_PROBLEMS} more of this kind", color)


def check_folder(root: str | os.PathLike) -> Report:
  """Reads every file of a data folder and reports all that is wrong.

  Args:
    root: a folder in the layouts of `folder_source`, `volumes_source` or `voc_source`.

  Raises:
    InputError: if there is nothing to check: no such folder, no layout, no readable classes.json.
  """
  source = _source(root)
  problems = list(source.problems)
  notes: list[FileError] = []
  splits = {}
  for split, pairs in _pairs(source).items():
    splits[split] = report = SplitReport(len(pairs))
    console = Console(stderr=True)
    for pair in track(pairs, f"Checking {split}", console=console, transient=True):
      files = (pair.image,) if isinstance(pair, CocoItem) else (pair.image, pair.mask)
      if not all(file.is_file() for file in files):
        continue  # it is a problem already
      found = [] if isinstance(pair, CocoItem) else _check_pair(pair, report)
      if source.has_objects and not found:
        example, found = _attempt(pair.load)
        if example is not None:
          _count_objects(example, report, len(source.classes.names))
          notes += example.notes
          if not source.has_labels:
            report.sizes[example.size] += 1
      problems += found
    problems += _attempt(check_binary, report.pixels, source.classes, f"split {split}")[1]
  return Report(Path(root), source.classes, splits, problems, notes)


def contact_sheet(root: str | os.PathLike, path: str | os.PathLike) -> bool:
  """Writes a PNG of up to 16 images with their masks laid over them, and a legend.

  Void is hatched. Images that cannot be read are left out. A volume shows its middle slice. Each
  object has a colour of its own, and there is no legend.

  Args:
    root: as for `check_folder`.
    path: of the PNG.

  Returns:
    Whether there was anything to show, and so to write.
  """
  source = _source(root)
  tiles = []
  for split, pair in _spread(source, 16):
    example, failed = _attempt(pair.load)
    if not failed:
      image, label = _picture(example)
      palette = voc_colormap(IGNORE) if source.has_objects else source.classes.palette
      tiles.append(_tile(image, label, palette, f"{split}/{pair.name}"))
  if tiles:
    _compose(tiles, None if source.has_objects else source.classes).save(path)
  return bool(tiles)


def _source(root: str | os.PathLike) -> Source:
  path = Path(root).expanduser()
  if holds_coco(path):
    return coco_source(path)
  is_voc = any(any(path.glob(f"{up}SegmentationClass")) for up in ("", "VOC20*/", "VOCdevkit/*/"))
  if is_voc:
    return voc_source(path)
  return volumes_source(path) if holds_volumes(path) else folder_source(path)


def _pairs(source: Source) -> Mapping[str, Sequence[Pair | VolumePair | CocoItem]]:
  # All layouts are made of files; `Source` promises less.
  return cast(Mapping[str, Sequence[Pair | VolumePair | CocoItem]], source.splits)


def _check_pair(pair: Any, report: SplitReport) -> list[FileError]:
  """Checks image, mask, sizes and values on their own, so that one problem hides no other."""
  image, problems = _attempt(pair.read_image)
  raw, found = _attempt(pair.read_mask)
  problems += found
  if image is not None:
    report.sizes[image.size] += 1
  if image is not None and raw is not None:
    problems += _attempt(pair.check, image, raw)[1]
  if raw is not None:
    label, found = _attempt(pair.make_label, raw)
    problems += found
    if label is not None:
      counts = np.bincount(label.ravel(), minlength=256)
      report.pixels += counts
      report.images_with += counts > 0
  return problems


def _count_objects(example: Example, report: SplitReport, k: int) -> None:
  assert example.objects is not None
  counts = np.bincount(example.objects.classes[~example.objects.crowd], minlength=k)
  report.objects = counts + (report.objects if report.objects.size else 0)
  with_objects = report.images_with_objects if report.images_with_objects.size else 0
  report.images_with_objects = (counts > 0) + with_objects
  report.most = max(report.most, len(example.objects))


def _attempt(function, *args):
  """(result, []) or (None, [the problem])."""
  try:
    return function(*args), []
  except FileError as problem:
    return None, [problem]


def _picture(example: Example) -> tuple[np.ndarray, ...]:
  """Image uint8 [h w c] and label [h w]."""
  image, label, objects = example.image, example.label, example.objects
  if isinstance(image, bytes) and objects is not None:
    painted = np.zeros(example.size, np.uint8)
    for i in np.argsort(-objects.areas, kind="stable").tolist():
      painted[objects.mask(i)] = IGNORE if objects.crowd[i] else 1 + i % (IGNORE - 1)
    return decode_image(image), painted
  if isinstance(image, bytes) and isinstance(label, bytes):
    return decode_image(image), decode_raw(label)
  return flatten_volume(np.asarray(image), np.asarray(label))


def _spread(source: Source, count: int) -> list[tuple[str, Any]]:
  """Up to `count` pairs, evenly over all splits."""
  everything = [(split, pair) for split, pairs in _pairs(source).items() for pair in pairs]
  if len(everything) <= count:
    return everything
  return [everything[i] for i in np.linspace(0, len(everything) - 1, count).astype(int)]


_TILE, _CAPTION, _GAP = 256, 20, 8
_INK, _PAPER = (40, 42, 54), (250, 250, 248)


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
  """Colour, number and name of each class, flowing over lines."""
  font, line = ImageFont.load_default(13), 22
  canvas = Image.new("RGB", (width, line * (len(classes.names) + 2)), _PAPER)
  draw = ImageDraw.Draw(canvas)
  x, y = 0.0, 0
  colors = [*map(tuple, classes.palette.tolist()), None]
  entries = zip([*classes.names, "void"], colors, strict=True)
  for i, (name, color) in enumerate(entries):
    text = f"{i} {name}" if color else name
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
