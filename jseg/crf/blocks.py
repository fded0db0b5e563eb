"""Points in blocks of near ones, and the pairs of blocks whose kernel is worth computing.

Points are halved again and again along their widest feature, as in a k-d tree. The boxes around
the blocks are smaller than those of as many points along a space-filling curve.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jseg.arithmetic import cdiv
from jseg.types import Array

POINTS = 768
"""About how many points a block has."""
MULTIPLE = 256
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
  place = jnp.zeros_like(at).at[at].set(lax.iota(jnp.int32, len(at)), unique_indices=True)[:n]
  used = counts[at]
  keep = _kept(padded[at].reshape(count, size, -1), used.reshape(count, size), tolerance)
  return Blocks(jnp.minimum(at, n - 1), place, used, keep)


def _halve(features: Array, used: Array, depth: int, size: int) -> Array:
  """Sorts points [m d] into 2^depth blocks of a size; those that don't count come last."""
  m, count = len(features), 1 << depth

  def halve_each(level: Array, at: Array) -> Array:
    f, counts = features[at], used[at]
    part = lax.iota(jnp.int32, count) >> (depth - level)
    low, high = _boxes(f.reshape(count, size, -1), counts.reshape(count, size))
    low = jax.ops.segment_min(low, part, count)
    high = jax.ops.segment_max(high, part, count)
    part = jnp.repeat(part, size)
    value = jnp.take_along_axis(f, (high - low).argmax(1)[part][:, None], 1)[:, 0]
    keys = (part, jnp.where(counts, value, jnp.inf), at)
    return lax.sort(keys, num_keys=2, is_stable=False)[2]

  return lax.fori_loop(0, depth, halve_each, lax.iota(jnp.int32, m))


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
  ascending = jnp.sort(most, 1)
  fits = jnp.cumsum(ascending, 1) <= tolerance * least[:, None]
  skip = most < jnp.where(fits, jnp.inf, ascending).min(1, keepdims=True)
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
