"""The exact Gaussian filter as kernels for TPUs (Pallas, Mosaic).

A step takes two blocks of points into the memory of the chip and adds the product of their kernel
matrix and the values to the sums of the first block. A TPU multiplies matrices of bfloat16 in tiles
of 128 columns: where values have few columns, their high and low bits lie side by side in one tile,
so that products have the precision of float32 at a fraction of the six passes that it takes else.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf.blocks import MULTIPLE
from jseg.types import Array

LANES = 128
"""Number of columns of a tile."""
PAIRS = 2**16
"""Number of pairs of blocks that a call takes at most; their list lies in scalar memory."""


def weighted_sums(x: Array, features: Array, keep: Array, *, interpret: bool = False) -> Array:
  """sum_j K_ij x_j, as float32 adds it up.

  Args:
    x: [r b c] values.
    features: [r b d] in standard deviations.
    keep: bool [r r], which pairs of blocks are computed.
    interpret: whether to run without a TPU, slowly.

  Returns:
    [r b c].
  """
  c = x.shape[2]
  pieces = _tiled(jnp.concatenate(_pieces(x, 3), 2))
  y = _call(_add_values, features, (), (pieces,), keep, pieces.shape[2], interpret)
  return functools.reduce(jnp.add, (y[..., i * c : (i + 1) * c] for i in range(3))).astype(x.dtype)


def by_features(
  g: Array, x: Array, features: Array, keep: Array, *, interpret: bool = False
) -> Array:
  """Derivative of sum_ij g_i K_ij x_j by the features; arguments as in `weighted_sums`.

  Returns:
    [r b d].
  """
  left, right = (jnp.concatenate(both, 2) for both in ((g, x), (x, g)))
  high, low = _pieces(left, 2)
  left = _tiled(jnp.concatenate([high, high, low], 2))
  high, low = _pieces(right, 2)
  right = _tiled(jnp.concatenate([high, low, high], 2))
  y = _call(_add_slopes, features, (left,), (right,), keep, LANES, interpret)
  return y[..., : features.shape[2]].astype(features.dtype)


def _pieces(x: Array, count: int) -> list[Array]:
  """bfloat16 arrays that sum up to x, each with 8 bits more of it."""
  x = x.astype(jnp.float32)
  pieces = []
  for _ in range(count):
    high = _high(x)
    pieces.append(high.astype(jnp.bfloat16))
    x = x - high
  return pieces


def _high(x: Array) -> Array:
  """The bits of float32 that bfloat16 has; XLA may skip a cast there and back."""
  bits = lax.bitcast_convert_type(x, jnp.int32) & np.int32(-(2**16))
  return lax.bitcast_convert_type(bits, jnp.float32)


def _tiled(x: Array) -> Array:
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % LANES)))


def _call(
  add: Callable[..., Array],
  features: Array,
  rows: Sequence[Array],
  columns: Sequence[Array],
  keep: Array,
  width: int,
  interpret: bool,
) -> Array:
  """Runs `add` on all kept pairs of blocks.

  Args:
    add: adds what a pair contributes to some points of its row.
    features: [r b d]; r is a power of two.
    rows: [r b w] arrays of which `add` gets these points.
    columns: [r b w] arrays of which it gets the block of the column.
    keep: bool [r r]; each row has a pair.
    width: number of columns of the result.
    interpret: whether to run without a TPU.

  Returns:
    float32 [r b width].
  """
  from jax.experimental import pallas as pl  # Takes longer to import than all of jseg.crf.
  from jax.experimental.pallas import tpu as pltpu

  count, size, d = features.shape
  lines = jnp.swapaxes(features.astype(jnp.float32), 1, 2)
  lines = jnp.pad(lines, ((0, 0), (0, -d % 8), (0, 0)))
  some = max(min(PAIRS // count, count), 1)
  tile = MULTIPLE * (1 + (size // MULTIPLE + 1) % 2)  # rows at a time
  bits = count.bit_length() - 1  # Mosaic divides integers only where it knows the chip.

  def kernel(numbers: Any, here: Any, there: Any, *values: Any) -> None:
    *inputs, out = values
    step = pl.program_id(0)

    @pl.when((step == 0) | (numbers[step + 1] >> bits != numbers[step] >> bits))
    def _() -> None:
      out[...] = jnp.zeros_like(out)

    for start in range(0, size, tile):
      few = pl.ds(start, tile)
      own = [x[few] for x in inputs[: len(rows)]]
      others = [x[...] for x in inputs[len(rows) :]]
      points = here[:, few].T, there[...]
      out[few] += add(points, d, *own, *others)

  def block(x: Array, index: Callable[[Any, Any], Any]) -> Any:
    return pl.BlockSpec((None, *x.shape[1:]), lambda step, numbers: (index(step, numbers), 0, 0))

  def row(step: Any, numbers: Any) -> Any:
    return numbers[0] + (numbers[step + 1] >> bits)

  def column(step: Any, numbers: Any) -> Any:
    return numbers[step + 1] & (count - 1)

  def part(first: Array) -> Array:
    kept = lax.dynamic_slice_in_dim(keep, first, some).reshape(-1)
    pairs = jnp.nonzero(kept, size=some * count, fill_value=0)[0].astype(jnp.int32)
    sums = jax.ShapeDtypeStruct((some, size, width), jnp.float32)
    return pl.pallas_call(
      kernel,
      out_shape=sums,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(kept.sum(dtype=jnp.int32),),
        in_specs=[
          block(lines, row),
          block(lines, column),
          *(block(x, row) for x in rows),
          *(block(x, column) for x in columns),
        ],
        out_specs=pl.BlockSpec(
          (None, size, width), lambda step, numbers: (numbers[step + 1] >> bits, 0, 0)
        ),
      ),
      interpret=interpret,
    )(jnp.concatenate([first[None], pairs]), lines, lines, *rows, *columns)

  return lax.map(part, jnp.arange(0, count, some, dtype=jnp.int32)).reshape(-1, size, width)


def _kernel_matrix(here: Array, there: Array, d: int) -> Array:
  """exp(-|a_i - b_j|^2 / 2) of points in rows [n 8] and in columns [8 m]."""
  squares = (jnp.square(here[:, k : k + 1] - there[k : k + 1]) for k in range(d))
  return jnp.exp(-0.5 * functools.reduce(jnp.add, squares))


def _add_values(points: tuple[Array, Array], d: int, values: Array) -> Array:
  """Products [n w] of the kernel's matrix and values [m w], whose pieces lie side by side."""
  matrix = _kernel_matrix(*points, d)
  high = _high(matrix)
  return _product(high, values) + _product(matrix - high, values)


def _product(matrix: Array, values: Array) -> Array:
  return jnp.dot(matrix.astype(jnp.bfloat16), values, preferred_element_type=jnp.float32)


def _add_slopes(points: tuple[Array, Array], d: int, left: Array, right: Array) -> Array:
  """Derivatives [n 128] by the first d columns of points."""
  here, there = points
  products = lax.dot_general(
    left, right, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  both = _kernel_matrix(here, there, d) * products
  lane = lax.broadcasted_iota(jnp.int32, (len(here), LANES), 1)
  total = jnp.zeros((len(here), LANES), jnp.float32)
  for k in range(d):
    slope = (both * (there[k : k + 1] - here[:, k : k + 1])).sum(1, keepdims=True)
    total = jnp.where(lane == k, slope, total)
  return total
