"""Resampling as matrix products: without gathers, both it and its gradient are fast.

Only `resize_to`, which nothing is differentiated through, gathers on a CPU.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.types import Array, InputError

_LARGEST = float(np.finfo(np.float32).max)


def resize_bilinear(x: Array, size: Sequence[int], *, align_corners: bool = False) -> Array:
  """Linear interpolation along every spatial dimension, without antialiasing.

  Equal to PyTorch's `interpolate(mode="bilinear")` under either convention for corners.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    size: (h', w') of the output.
    align_corners: True: the centers of corner pixels coincide, output i lying at
      i (h - 1) / (h' - 1). False: the corners themselves do: (i + .5) h / h' - .5, clamped.

  Returns:
    [b h' w' c] of x's dtype; computed in float32.
  """
  y = x.astype(jnp.float32)
  for axis, (n, out) in enumerate(zip(x.shape[1:-1], size, strict=True), 1):
    if n != out:
      y = apply_axis(linear_weights(n, out, align_corners), y, axis)
  return y.astype(x.dtype)


def resize_nearest(x: Array, size: Sequence[int]) -> Array:
  """Nearest neighbor: output i takes input floor(i h / h'), PyTorch's `mode="nearest"`.

  Args:
    x: [b h w c], or with any other number of spatial dimensions; of any dtype.
    size: (h', w') of the output.

  Returns:
    [b h' w' c] of x's dtype.
  """
  for axis, (n, out) in enumerate(zip(x.shape[1:-1], size, strict=True), 1):
    if out % n == 0:
      x = jnp.repeat(x, out // n, axis)
    else:
      x = jnp.take(x, np.arange(out) * n // out, axis)
  return x


def resize_to(
  logits: Array,
  size: Array,
  out_size: Array,
  canvas: tuple[int, int],
  rows: tuple[Array | int, int] | None = None,
) -> Array:
  """Resamples the valid corner of one padded map to another size, all sizes dynamic.

  One compiled program serves images of all sizes. Pixel centers are at half-integers and samples
  beyond the valid part are clamped to its edge, so what lies in the padding never matters.

  Args:
    logits: [H W k], of which the top left (h, w) are valid.
    size: int [2], (h, w), each at least 1.
    out_size: int [2], (h', w') to which (h, w) is resampled.
    canvas: static (H', W') of the result.
    rows: (first, count): computes only these rows of the canvas, so that a large result can be
      computed in blocks; first may be dynamic, count is static.

  Returns:
    float32 [H' W' k], or [count W' k]; what lies beyond (h', w') repeats the last row and column.

  Raises:
    InputError: H H' or W W' is 2^30 or more.
  """
  for length, other in zip(logits.shape, canvas, strict=False):
    if length * other >= 1 << 30:
      raise InputError(
        f"logits of {logits.shape[:2]} can't be resampled to {tuple(canvas)}: {length} x {other} "
        "must be below 2^30; show the image in windows"
      )
  first, count = (0, canvas[0]) if rows is None else rows
  down = _between(first + jnp.arange(count), size[0], out_size[0])
  across = _between(jnp.arange(canvas[1]), size[1], out_size[1])
  # On a CPU two rows are faster taken than found by a product with all; other chips like products.
  multiplied = functools.partial(_multiplied, size)
  x = logits.astype(jnp.float32)
  return lax.platform_dependent(x, down, across, cpu=_taken, default=multiplied)


def pad_to_multiple(x: Array, stride: int) -> Array:
  """Pads [b h w c] with zeros, below and to the right, so that maps halve evenly down to a stride.

  Args:
    x: image, or with any other number of spatial dimensions.
    stride: number of which every padded size is a multiple.
  """
  return jnp.pad(x, [(0, 0), *((0, -n % stride) for n in x.shape[1:-1]), (0, 0)])


def apply_axis(weights: Array | np.ndarray, x: Array, axis: int) -> Array:
  """Multiplies dimension `axis` of x, of length n, by weights [out n]."""
  # A batched product leaves every dimension in its place, where a contraction over a middle
  # dimension would have to transpose; it also keeps full precision on GPU and TPU.
  before, after = x.shape[:axis], x.shape[axis + 1 :]
  flat = x.reshape(math.prod(before), x.shape[axis], math.prod(after))
  y = jnp.einsum("on,bnc->boc", weights, flat, precision=lax.Precision.HIGHEST)
  return y.reshape(*before, weights.shape[0], *after)


def linear_weights(n: int, out: int, align_corners: bool) -> np.ndarray:
  """Weights float32 [out n] of the two nearest inputs of each output, as in `resize_bilinear`."""
  i = np.arange(out)
  at = i * (n - 1) / max(out - 1, 1) if align_corners else (i + 0.5) * n / out - 0.5
  at = np.clip(at, 0, n - 1)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)[None])).astype(np.float32)


def _between(i: Array, n: Array, out: Array) -> tuple[Array, Array, Array]:
  """Which inputs outputs i lie between, of n that are resampled to `out`.

  Returns:
    int32 [len(i)], the input before; int32, the one after; float32, how far it is to the latter,
    in [0, 1).
  """
  # In whole numbers, at most 2 n out: whether a quotient and a difference are rounded together
  # depends on the program, and evaluation and prediction are to decide every near tie alike.
  at = jnp.clip((2 * i + 1) * n - out, 0, 2 * out * (n - 1))
  before = at // (2 * out)
  share = (at - before * 2 * out).astype(jnp.float32) * (0.5 / out.astype(jnp.float32))
  return before, jnp.minimum(before + 1, n - 1), _rounded(share)


def _rounded(product: Array) -> Array:
  """A product that isn't rounded together with the sum that it goes into, on any compiler."""
  return product.clip(-_LARGEST, _LARGEST)


_Between = tuple[Array, Array, Array]


def _taken(x: Array, down: _Between, across: _Between) -> Array:
  """Interpolates x [H W k] between rows and between columns."""
  for axis, (before, after, share) in enumerate((down, across)):
    weight = jnp.expand_dims(share, [n for n in range(x.ndim) if n != axis])
    first, second = (jnp.take(x, index, axis, mode="clip") for index in (before, after))
    x = _rounded(first * (1 - weight)) + _rounded(second * weight)
  return x


def _multiplied(size: Array, x: Array, down: _Between, across: _Between) -> Array:
  """`_taken`, as products with matrices of weights; only the top left `size` of x counts."""
  height, width, k = x.shape
  inside = (jnp.arange(height) < size[0])[:, None] & (jnp.arange(width) < size[1])[None]
  # A weight of 0 times an infinity is not 0.
  x = jnp.where(inside[..., None], x, 0)
  x = jnp.dot(_weights(down, height), x.reshape(height, -1), precision=lax.Precision.HIGHEST)
  return apply_axis(_weights(across, width), x.reshape(-1, width, k), 1)


def _weights(between: _Between, length: int) -> Array:
  """Weights float32 [outputs length] of all inputs."""
  before, after, share = (part[:, None] for part in between)
  index = jnp.arange(length)[None]
  return jnp.where(index == before, 1 - share, 0) + jnp.where(index == after, share, 0)
