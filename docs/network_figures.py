"""Drawings of the networks: blocks whose sizes and channels are read off the networks themselves.

A drawing names the parts of a network by regular expressions of their modules' names, which must
match something: what was renamed or left out is noticed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jseg import models

COLORS = {
  "conv": ("#9ec5e8", "convolutions, the size of the map kept or halved"),
  "atrous": ("#8fd0b5", "with dilated kernels"),
  "context": ("#c9b3e6", "several views side by side, then fused"),
  "up": ("#f6c58f", "the way back up"),
  "score": ("#ef9a9a", "scores of the classes"),
}


@dataclasses.dataclass(frozen=True)
class Block:
  """A part of a network: its label, a regular expression of its modules' names, its color."""

  label: str
  modules: str
  kind: str = "conv"


@dataclasses.dataclass(frozen=True)
class Drawing:
  """Columns of blocks from left to right; blocks of a column are side by side in the network.

  `skips` are pairs of columns; `arguments` those of `jseg.models.create`.
  """

  network: str
  columns: Sequence[Block | Sequence[Block]]
  skips: Sequence[tuple[int, int]] = ()
  size: tuple[int, ...] = (512, 512)
  channels: int = 3
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  skip_label: str = ""


def _levels(template: str, numbers: Sequence[Any], label: str, kind: str = "conv") -> list[Block]:
  return [Block(label.format(i), template.format(i), kind) for i in numbers]


_VGG = _levels("backbone/conv{}_.", (1, 2, 3, 4, 5), "conv{}")
_RESNET = [
  Block("conv1", "backbone/conv[123]"),
  *_levels("backbone/layer{}_[0-9]+", (1, 2, 3, 4), "layer{}"),
]
_DILATED = [*_RESNET[:3], *(dataclasses.replace(block, kind="atrous") for block in _RESNET[3:])]


def _unet(depth: int) -> list[Block]:
  """A U-Net's blocks: two convolutions at each of `depth` levels, and on the way back up."""
  down = [Block(f"level {i + 1}", f"Conv_({2 * i}|{2 * i + 1})") for i in range(depth)]
  up = [
    Block(f"up {i}", f"UpConv_{depth - 1 - i}|Conv_({n}|{n + 1})", "up")
    for i, n in zip(range(depth - 1, 0, -1), range(2 * depth, 9999, 2), strict=False)
  ]
  return [*down, *up, Block("scores", f"Conv_{4 * depth - 2}", "score")]


DRAWINGS = {
  "patch_classifier": Drawing(
    "patch_classifier",
    [
      *_levels("Conv_{}", (0, 1, 2, 3), "conv {}", "atrous"),
      Block("fc1", "fc1", "atrous"),
      Block("scores", "fc2", "score"),
    ],
    size=(95, 95),
    channels=1,
  ),
  "fcn": Drawing(
    "fcn8s",
    [
      *_VGG,
      Block("fc6, fc7", "backbone/fc[67]"),
      Block("scores /32", "score_fr", "score"),
      Block("+ pool4", "upscore2|score_pool4", "up"),
      Block("+ pool3", "upscore_pool4|score_pool3", "up"),
      Block("scores", "upscore8", "score"),
    ],
    skips=[(3, 7), (2, 8)],
    skip_label="scores of pool4 and pool3, added",
    arguments={"padding": "same"},
  ),
  "segnet": Drawing(
    "segnet",
    [
      *_VGG,
      *_levels("conv{}_._d", (5, 4, 3, 2), "conv{} up", "up"),
      Block("conv1 up", "conv1_2_d", "up"),
      Block("scores", "conv1_1_d", "score"),
    ],
    skips=[(4, 5), (3, 6), (2, 7), (1, 8), (0, 9)],
    skip_label="places of the maxima alone",
  ),
  "unet": Drawing(
    "unet",
    _unet(5),
    skips=[(3, 5), (2, 6), (1, 7), (0, 8)],
    skip_label="whole maps, concatenated",
    channels=1,
  ),
  "unet3d": Drawing(
    "unet3d",
    _unet(4),
    skips=[(2, 4), (1, 5), (0, 6)],
    skip_label="whole maps, concatenated",
    size=(128, 128, 128),
    channels=1,
  ),
  "deeplab_v1": Drawing(
    "deeplab_v1",
    [
      *_VGG[:4],
      dataclasses.replace(_VGG[4], kind="atrous"),
      Block("fc6, rate 12", "backbone/fc6", "atrous"),
      Block("fc7", "backbone/fc7"),
      Block("scores", "fc8", "score"),
    ],
    size=(513, 513),
  ),
  "deeplab_v2": Drawing(
    "deeplab_v2",
    [
      *_DILATED,
      [Block(f"rate {6 * i}", f"fc8_{i}", "context") for i in (1, 2, 3, 4)],
    ],
    size=(513, 513),
  ),
  "deeplab_v3": Drawing(
    "deeplab_v3",
    [
      *_RESNET[:4],
      dataclasses.replace(_RESNET[4], kind="atrous"),
      [
        Block("1 x 1", "aspp/conv0", "context"),
        *(Block(f"rate {6 * i}", f"aspp/conv{i}", "context") for i in (1, 2, 3)),
        Block("image mean", "aspp/image", "context"),
      ],
      Block("project", "aspp/project"),
      Block("scores", "classifier", "score"),
    ],
    size=(513, 513),
  ),
  "pspnet": Drawing(
    "pspnet",
    [
      *_DILATED,
      [Block(f"{i} x {i} bins", f"pyramid/level{i}", "context") for i in (1, 2, 3, 6)],
      Block("fuse", "head/conv"),
      Block("scores", "head/classifier", "score"),
    ],
    size=(513, 513),
    skips=[(4, 6)],
    skip_label="the map itself",
  ),
  "refinenet": Drawing(
    "refinenet",
    [
      *_RESNET,
      *(Block(f"refine {4 - i}", f"(layer{4 - i}_|chain{i}_|out{i}_).*", "up") for i in range(4)),
      Block("scores", "classifier", "score"),
    ],
    skips=[(3, 6), (2, 7), (1, 8)],
    skip_label="maps of the backbone, each through residual units",
  ),
  "fcn_resnet": Drawing(
    "fcn_resnet",
    [*_DILATED, Block("head", "head/conv"), Block("scores", "head/classifier", "score")],
  ),
  "mask_rcnn": Drawing(
    "mask_rcnn",
    [
      *_RESNET,
      _levels("fpn/level{}", (5, 4, 3, 2), "pyramid {}", "up"),
      Block("proposals", "rpn/conv1", "context"),
      [Block("box head", "box_head/dense."), Block("mask head", "mask_head/(conv.|upsample)")],
      Block("class and box", "box_head/(score|box)", "score"),
    ],
  ),
}


@dataclasses.dataclass(frozen=True)
class _Seen:
  """What a block is in the network: how many layers, and the shape that leaves it."""

  layers: int
  shape: tuple[int, ...]


def draw(drawing: Drawing) -> Figure:
  """Draws a network.

  Raises:
    ValueError: a block's expression matches no module of the network.
  """
  shapes = _shapes(drawing)
  columns = [[c] if isinstance(c, Block) else list(c) for c in drawing.columns]
  seen = [[_find(block, shapes) for block in column] for column in columns]
  figure, axes = plt.subplots(figsize=(0.86 * len(columns) + 0.3, 4.1), layout="constrained")
  tops, x = [], 0.0
  for column, parts in zip(columns, seen, strict=True):
    width = max(_width(part.shape[-1]) for part in parts)
    place = (x + 0.5 - width / 2, width)
    tops.append((x + 0.5, _draw_column(axes, column, parts, drawing, place)))
    x += 1
  for start, end in drawing.skips:
    above = max(y for _, y in tops[start : end + 1])
    _draw_skip(axes, tops[start], tops[end], above + 0.25)
  if drawing.skip_label:
    axes.set_title(drawing.skip_label, fontsize=9, color="#555555")
  kinds = {block.kind for column in columns for block in column}
  handles = [
    Rectangle((0, 0), 1, 1, color=c, label=t) for k, (c, t) in COLORS.items() if k in kinds
  ]
  edge = " x ".join(map(str, drawing.size))
  title = f"layers x channels; edge of their map, of an image of {edge}"
  figure.legend(
    handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False, title=title
  )
  axes.set(xlim=(-0.1, x + 0.1), ylim=(-2.6, max(2.1, *(y + 0.1 for _, y in tops))))
  axes.set_axis_off()
  return figure


def _draw_column(
  axes: Axes,
  blocks: Sequence[Block],
  parts: Sequence[_Seen],
  drawing: Drawing,
  place: tuple[float, float],
) -> float:
  """Draws blocks one above the other, and returns the height of the top."""
  x, width = place
  heights = [_height(part.shape[0] / drawing.size[0]) for part in parts]
  if len(blocks) > 1:
    heights = [min(0.4, height) for height in heights]
  gap, between = 0.62, ", " if len(blocks) > 1 else "\n"
  y = (sum(heights) + gap * (len(blocks) - 1)) / 2
  top = y
  for block, part, height in zip(blocks, parts, heights, strict=True):
    axes.add_patch(
      Rectangle(
        (x, y - height), width, height, facecolor=COLORS[block.kind][0], edgecolor="#555555", lw=0.7
      )
    )
    count = f"{part.layers} x " if part.layers > 1 else ""
    size = (
      f"{part.shape[0]}" if part.shape[0] == part.shape[1] else "x".join(map(str, part.shape[:-1]))
    )
    text = f"{block.label}\n{count}{part.shape[-1]}{between}{size}"
    axes.text(
      x + width / 2, y - height - 0.05, text, ha="center", va="top", fontsize=8.5, linespacing=1.1
    )
    y -= height + gap
  return top


def _draw_skip(
  axes: Axes, start: tuple[float, float], end: tuple[float, float], level: float
) -> None:
  """Draws an arrow from the top of one column over all between to the top of another."""
  (x0, y0), (x1, y1) = start, end
  axes.plot([x0, x0, x1], [y0, level, level], color="#777777", lw=0.9)
  axes.annotate(
    "", (x1, y1), (x1, level), arrowprops={"arrowstyle": "-|>", "color": "#777777", "lw": 0.9}
  )


def _height(share: float) -> float:
  """Height of a map whose edge is this share of the image's."""
  return max(0.16, 3.4 + 0.56 * math.log2(share)) if share < 1 else 3.4


def _width(channels: int) -> float:
  return 0.16 + 0.07 * max(0.0, math.log2(channels / 16))


def _find(block: Block, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> _Seen:
  found = [(name, shape) for name, shape in shapes if re.fullmatch(block.modules, name)]
  if not found:
    raise ValueError(f"{block.label}: no module is called {block.modules}")
  return _Seen(len({name for name, _ in found}), found[-1][1])


def _shapes(drawing: Drawing) -> list[tuple[str, tuple[int, ...]]]:
  """Names of a network's modules in the order of their first call, and what shape left each."""
  model = models.create(drawing.network, 21, **drawing.arguments)
  seen: dict[str, tuple[int, ...]] = {}

  def note(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    result = call(*args, **kwargs)
    if hasattr(result, "shape"):
      seen.setdefault("/".join(context.module.path), result.shape[1:])
    return result

  def run(image: jax.Array) -> Any:
    with nn.intercept_methods(note):
      return model.init(jax.random.key(0), image)

  jax.eval_shape(run, jax.ShapeDtypeStruct((1, *drawing.size, drawing.channels), jnp.float32))
  return list(seen.items())
