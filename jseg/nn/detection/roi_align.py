"""Features of regions: RoIAlign (He et al. 2017, arXiv:1703.06870, section 3), and RoIPool.

All levels of a pyramid lie side by side on one canvas, so that a region's level is just an offset.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.arithmetic import cdiv
from jseg.nn.cut import cut
from jseg.nn.detection.boxes import box_area
from jseg.nn.detection.slots import fitting_chunk, in_chunks, pad_rows, rows, turns
from jseg.types import Array

_CHUNK = 32  # regions aligned together, at most


def region_levels(boxes: Array, strides: Sequence[int]) -> Array:
  """Level of each region: 224 pixels are pooled at stride 16 (arXiv:1612.03144, equation 1).

  Args:
    boxes: regions [p 4] in pixels.
    strides: strides of the levels, each twice the one before.

  Returns:
    int32 [p], indices into `strides`.
  """
  first = round(math.log2(strides[0]))
  # At least a hundredth of a pixel: the logarithm of an empty box would be minus infinity.
  edge = jnp.maximum(jnp.sqrt(box_area(boxes)), 0.01)
  level = jnp.floor(4 + jnp.log2(edge / 224) + 1e-6).astype(jnp.int32)
  return jnp.clip(level - first, 0, len(strides) - 1)


def roi_align(
  levels: Sequence[Array],
  boxes: Array,
  *,
  size: int,
  strides: Sequence[int],
  ratio: int = 2,
  aligned: bool = False,
) -> Array:
  """Mean of ratio x ratio bilinear samples in each of size x size bins of every region.

  Equal to torchvision's MultiScaleRoIAlign. Boxes get no gradient.

  Args:
    levels: feature maps [h w c], the finest first.
    boxes: regions [p 4] in pixels of the image.
    size: number of bins s along either axis.
    strides: strides of the levels.
    ratio: number of samples along either axis of a bin.
    aligned: True: cell i is centered at i + .5, which is exact. False: at i, with regions of at
      least one cell, which is how torchvision's networks are trained.

  Returns:
    [p s s c] of the features' type; computed in float32. Samples more than a cell outside are 0.
  """
  batch = tuple(level[None] for level in levels)
  image, count = jnp.zeros(len(boxes), jnp.int32), jnp.int32(len(boxes))
  return _align(batch, boxes, image, count, size, tuple(strides), ratio, aligned)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _align(
  levels: tuple[Array, ...],
  boxes: Array,
  image: Array,
  count: Array,
  size: int,
  strides: tuple[int, ...],
  ratio: int,
  aligned: bool,
) -> Array:
  """`roi_align` of the first `count` regions of a batch: levels [b h w c], image int32 [p]."""
  shapes = [level.shape[1:] for level in levels]

  def align(canvas: Array, boxes: Array, image: Array) -> Array:
    (row, wy), (column, wx) = _samples(shapes, boxes, size, strides, ratio, aligned)
    row += image[:, None] * canvas.shape[1]
    flat = canvas.reshape(-1, canvas.shape[-1])
    total = jnp.zeros((), jnp.float32)
    # A sum over corners and samples, which XLA makes one loop.
    for dy, dx, i, j in itertools.product(range(2), range(2), range(ratio), range(ratio)):
      of_y, of_x = ((slice(None), slice(start, None, ratio)) for start in (i, j))
      y, x = cut(row, *of_y) + dy, cut(column, *of_x) + dx
      weight = cut(wy, *of_y)[..., dy][:, :, None] * cut(wx, *of_x)[..., dx][:, None]
      total += weight[..., None] * flat[y[:, :, None] * canvas.shape[2] + x[:, None]]
    return (total / ratio**2).astype(canvas.dtype)

  return in_chunks(align, _canvas(levels), boxes, image, count=count, chunk=_CHUNK)


def _align_forward(
  levels: tuple[Array, ...],
  boxes: Array,
  image: Array,
  count: Array,
  size: int,
  strides: tuple[int, ...],
  ratio: int,
  aligned: bool,
) -> tuple[Array, tuple["_Shapes", Array, Array, Array]]:
  shapes = [jax.ShapeDtypeStruct(level.shape, level.dtype) for level in levels]
  y = _align(levels, boxes, image, count, size, strides, ratio, aligned)
  return y, (_Shapes(shapes), boxes, image, count)


def _align_backward(
  size: int,
  strides: tuple[int, ...],
  ratio: int,
  aligned: bool,
  saved: tuple["_Shapes", Array, Array, Array],
  dy: Array,
) -> tuple[tuple[Array, ...], Array, None, None]:
  levels, boxes, image, count = saved[0].value, *saved[1:]
  shapes = [level.shape[1:] for level in levels]
  b, c = levels[0].shape[0], dy.shape[-1]
  height, width = _canvas_size(shapes)
  chunk = fitting_chunk(len(boxes), _CHUNK)

  def add_chunk(i: Array, canvas: Array) -> Array:
    part, images, own = rows(padded, i, chunk)
    (row, wy), (column, wx) = _samples(shapes, part, size, strides, ratio, aligned)
    row += images[:, None] * height
    # Each sample adds to the 2 x 2 cells around it, in one update: the time of a scatter on CPU is
    # proportional to the number of its updates.
    own = own.astype(jnp.float32) / ratio**2
    own = jnp.repeat(jnp.repeat(own, ratio, 1), ratio, 2)[:, :, :, None, None]
    updates = own * wy[:, :, None, :, None, None] * wx[:, None, :, None, :, None]
    where = jnp.stack(jnp.broadcast_arrays(row[:, :, None], column[:, None]), -1)
    return lax.scatter_add(
      canvas,
      where.reshape(-1, 2),
      updates.reshape(-1, 2, 2, c),
      lax.ScatterDimensionNumbers((1, 2, 3), (), (0, 1)),
      mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )

  padded = pad_rows((boxes, image, dy), chunk)
  canvas = jnp.zeros((b * height, width, c), jnp.float32)
  canvas = lax.fori_loop(0, turns(count, chunk), add_chunk, canvas)
  canvas = canvas.reshape(b, height, width, c)
  gradients = tuple(
    canvas[:, : shape[0], start : start + shape[1]].astype(level.dtype)
    for level, shape, start in zip(levels, shapes, _starts(shapes), strict=True)
  )
  return gradients, jnp.zeros_like(boxes), None, None


_align.defvjp(_align_forward, _align_backward)


@jax.tree_util.register_static
class _Shapes:
  """Shapes and dtypes of arrays whose values the derivative does not need."""

  def __init__(self, value: Sequence[jax.ShapeDtypeStruct]):
    self.value = value

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Shapes) and self.value == other.value

  def __hash__(self) -> int:
    return hash(tuple(self.value))


def _starts(shapes: Sequence[Sequence[int]]) -> np.ndarray:
  """First column of each level on the canvas; one column is left free after each level."""
  return np.cumsum([0] + [shape[1] + 1 for shape in shapes[:-1]]).astype(np.int32)


def _canvas_size(shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
  return max(s[0] for s in shapes) + 1, sum(s[1] + 1 for s in shapes)


def _canvas(levels: Sequence[Array]) -> Array:
  """[b h w c] of all levels [b h w c] side by side, with zeros between and below."""
  height, _ = _canvas_size([level.shape[1:] for level in levels])
  return jnp.concatenate(
    [jnp.pad(level, [(0, 0), (0, height - level.shape[1]), (0, 1), (0, 0)]) for level in levels],
    2,
  )


def _samples(
  shapes: Sequence[Sequence[int]],
  boxes: Array,
  size: int,
  strides: Sequence[int],
  ratio: int,
  aligned: bool,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
  """Where samples lie on the canvas, once for rows and once for columns.

  Returns:
    (index int32 [p s*ratio] of the cell before each sample; weights [p s*ratio 2] of that cell and
    the next), for rows, then for columns.
  """
  level = region_levels(boxes, strides)
  scaled = boxes / jnp.asarray(strides, jnp.float32)[level][:, None] - (0.5 if aligned else 0.0)
  low, length = scaled[:, :2], scaled[:, 2:] - scaled[:, :2]
  length = length if aligned else jnp.maximum(length, 1.0)
  steps = (np.arange(size * ratio, dtype=np.float32) + 0.5) / (size * ratio)
  axes = []
  for axis, starts in enumerate((np.zeros(len(shapes), np.int32), _starts(shapes))):
    cells = jnp.asarray([shape[axis] for shape in shapes])[level][:, None]
    at = low[:, axis, None] + length[:, axis, None] * steps[None]
    inside = ((at >= -1) & (at <= cells))[..., None]
    at = jnp.clip(at, 0, cells - 1)
    cell = jnp.floor(at).astype(jnp.int32)
    after = at - cell
    weights = jnp.where(inside, jnp.stack([1 - after, after], -1), 0)
    axes.append((cell + jnp.asarray(starts)[level][:, None], weights))
  return axes[0], axes[1]


def roi_pool(levels: Sequence[Array], boxes: Array, *, size: int, strides: Sequence[int]) -> Array:
  """Maximum over size x size bins whose edges are rounded to whole cells.

  RoIPool (Girshick 2015, arXiv:1504.08083, section 2.1), which RoIAlign improves on. Equal to
  torchvision's `roi_pool`. It looks at whole maps, region by region, and is slow.

  Args:
    levels: feature maps [h w c], the finest first.
    boxes: regions [p 4] in pixels of the image.
    size: number of bins s along either axis.
    strides: strides of the levels.

  Returns:
    [p s s c] of the features' type; 0 where a bin has no cell.
  """
  batch = [level[None] for level in levels]
  return _pool(batch, boxes, jnp.zeros(len(boxes), jnp.int32), size=size, strides=strides)


def _pool(
  levels: Sequence[Array], boxes: Array, image: Array, *, size: int, strides: Sequence[int]
) -> Array:
  """`roi_pool` of the regions of a batch: levels [b h w c], image int32 [p]."""
  canvas = _canvas(levels)
  first, last = _bin_edges([x.shape[1:] for x in levels], boxes, size, strides)

  @jax.checkpoint
  def pool_region(region: tuple[Array, Array, Array]) -> Array:
    first, last, image = region
    x = canvas[image]
    for axis in range(2):
      cell = jnp.arange(x.shape[axis])[None]
      in_bin = (cell >= first[:, axis, None]) & (cell < last[:, axis, None])
      x = jnp.moveaxis(x, axis, 0)[None]
      x = jnp.where(in_bin[:, :, None, None], x, -jnp.inf)
      # By position: the gradient of a maximum compares values that XLA may have rounded otherwise.
      x = jnp.take_along_axis(x, jnp.argmax(x, 1, keepdims=True), 1)[:, 0]
      x = jnp.moveaxis(x, 0, axis)
    return jnp.where(jnp.isfinite(x), x, 0)

  return lax.map(pool_region, (first, last, image))


def _bin_edges(
  shapes: Sequence[Sequence[int]], boxes: Array, size: int, strides: Sequence[int]
) -> tuple[Array, Array]:
  """First cell of each bin on the canvas, and the cell after its last; int32 [p s 2] both."""
  level = region_levels(boxes, strides)
  scaled = boxes / jnp.asarray(strides, jnp.float32)[level][:, None]
  scaled = jnp.floor(scaled + 0.5).astype(jnp.int32)
  low, cells = scaled[:, :2], jnp.maximum(scaled[:, 2:] - scaled[:, :2] + 1, 1)
  sizes = jnp.asarray([shape[:2] for shape in shapes])[level][:, None]
  columns = jnp.asarray(_starts(shapes))[level]
  origin = jnp.stack([jnp.zeros_like(columns), columns], -1)[:, None]
  bins = jnp.arange(size)[None, :, None]
  first = bins * cells[:, None] // size
  last = cdiv((bins + 1) * cells[:, None], size)

  def place(edge: Array) -> Array:
    return jnp.clip(edge + low[:, None], 0, sizes) + origin

  return place(first), place(last)


def pool_regions(
  levels: Sequence[Array],
  boxes: Array,
  image: Array,
  *,
  size: int,
  strides: Sequence[int],
  count: Array | None = None,
  rounded: bool = False,
  aligned: bool = False,
) -> Array:
  """Features of the regions of a batch of images.

  Args:
    levels: feature maps [b h w c], the finest first.
    boxes: regions [p 4] in pixels of the image.
    image: int32 [p], the image of each region.
    size: number of bins s along either axis.
    strides: strides of the levels.
    count: int32, number of regions to pool, the first ones; None: all.
    rounded: whether to use `roi_pool` instead of `roi_align`.
    aligned: whether `roi_align` places cells exactly.

  Returns:
    [p s s c] of the features' type; from `count` on, whatever is cheapest.
  """
  if rounded:
    return _pool(levels, boxes, image, size=size, strides=strides)
  count = jnp.int32(len(boxes)) if count is None else count
  return _align(tuple(levels), boxes, image, count, size, tuple(strides), 2, aligned)


def crop_masks(masks: Array, frames: Array, boxes: Array, size: int) -> Array:
  """Resamples each object's mask to size x size bins of a box.

  Args:
    masks: uint8 [p m m], coverage of each cell of the frame, 0 to 255.
    frames: boxes [p 4] that the masks cover.
    boxes: boxes [p 4] to resample to.
    size: number of bins s along either axis.

  Returns:
    float32 [p s s] in [0, 1]: the share of each bin that is covered, if coverage is even within
    each cell; there is nothing outside of the frame.
  """
  cells = masks.shape[-1]
  unit = jnp.maximum(frames[:, 2:] - frames[:, :2], 1e-3) / cells
  low, high = (boxes[:, :2] - frames[:, :2]) / unit, (boxes[:, 2:] - frames[:, :2]) / unit
  steps = np.linspace(0, 1, size + 1, dtype=np.float32)[None, :, None]
  edges = low[:, None] + (high - low)[:, None] * steps  # edges of the bins, in cells
  start, end = edges[:, :-1, :, None], edges[:, 1:, :, None]
  grid = np.arange(cells, dtype=np.float32)[None, None, None]
  shared = jnp.minimum(end, grid + 1) - jnp.maximum(start, grid)
  weights = jnp.maximum(shared, 0) / jnp.maximum(end - start, 1e-6)
  coverage = masks.astype(jnp.float32) / 255
  return jnp.einsum("piy,pyx,pjx->pij", weights[:, :, 0], coverage, weights[:, :, 1])
