"""Max pooling whose gradient is elementwise work.

The gradient of XLA's own pooling is a select-and-scatter, some thirty times slower on CPU than
the forward pass, and slow on TPU.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from jseg.types import Array


def max_pool(
  x: Array, window: int = 2, stride: int | None = None, *, padding: int = 0, ceil: bool = False
) -> Array:
  """Maximum over square (cubic) windows. Sizes follow PyTorch.

  Where several pixels of a window hold the maximum, they share the gradient in equal parts if
  windows do not overlap; if they overlap, each comparison of two equal values halves it.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    window: edge of the window in pixels.
    stride: distance between windows; None: the window, so that they tile the map.
    padding: pixels of minus infinity put on every side.
    ceil: whether a last window that hangs over the edge counts. Without it odd rows are dropped.

  Returns:
    [b h' w' c] with h' = floor or ceil((h + 2 padding - window) / stride) + 1; with ceil, a
    window that would start beyond the map and its first padding is left out.
  """
  stride = window if stride is None else stride
  edges, outs = [], []
  for n in x.shape[1:-1]:
    out = (n + 2 * padding - window + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (out - 1) * stride >= n + padding:
      out -= 1
    outs.append(out)
    edges.append((padding, (out - 1) * stride + window - n - padding, 0))
  if any(lo or hi for lo, hi, _ in edges):
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, lowest, [(0, 0, 0), *edges, (0, 0, 0)])
  if stride == window:
    return _tiled_max(x, window)
  for axis, out in enumerate(outs, 1):
    last = (out - 1) * stride + 1
    parts = [lax.slice_in_dim(x, offset, offset + last, stride, axis) for offset in range(window)]
    x = functools.reduce(jnp.maximum, parts)
  return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled_max(x: Array, window: int) -> Array:
  """Maximum over windows that tile x exactly."""
  rank = x.ndim - 2
  return _tiles(x, window).max(tuple(range(2, 2 * rank + 1, 2)))


def _tiled_max_forward(x: Array, window: int) -> tuple[Array, tuple[Array, Array]]:
  y = _tiled_max(x, window)
  return y, (x, y)


def _tiled_max_backward(window: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
  x, y = saved
  inner = tuple(range(2, 2 * (x.ndim - 2) + 1, 2))
  holds = _tiles(x, window) == jnp.expand_dims(y, inner)
  share = dy / holds.sum(inner).astype(dy.dtype)
  return (jnp.where(holds, jnp.expand_dims(share, inner), 0).reshape(x.shape),)


_tiled_max.defvjp(_tiled_max_forward, _tiled_max_backward)


def _tiles(x: Array, window: int) -> Array:
  """[b h w c] as [b h/window window w/window window c]."""
  size = itertools.chain.from_iterable((n // window, window) for n in x.shape[1:-1])
  return x.reshape(x.shape[0], *size, x.shape[-1])
