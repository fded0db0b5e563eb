"""Results for people: tables, plots, overlays, sample pictures."""

import colorsys
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont
from rich.color import Color
from rich.console import Console
from rich.progress import track
from rich.style import Style
from rich.table import Table
from rich.text import Text

from jseg.average_precision import InstanceScores, coco_annotations
from jseg.data import Objects
from jseg.metrics import Scores
from jseg.types import IGNORE

CONSOLE = Console()

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Image uint8 [h w c], truth uint8 [h w], prediction uint8 [h w]."""

InstanceSample = tuple[np.ndarray, Objects, Objects]
"""Image uint8 [h w c], its true objects, those that were found."""

_T = TypeVar("_T")
_VOID = (224, 224, 224)
_CROWD = (150, 150, 150)
_DPI = 120
_INSTANCE_CELL = 384  # pixels, longest side of a picture with objects


def colourise(mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Class indices [h w] to colours, uint8 [h w 3]; IGNORE is light grey."""
  table = np.full((256, 3), _VOID, np.uint8)
  table[: len(palette)] = palette
  table[IGNORE] = _VOID
  return table[mask]


def overlay(
  image: np.ndarray, mask: np.ndarray, palette: np.ndarray, alpha: float = 0.55
) -> np.ndarray:
  """The image under the colours of its classes.

  Args:
    image: uint8 [h w 3] or [h w 1].
    mask: uint8 [h w], class indices or IGNORE (left uncoloured).
    palette: uint8 [k 3].
    alpha: opacity of the colours, in [0, 1].

  Returns:
    uint8 [h w 3].
  """
  image = np.broadcast_to(image, (*mask.shape, 3)).astype(np.float32)
  opacity = np.where(mask == IGNORE, 0.0, alpha)[..., None]
  return (image * (1 - opacity) + colourise(mask, palette) * opacity).round().astype(np.uint8)


def score_table(scores: Scores, names: Sequence[str], title: str) -> Table:
  """Per-class IoU, Dice, accuracy and share of the pixels, with the means below."""
  table = Table(title=title, title_justify="left", show_footer=True)
  means = (scores.miou, scores.mdice, scores.macc)
  table.add_column("class", "mean")
  for heading, mean in zip(("IoU", "Dice", "accuracy"), means, strict=True):
    table.add_column(heading, _percent(mean), justify="right")
  table.add_column("pixels", f"{scores.pixels.sum():,}", justify="right")
  table.add_column("share", "", justify="right")
  total = max(int(scores.pixels.sum()), 1)
  for name, *shares, pixels in zip(
    names, scores.iou, scores.dice, scores.accuracy, scores.pixels, strict=True
  ):
    table.add_row(name, *map(_percent, shares), f"{pixels:,}", _percent(pixels / total))
  table.caption = (
    f"pixel accuracy {_percent(scores.pixel_accuracy)}, "
    f"frequency-weighted IoU {_percent(scores.fwiou)}"
  )
  return table


def instance_table(scores: InstanceScores, names: Sequence[str], title: str) -> Table:
  """AP and AR of masks and boxes per class, with the means below, and by size in the caption."""
  table = Table(title=title, title_justify="left", show_footer=True)
  masks, boxes = scores.masks, scores.boxes
  table.add_column("class", "mean")
  columns = {
    "mask AP": (masks.ap_by_class, masks.ap),
    "mask AP50": (masks.ap50_by_class, masks.ap50),
    "mask AR": (masks.ar_by_class, masks.ar),
    "box AP": (boxes.ap_by_class, boxes.ap),
    "box AP50": (boxes.ap50_by_class, boxes.ap50),
    "box AR": (boxes.ar_by_class, boxes.ar),
  }
  for heading, (_, mean) in columns.items():
    table.add_column(heading, _percent(mean), justify="right")
  table.add_column("objects", f"{scores.counts.sum():,}", justify="right")
  for i, name in list(enumerate(names))[1:]:
    shares = (_percent(values[i]) for values, _ in columns.values())
    table.add_row(name, *shares, f"{scores.counts[i]:,}")
  for kind, measures in (("mask", masks), ("box", boxes)):
    for what, sizes in (("AP", measures.ap_by_size), ("AR", measures.ar_by_size)):
      text = "  ".join(f"{size} {_percent(value)}" for size, value in sizes.items())
      table.caption = f"{table.caption or ''}\n{kind} {what} by size: {text}".strip()
  return table


def _percent(value: float) -> str:
  return "absent" if np.isnan(value) else f"{100 * value:.1f} %"


def save_confusion_plot(scores: Scores, names: Sequence[str], path: pathlib.Path) -> None:
  """Draws the confusion matrix, each row as shares of the true class."""
  with np.errstate(invalid="ignore"):
    shares = scores.matrix / scores.matrix.sum(1, keepdims=True)
  k = len(names)
  side = 2.5 + 0.42 * k
  figure = _figure(side + 1, side)
  axes = figure.subplots()
  picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  axes.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
  axes.set_yticks(range(k), names)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.set_title(f"mIoU {_percent(scores.miou)}")
  if k <= 25:
    for row, column in np.ndindex(k, k):
      share = shares[row, column]
      if share >= 0.005:
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour)
  figure.colorbar(picture, fraction=0.046, pad=0.04, label="share of the true class")
  figure.savefig(path)


def save_curves(
  metrics: pathlib.Path, path: pathlib.Path, measure: str = "miou", title: str = "mIoU"
) -> None:
  """Draws the loss and a measure over the steps from a run's metrics.jsonl.

  Args:
    metrics: the log.
    path: PNG to write.
    measure: its name in the log, a fraction.
    title: its name for people.
  """
  lines = [json.loads(line) for line in metrics.read_text().splitlines()]
  figure = _figure(9, 3.5)
  grid = figure.subplots(1, 2)
  for axes, key, factor, heading in zip(
    grid, ("loss", measure), (1, 100), ("loss", f"{title} in %"), strict=True
  ):
    for split in dict.fromkeys(line["split"] for line in lines):
      points = [line for line in lines if line["split"] == split and key in line]
      marker = "." if len(points) < 40 else ""
      steps, values = [p["step"] for p in points], [factor * (p[key] or 0.0) for p in points]
      if points:
        axes.plot(steps, values, marker=marker, label=split)
    axes.set_title(heading)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend()
  figure.savefig(path)


def save_samples(
  rows: Sequence[Sample],
  names: Sequence[str],
  palette: np.ndarray,
  path: pathlib.Path,
  title: str,
) -> None:
  """Draws image | truth | prediction, a row each, with a legend.

  Args:
    rows: the samples; the first one's height and width shape the grid.
    names: of the classes.
    palette: uint8 [k 3].
    path: PNG to write.
    title: heading.
  """
  figure = _triples(
    [
      (
        np.broadcast_to(image, (*image.shape[:2], 3)),
        colourise(truth, palette),
        colourise(np.where(truth == IGNORE, IGNORE, prediction), palette),
      )
      for image, truth, prediction in rows
    ],
    title,
    cell=2.0,
  )
  figure.legend(
    _patches([*palette, _VOID]),
    [*names, "void"],
    loc="outside lower center",
    ncols=min(len(names) + 1, 8),
    fontsize=9,
    frameon=False,
  )
  figure.savefig(path)


def save_instance_samples(
  rows: Sequence[InstanceSample], names: Sequence[str], path: pathlib.Path, title: str
) -> None:
  """Draws image | truth | prediction, a row each, with the objects of the latter two.

  Args:
    rows: the samples; the first one's height and width shape the grid.
    names: of the classes.
    path: PNG to write.
    title: heading.
  """
  shown = [
    [draw_objects(image, objects, names, longest=_INSTANCE_CELL) for objects in (None, *both)]
    for image, *both in rows
  ]
  _triples(shown, title, cell=_INSTANCE_CELL / _DPI).savefig(path)


def _triples(rows: Sequence[Sequence[np.ndarray]], title: str, cell: float) -> Figure:
  """A grid of image | truth | prediction, in two columns where there are many.

  Args:
    rows: the pictures, uint8 [h w 3]; the first one's height and width shape the grid.
    title: heading.
    cell: longest side of a picture in inches.
  """
  lines = -(-len(rows) // 2) if len(rows) > 3 else len(rows)
  columns = 3 * -(-len(rows) // max(lines, 1))
  height, width = rows[0][0].shape[:2]
  longest = max(height, width)
  figure = _figure(cell * columns * width / longest, cell * lines * height / longest + 1.0)
  grid = figure.subplots(lines, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for number, pictures in enumerate(rows):
    row, column = number % lines, 3 * (number // lines)
    for offset, (picture, heading) in enumerate(
      zip(pictures, ("image", "truth", "prediction"), strict=True)
    ):
      axes = grid[row, column + offset]
      axes.imshow(picture, interpolation="nearest")
      if row == 0:
        axes.set_title(heading, fontsize=10)
  figure.suptitle(title, fontsize=11)
  return figure


def draw_objects(
  image: np.ndarray,
  objects: Objects | None,
  names: Sequence[str],
  *,
  longest: int = 1024,
  least_score: float = 0.5,
) -> np.ndarray:
  """An image with the mask, the outline, the box, the name and the score of each object.

  Every object has a colour of its own, crowds are grey. Names and scores are left out where they
  would hide what is small.

  Args:
    image: uint8 [h w 3] or [h w 1].
    objects: in it, at its own size; None draws the image alone.
    names: of the classes.
    longest: side of the picture in pixels, to which a smaller image is enlarged.
    least_score: found objects below it are not drawn.

  Returns:
    uint8 [H W 3].
  """
  height, width = image.shape[:2]
  scale = longest / max(height, width)
  shape = max(1, round(width * scale)), max(1, round(height * scale))
  colours = np.broadcast_to(image, (height, width, 3)).astype(np.uint8)
  method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
  canvas = np.array(Image.fromarray(colours).resize(shape, method))
  if objects is None:
    return canvas
  shown = np.arange(len(objects))
  if objects.scores is not None:
    shown = np.flatnonzero(objects.scores >= least_score)
  # The best and the smallest come last, on top.
  rank = -objects.areas if objects.scores is None else objects.scores
  order = shown[np.argsort(rank[shown], kind="stable")].tolist()
  inks = {i: _CROWD if objects.crowd[i] else _distinct(i) for i in order}
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


def _tint(
  canvas: np.ndarray, crop: np.ndarray, frame: np.ndarray, ink: tuple[int, int, int]
) -> None:
  """Colours a mask, and its outline more strongly, in place."""
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
  font: Any,
  objects: Objects,
  i: int,
  names: Sequence[str],
  scale: float,
  ink: tuple[int, int, int],
) -> None:
  """Writes name and score at a box, or as much of them as is in proportion to it."""
  y0, x0, y1, x1 = (float(edge) * scale for edge in objects.boxes[i])
  name = names[int(objects.classes[i])] + (" (crowd)" if objects.crowd[i] else "")
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
  """Colour i of an endless row, neighbours far apart."""
  # Steps of the golden ratio never come near one another; three levels help where hues meet.
  hue, level = i * 0.618034 % 1, (1.0, 0.78, 0.9)[i % 3]
  r, g, b = colorsys.hsv_to_rgb(hue, 0.85, level)
  return round(255 * r), round(255 * g), round(255 * b)


def precision_table(scores: InstanceScores, names: Sequence[str], title: str) -> Table:
  """AP and AR per class, with the means below."""
  table = Table(title=title, title_justify="left", show_footer=True)
  masks, boxes = scores.masks, scores.boxes
  table.add_column("class", "mean")
  for heading, mean in (
    ("mask AP", masks.ap),
    ("AP50", masks.ap50),
    ("AR", masks.ar),
    ("box AP", boxes.ap),
  ):
    table.add_column(heading, _percent(mean), justify="right")
  table.add_column("objects", f"{scores.counts.sum():,}", justify="right")
  columns = (masks.ap_by_class, masks.ap50_by_class, masks.ar_by_class, boxes.ap_by_class)
  for i, name in enumerate(names):
    if i > 0:  # the background is no object
      table.add_row(name, *(_percent(c[i]) for c in columns), f"{scores.counts[i]:,}")
  sizes = ", ".join(f"{size} {_percent(value)}" for size, value in masks.ap_by_size.items())
  table.caption = f"mask AP75 {_percent(masks.ap75)}; of objects by size: {sizes}"
  return table


def save_instance_map(objects: Objects, path: pathlib.Path) -> None:
  """Writes a PNG of 16 bits: pixels hold the number of their object, from 1; 0 is none.

  Where found objects overlap, the one of the higher score is in front; of true ones the smaller.
  """
  ids = np.zeros(objects.size, np.uint16)
  rank = -objects.areas if objects.scores is None else objects.scores
  for i in np.argsort(rank, kind="stable").tolist():
    y0, x0, y1, x1 = objects.frames[i].tolist()
    ids[y0:y1, x0:x1][objects.crop(i)] = i + 1
  Image.fromarray(ids).save(path)


def coco_results(
  images: Iterable[tuple[int | str, Objects]], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
  """Found objects as COCO's results, ready for `json.dump`.

  Args:
    images: (image id, what was found in it).
    category_ids: of each class, `ClassInfo.values`.
  """
  results = []
  for image_id, objects in images:
    for row in coco_annotations(objects):
      rle = {"size": list(objects.size), "counts": row["segmentation"]["counts"].decode()}
      results.append(
        {
          "image_id": image_id,
          "category_id": category_ids[row["category_id"]],
          "bbox": [round(n, 2) for n in row["bbox"]],
          "segmentation": rle,
          "score": row["score"],
        }
      )
  return results


def spread(count: int, length: int) -> list[int]:
  """Indices from all over a split: the first images of a video would all be the same."""
  return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()


def terminal_samples(rows: Sequence[Sample], palette: np.ndarray, width: int) -> Text:
  """The sample pictures as text: see `terminal_pictures`."""
  return terminal_pictures(
    [(image, colourise(truth, palette), colourise(mask, palette)) for image, truth, mask in rows],
    width,
  )


def terminal_pictures(rows: Sequence[Sequence[np.ndarray]], width: int) -> Text:
  """Rows of three pictures as text: two pixels a character, one above the other.

  Args:
    rows: pictures uint8 [h w 3] or [h w 1].
    width: characters in a line.
  """
  strips = []
  for image, *others in rows:
    parts = (np.broadcast_to(image, (*image.shape[:2], 3)), *others)
    side = width // 3 - 1
    height = max(2, round(side * image.shape[0] / image.shape[1]) // 2 * 2)
    small = [Image.fromarray(part).resize((side, height), Image.Resampling.BOX) for part in parts]
    strips.append(np.concatenate([np.asarray(part) for part in small], 1))
  text = Text()
  for strip in strips:
    for top, bottom in zip(strip[::2], strip[1::2], strict=True):
      for upper, lower in zip(top, bottom, strict=True):
        text.append("\u2580", Style(color=_colour(upper), bgcolor=_colour(lower)))
      text.append("\n")
  return text


def _colour(rgb: np.ndarray) -> Color:
  return Color.from_rgb(*(int(value) for value in rgb))


def legend(shares: Mapping[str, float], palette: np.ndarray) -> Image.Image:
  """A picture of class colours, names and shares of one image, the largest first."""
  entries = sorted(
    ((share, name, colour) for (name, share), colour in zip(shares.items(), palette, strict=True)),
    key=lambda entry: -entry[0],
  )
  entries = [entry for entry in entries if entry[0] > 0]
  figure = _figure(3.4, 0.4 + 0.28 * len(entries))
  figure.legend(
    _patches([colour for _, _, colour in entries]),
    [f"{name}  {_percent(share)}" for share, name, _ in entries],
    loc="center left",
    frameon=False,
  )
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _patches(palette: Iterable[Sequence[int] | np.ndarray]) -> list[Patch]:
  return [Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="grey") for r, g, b in palette]


def progress(items: Iterable[_T], description: str, total: int) -> Iterable[_T]:
  """Passes `items` on under a progress bar with ETA, which is gone when they are."""
  return track(items, description, total=total, transient=True, console=CONSOLE)


def _figure(width: float, height: float) -> Figure:
  # Not through pyplot, which keeps every figure in a global list.
  return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
