"""Pooling and its inverse, in forms chosen by platform.

The gradient of XLA's own pooling is a select-and-scatter, some thirty times slower on CPU than
the forward pass; so gradients are elementwise work there. On a TPU strided slices and dimensions
of length 2 cost copies of whole maps, and XLA's windows none: a window over a map that is spread
out by its stride also repeats each value over the pixels it came from.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.nn.cut import cut
from jseg.nn.once import traced_once
from jseg.types import Array


@traced_once("window", "stride", "padding", "ceil")
def max_pool(
  x: Array, window: int = 2, stride: int | None = None, *, padding: int = 0, ceil: bool = False
) -> Array:
  """Maximum over square (cubic) windows. Sizes follow PyTorch.

  The gradient goes to the pixel that holds the maximum. In a tie the first pixel wins, as in
  PyTorch and Caffe; where windows overlap, the first of a row and then the first row.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    window: edge of the window in pixels.
    stride: distance between windows; None: the window, so that they tile the map.
    padding: number of pixels of minus infinity on every side.
    ceil: whether a last window that hangs over the edge counts. Without it odd rows are dropped.

  Returns:
    [b h' w' c] with h' = floor or ceil((h + 2 padding - window) / stride) + 1; with ceil, a
    window that would start beyond the map and its first padding is left out.
  """
  stride = window if stride is None else stride
  outs, edges = _windows(x.shape[1:-1], window, stride, padding, ceil)
  x = _pad(x, -jnp.inf, edges)
  native = functools.partial(_window_max, window=window, stride=stride)
  if stride == window:
    return lax.platform_dependent(
      x, tpu=native, default=lambda x: _tiled_max_with_indices(x, window)[0]
    )
  slide = functools.partial(_slide, larger, outs=outs, window=window, stride=stride)
  return lax.platform_dependent(x, tpu=native, default=slide)


def max_pool_with_indices(x: Array, window: int = 2, *, ceil: bool = False) -> tuple[Array, Array]:
  """Maximum over windows that tile the map, and where in each window it lies.

  The gradient goes to that pixel alone. In a tie the first pixel wins, as in PyTorch and Caffe.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    window: edge of the window in pixels, and the distance between windows.
    ceil: whether a last window that hangs over the edge counts, as in Caffe and SegNet; what lies
      beyond the edge is minus infinity. Without it odd rows and columns are dropped.

  Returns:
    The maxima [b h' w' c] with h' = floor or ceil(h / window), and their positions, uint8
    [b h' w' c]: row by row, so 0 1 above 2 3 where the window is 2. `max_unpool` takes both.
  """
  chex.assert_scalar_in(window ** (x.ndim - 2), 1, 256)  # positions are uint8
  _, edges = _windows(x.shape[1:-1], window, window, 0, ceil)
  return _tiled_max_with_indices(_pad(x, -jnp.inf, edges), window)


def max_unpool(
  x: Array, indices: Array, size: Sequence[int] | None = None, *, window: int = 2
) -> Array:
  """Puts each value where its maximum was found, and zeros elsewhere (SegNet, arXiv:1511.00561).

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    indices: uint8 of x's shape, from `max_pool_with_indices`.
    size: (h', w') of the map that was pooled; None: (window h, window w). Where sizes were odd the
      result is cropped, or padded with zeros, below and to the right.
    window: edge of the pooling's window in pixels.

  Returns:
    [b h' w' c].
  """
  chex.assert_equal_shape([x, indices])
  y = _unpool(x, indices, window)
  return _pad(y, 0, [(0, n - m) for n, m in zip(size or y.shape[1:-1], y.shape[1:-1], strict=True)])


def _unpool(x: Array, indices: Array, window: int) -> Array:
  """`max_unpool` to the size that the windows tile."""
  rank = x.ndim - 2

  def tiled(x: Array, indices: Array) -> Array:
    inner = tuple(range(2, 2 * rank + 1, 2))
    positions = np.arange(window**rank, dtype=np.uint8).reshape((1, *(1, window) * rank, 1))
    here = jnp.expand_dims(indices, inner) == positions
    y = jnp.where(here, jnp.expand_dims(x, inner), jnp.zeros((), x.dtype))
    return y.reshape(x.shape[0], *(n * window for n in x.shape[1:-1]), x.shape[-1])

  def windows(x: Array, indices: Array) -> Array:
    places = [np.arange(n * window, dtype=np.int32) % window for n in x.shape[1:-1]]
    position = functools.reduce(lambda a, b: np.add.outer(a * window, b), places)
    here = _repeat(indices.astype(jnp.int32), window) == position[None, ..., None]
    return jnp.where(here, _repeat(x, window), jnp.zeros((), x.dtype))

  return lax.platform_dependent(x, indices, tpu=windows, default=tiled)


def _window_max(x: Array, window: int, stride: int) -> Array:
  """Maximum over windows by XLA's own pooling; in a tie the first pixel gets the gradient."""
  rank = x.ndim - 2
  size, strides = (1, *(window,) * rank, 1), (1, *(stride,) * rank, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, "VALID")


def _repeat(x: Array, window: int) -> Array:
  """Repeats each pixel over a window: of x spread out, every window holds one value and zeros."""
  rank = x.ndim - 2
  return lax.reduce_window(
    x,
    np.zeros((), x.dtype)[()],
    lax.add,
    (1, *(window,) * rank, 1),
    (1,) * x.ndim,
    [(0, 0), *((window - 1, window - 1),) * rank, (0, 0)],
    base_dilation=(1, *(window,) * rank, 1),
  )


@traced_once("window", "stride", "padding", "ceil", "count_padding")
def avg_pool(
  x: Array,
  window: int,
  stride: int = 1,
  *,
  padding: int = 0,
  ceil: bool = False,
  count_padding: bool = True,
) -> Array:
  """Mean over square (cubic) windows. Sizes are those of `max_pool`.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    window: edge of the window in pixels.
    stride: distance between windows.
    padding: number of zeros on every side; at most half the window.
    ceil: whether a last window that hangs over the edge counts.
    count_padding: whether padding counts as pixels of value 0 (Caffe, and PyTorch's default), or
      the mean is that of the pixels inside of the map. What hangs over the padding never counts.

  Returns:
    [b h' w' c] of x's dtype; computed in float32.
  """
  outs, edges = _windows(x.shape[1:-1], window, stride, padding, ceil)
  y = _pad(x.astype(jnp.float32), 0, edges)
  if stride == window:
    y = _tiles(y, window).sum(tuple(range(2, 2 * (x.ndim - 2) + 1, 2)))
  else:
    y = _slide(operator.add, y, outs, window, stride)
  border = padding if count_padding else 0
  lengths = []
  for n, out in zip(x.shape[1:-1], outs, strict=True):
    first = np.arange(out) * stride - padding
    lengths.append(np.minimum(first + window, n + border) - np.maximum(first, -border))
  counts = functools.reduce(np.multiply.outer, lengths).astype(np.float32)
  return (y / counts[None, ..., None]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled_max_with_indices(x: Array, window: int) -> tuple[Array, Array]:
  """Maximum and its position over windows that tile x exactly."""
  first, *others = (
    cut(x, slice(None), *(slice(start, None, window) for start in offset))
    for offset in itertools.product(range(window), repeat=x.ndim - 2)
  )
  y, indices = first, jnp.zeros(first.shape, jnp.uint8)
  for position, other in enumerate(others, 1):
    indices = jnp.where(other > y, jnp.uint8(position), indices)
    y = jnp.maximum(y, other)
  return y, indices


def _tiled_max_with_indices_forward(x: Array, window: int) -> tuple[tuple[Array, Array], Array]:
  y, indices = _tiled_max_with_indices(x, window)
  return (y, indices), indices


def _tiled_max_with_indices_backward(
  window: int, indices: Array, dy: tuple[Array, Array]
) -> tuple[Array]:
  return (max_unpool(dy[0], indices, window=window),)


_tiled_max_with_indices.defvjp(_tiled_max_with_indices_forward, _tiled_max_with_indices_backward)


def _windows(
  size: Sequence[int], window: int, stride: int, padding: int, ceil: bool
) -> tuple[list[int], list[tuple[int, int]]]:
  """Number of windows along each dimension, and (before, after) of the pixels they need."""
  outs, edges = [], []
  for n in size:
    out = (n + 2 * padding - window + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (out - 1) * stride >= n + padding:
      out -= 1
    outs.append(out)
    edges.append((padding, (out - 1) * stride + window - n - padding))
  return outs, edges


def _pad(x: Array, value: float, edges: Sequence[tuple[int, int]]) -> Array:
  """Pads the spatial dimensions with a value, or crops where (before, after) are negative."""
  if not any(lo or hi for lo, hi in edges):
    return x
  config = [(0, 0, 0), *((lo, hi, 0) for lo, hi in edges), (0, 0, 0)]
  return lax.pad(x, jnp.array(value, x.dtype), config)


@jax.custom_jvp
def larger(a: Array, b: Array) -> Array:
  """The larger of each two values; a, and all of the gradient to it, where they are equal.

  `jnp.maximum` compares its result with both in the backward pass. XLA may compute one of them
  anew there and round it otherwise, and then the gradient goes to neither.
  """
  return jnp.maximum(a, b)


@larger.defjvp
def _larger_jvp(values: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
  a, b = values
  return jnp.maximum(a, b), jnp.where(b > a, tangents[1], tangents[0])


def _slide(
  reduce: Callable[[Array, Array], Array], x: Array, outs: Sequence[int], window: int, stride: int
) -> Array:
  """Reduces over overlapping windows, one dimension after the other."""
  for axis, out in enumerate(outs, 1):
    last = (out - 1) * stride + 1
    parts = [lax.slice_in_dim(x, offset, offset + last, stride, axis) for offset in range(window)]
    x = functools.reduce(reduce, parts)
  return x


def _tiles(x: Array, window: int) -> Array:
  """[b h w c] as [b h/window window w/window window c]."""
  size = itertools.chain.from_iterable((n // window, window) for n in x.shape[1:-1])
  return x.reshape(x.shape[0], *size, x.shape[-1])
