"""Points in blocks of near ones, and the pairs of blocks whose kernel is worth computing.

Points are halved again and again along their widest feature, as in a k-d tree. The boxes around
the blocks are smaller than those of as many points along a space-filling curve.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.arithmetic import cdiv
from jseg.types import Array

POINTS = 768
"""About how many points a block has."""
MULTIPLE = 128
"""What the number of points of a block is a multiple of, as TPUs compute by tiles."""


class Blocks(NamedTuple):
  """n points in r blocks of b places each.

  Attributes:
    order: int32 [r b], number of the point at each place; n - 1 where there is none.
    place: int32 [n], place of each point.
    used: bool [r b], whether there is a point at a place, and it counts.
    keep: bool [r r], symmetric: whether the kernel of two blocks is computed.
  """

  order: Array
  place: Array
  used: Array
  keep: Array


def make_blocks(features: Array, valid: Array, tolerance: float) -> Blocks:
  """Puts points into blocks, and finds pairs of blocks that are too far apart to matter.

  Args:
    features: [n d] in standard deviations.
    valid: [n], 0 for points that don't count.
    tolerance: static; entries of the kernel's matrix that are left out sum up to at most this share
      of the sum of their row. With 0 only entries that float32 rounds to 0 are left out.
  """
  n = len(features)
  depth = max(round(math.log2(n / POINTS)), 0)
  count = 1 << depth
  size = cdiv(cdiv(n, count), MULTIPLE) * MULTIPLE
  features = lax.stop_gradient(features)
  beyond = count * size - n
  padded = jnp.pad(features, ((0, beyond), (0, 0)), mode="edge")
  counts = jnp.pad(valid > 0, (0, beyond))
  at = _halve(padded, counts, depth, size)
  sequence = lax.iota(jnp.int32, len(at))
  # Of one block it would be a scatter of places by themselves, on which the compiler for TPUs dies.
  place = jnp.zeros_like(at).at[at].set(sequence, unique_indices=True)[:n] if depth else at[:n]
  used = counts[at]
  keep = _kept(padded[at].reshape(count, size, -1), used.reshape(count, size), tolerance)
  return Blocks(jnp.minimum(at, n - 1), place, used, keep)


def _halve(features: Array, used: Array, depth: int, size: int) -> Array:
  """Orders points [m d] into 2^depth blocks of a size; those that don't count come last.

  By counting, as compiling a sort of all points for a TPU takes minutes.
  """
  count = 1 << depth
  features = features.astype(jnp.float32)

  def halve_each(level: Array, at: Array) -> Array:
    f, counts = features[at].reshape(count, size, -1), used[at].reshape(count, size)
    part = lax.iota(jnp.int32, count) >> (depth - level)  # of each block
    low, high = _boxes(f, counts)
    widest = jax.ops.segment_max(high, part, count) - jax.ops.segment_min(low, part, count)
    value = jnp.take_along_axis(f, widest.argmax(1)[part][:, None, None], 2)[..., 0]
    value = jnp.where(counts, _ordered(value), np.iinfo(np.int32).max)
    half = (size * count // 2) >> level

    def number(which: Array) -> Array:
      return jax.ops.segment_sum(which.sum(1), part, count)

    border = _least(lambda t: number(value <= t[part][:, None]) >= half, count)[part][:, None]
    below, equal = value < border, value == border
    missing = (half - number(below))[part][:, None]
    left = below | (equal & (_ranks(equal, part) < missing))
    first = ((part << (depth - level)) * size)[:, None]
    to = first + jnp.where(left, _ranks(left, part), half + _ranks(~left, part))
    return jnp.zeros_like(at).at[to.reshape(-1)].set(at, unique_indices=True)

  return lax.fori_loop(0, depth, halve_each, lax.iota(jnp.int32, len(features)))


def _ordered(x: Array) -> Array:
  """int32 in the order of float32 [...]."""
  bits = lax.bitcast_convert_type(x + 0, jnp.int32)  # -0 becomes 0.
  return jnp.where(bits < 0, ~bits ^ np.int32(-(2**31)), bits)


def _least(holds: Callable[[Array], Array], n: int) -> Array:
  """The least int32 [n] for which a condition holds that larger numbers keep; at most the largest.

  Args:
    holds: int32 [n] -> bool [n].
    n: number of searches.
  """

  def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = (low & high) + ((low ^ high) >> 1)
    found = holds(middle)
    return jnp.where(found, low, middle + 1), jnp.where(found, middle, high)

  limits = np.iinfo(np.int32)
  bounds = jnp.full(n, limits.min, jnp.int32), jnp.full(n, limits.max, jnp.int32)
  return lax.fori_loop(0, 32, halve, bounds)[1]


def _ranks(which: Array, part: Array) -> Array:
  """How many places of the same part are in `which` [r b] before each; parts are runs of blocks."""
  which = which.astype(jnp.int32)
  within = jnp.cumsum(which, 1)
  sums = within[:, -1]
  before = jnp.cumsum(sums) - sums
  start = jax.ops.segment_min(before, part, len(part))[part]
  return within - which + (before - start)[:, None]


def _boxes(points: Array, used: Array) -> tuple[Array, Array]:
  """Corners [r d] of the boxes around the used points of blocks [r b d]."""
  used = used[..., None]
  low = jnp.where(used, points, jnp.inf).min(1)
  return low, jnp.where(used, points, -jnp.inf).max(1)


def _kept(points: Array, used: Array, tolerance: float) -> Array:
  """Which pairs of blocks [r b d] are computed: bool [r r]."""
  low, high = _boxes(points, used)
  squares = jnp.zeros((len(points),) * 2, points.dtype)
  for a, b in zip(low.T, high.T, strict=True):
    gap = jnp.maximum(a[:, None] - b[None], a[None] - b[:, None])
    squares = squares + jnp.square(jnp.maximum(gap, 0))
  most = used.sum(1)[None] * jnp.exp(-0.5 * squares)  # What a block adds to a row's sum, at most.
  least = lax.map(lambda block: _least_sum(*block), (points, used))
  size = _ordered(most.astype(jnp.float32))

  def matters(limit: Array) -> Array:
    return jnp.where(size <= limit[:, None], most, 0).sum(1) > tolerance * least

  skip = size < _least(matters, len(points))[:, None]
  return ~(skip & skip.T) | jnp.eye(len(points), dtype=bool)


def _least_sum(points: Array, used: Array) -> Array:
  """The least sum over a block's rows of the kernel's matrix [b b]."""
  sums = jnp.where(used[None], kernel(points.T, points.T), 0).sum(1)
  return jnp.where(used, sums, jnp.inf).min()


def kernel(a: Array, b: Array) -> Array:
  """The matrix exp(-|a_i - b_j|^2 / 2) of points [d n] and [d m]."""
  # Not |a|^2 + |b|^2 - 2 ab, which cancels badly where colors are many deviations apart.
  squares = [jnp.square(p[:, None] - q[None]) for p, q in zip(a, b, strict=True)]
  return jnp.exp(-0.5 * functools.reduce(jnp.add, squares))
