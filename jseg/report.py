"""Results for people: tables, plots, overlays, sample pictures."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.progress import track
from rich.style import Style
from rich.table import Table
from rich.text import Text

from jseg.metrics import Scores
from jseg.types import IGNORE

CONSOLE = Console()

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Image uint8 [h w c], truth uint8 [h w], prediction uint8 [h w]."""

_T = TypeVar("_T")
_VOID = (224, 224, 224)


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


def save_curves(metrics: pathlib.Path, path: pathlib.Path) -> None:
  """Draws loss and mIoU over the steps from a run's metrics.jsonl."""
  lines = [json.loads(line) for line in metrics.read_text().splitlines()]
  figure = _figure(9, 3.5)
  loss_axes, miou_axes = figure.subplots(1, 2)
  for split in dict.fromkeys(line["split"] for line in lines):
    points = [line for line in lines if line["split"] == split]
    steps = [p["step"] for p in points]
    marker = "." if len(points) < 40 else ""
    if all("loss" in p for p in points):
      loss_axes.plot(steps, [p["loss"] for p in points], marker=marker, label=split)
    miou_axes.plot(steps, [100 * (p["miou"] or 0.0) for p in points], marker=marker, label=split)
  for axes, title in ((loss_axes, "loss"), (miou_axes, "mIoU in %")):
    axes.set_title(title)
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
  pairs = -(-len(rows) // 2) if len(rows) > 3 else len(rows)
  columns = 3 * -(-len(rows) // max(pairs, 1))
  height, width = rows[0][0].shape[:2]
  cell = 2.0
  longest = max(height, width)
  figure = _figure(cell * columns * width / longest, cell * pairs * height / longest + 1.0)
  grid = figure.subplots(pairs, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for number, (image, truth, prediction) in enumerate(rows):
    row, column = number % pairs, 3 * (number // pairs)
    shown = (
      np.broadcast_to(image, (*image.shape[:2], 3)),
      colourise(truth, palette),
      colourise(np.where(truth == IGNORE, IGNORE, prediction), palette),
    )
    for offset, (picture, heading) in enumerate(
      zip(shown, ("image", "truth", "prediction"), strict=True)
    ):
      axes = grid[row, column + offset]
      axes.imshow(picture, interpolation="nearest")
      if row == 0:
        axes.set_title(heading, fontsize=10)
  figure.suptitle(title, fontsize=11)
  figure.legend(
    _patches([*palette, _VOID]),
    [*names, "void"],
    loc="outside lower center",
    ncols=min(len(names) + 1, 8),
    fontsize=9,
    frameon=False,
  )
  figure.savefig(path)


def terminal_samples(rows: Sequence[Sample], palette: np.ndarray, width: int) -> Text:
  """The sample pictures as text: two pixels a character, one above the other.

  Args:
    rows: the samples.
    palette: uint8 [k 3].
    width: characters in a line.
  """
  strips = []
  for image, truth, prediction in rows:
    parts = (
      np.broadcast_to(image, (*image.shape[:2], 3)),
      colourise(truth, palette),
      colourise(prediction, palette),
    )
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
  return Figure(figsize=(width, height), dpi=120, layout="constrained")
