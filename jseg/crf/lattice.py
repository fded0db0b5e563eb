"""Gaussian filtering of scattered points on the permutohedral lattice.

Adams, Baek and Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral Lattice".
Points of a d-dimensional feature space are spread on the d + 1 corners of the simplex they lie in
(splat), the corners are blurred by [.5 1 .5] along each of the lattice's d + 1 axes, and read back
(slice). The cost grows linearly in the number of points and quadratically in d.

`jseg.crf.lattice_tables` finds which corners exist and which are neighbors.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf.stages import staged, stored
from jseg.types import Array

FIRST, MORE = 4, 8
"""Number of points of a vertex that are summed up at first, and of each further group of points."""


class Corners(NamedTuple):
  """The simplices of n points in a d-dimensional space. D = d + 1.

  Vertex k of a simplex has the coordinates D (corner_i - [rank_i > d - k]) + k, where `order` lists
  the coordinates by rank.

  Attributes:
    weight: [D n] barycentric weights; the only part with a derivative.
    corner: int32 [D n] the simplex's corner of remainder class 0, divided by D.
    order: int32 [D n] number of the coordinate of each rank.
  """

  weight: Array
  corner: Array
  order: Array


class Lattice(NamedTuple):
  """Vertices around n points. After them comes a sink, whose value stays 0.

  Attributes:
    vertex: int32 [D n] number of each corner's vertex; the sink where there is no room for it.
    neighbors: int32 [D 2 capacity + 1] vertices before and after along each axis, or the sink.
    first: int32 [4 capacity + 1] which corners, numbered k n + i, lie on a vertex, the first four;
      D n where there are fewer.
    more: int32 [8 r] any others, in groups of one vertex.
    owner: int32 [r] that vertex; the sink where a group is empty.
    overflow: bool [], whether vertices did not fit: results are wrong then.
  """

  vertex: Any
  neighbors: Any
  first: Any
  more: Any
  owner: Any
  overflow: Any


def barycentric(features: Array) -> Corners:
  """Simplex of each point, and its position in there.

  Args:
    features: [n d], in units of the Gaussian's standard deviation.
  """
  d = features.shape[1]
  size = d + 1
  unit = size * math.sqrt(2 / 3)

  def scale(*f: Array) -> list[Array]:
    return [f[j - 1] * (unit / math.sqrt(j * (j + 1))) for j in range(1, size)]

  def elevate(*scaled: Array) -> tuple[list[Array], list[Array]]:
    elevated = []
    above = jnp.zeros_like(scaled[0])
    for j in range(d, 0, -1):
      c = scaled[j - 1]
      elevated.append(above - _times(j, c))
      above = above + c
    elevated = [above, *elevated[::-1]]
    return elevated, [jnp.round(lax.stop_gradient(e) / size).astype(jnp.int32) for e in elevated]

  def sort(elevated: list[Array], corner: list[Array]) -> tuple[list[Array], list[Array]]:
    rest = [e - r.astype(e.dtype) * size for e, r in zip(elevated, corner, strict=True)]
    rank = [functools.reduce(jnp.add, corner)] * size
    for a in range(size):
      for b in range(a + 1, size):
        less = (rest[a] < rest[b]).astype(jnp.int32)
        rank[a] = rank[a] + less
        rank[b] = rank[b] + 1 - less
    wrap = [(r < 0).astype(jnp.int32) - (r > d).astype(jnp.int32) for r in rank]
    return (
      [r + size * u for r, u in zip(rank, wrap, strict=True)],
      [r + u for r, u in zip(corner, wrap, strict=True)],
    )

  def weigh(
    elevated: list[Array], corner: list[Array], rank: list[Array]
  ) -> tuple[list[Array], list[Array]]:
    # Ranks are a permutation of 0..d; a sum of selections is quicker than a sort.
    def by_rank(values: Sequence[Array | int], t: int) -> Array:
      chosen = [jnp.where(r == t, x, 0) for r, x in zip(rank, values, strict=True)]
      return functools.reduce(jnp.add, chosen)

    v = [e / size - r.astype(e.dtype) for e, r in zip(elevated, corner, strict=True)]
    at = [by_rank(v, t) for t in range(size)]
    weight = [1 + at[d] - at[0], *(at[d - k] - at[size - k] for k in range(1, size))]
    return weight, [by_rank(list(range(size)), t).astype(jnp.int32) for t in range(size)]

  # A product and a sum in one program may be rounded together, or not, as the compiler and the CPU
  # like it. Points that lie between two simplices, as those of whole numbers do, would fall into
  # one or the other, so products are stored before they are added up.
  scaled = staged(scale, *(features[:, j] for j in range(d)))
  elevated, corner = staged(elevate, *scaled)
  rank, corner = staged(sort, lax.stop_gradient(elevated), corner)
  weight, order = staged(weigh, elevated, corner, rank)
  return Corners(jnp.stack(weight), jnp.stack(corner), jnp.stack(order))


def _times(j: int, x: Array) -> Array:
  """Returns j x by sums alone; up to j = 6 they round once, as the product does."""
  powers = [x]
  while 2 ** len(powers) <= j:
    powers.append(powers[-1] + powers[-1])
  return functools.reduce(jnp.add, [p for i, p in enumerate(powers) if j >> i & 1])


@jax.custom_vjp
def lattice_filter(x: Array, splat: Array, cut: Array, lattice: Lattice) -> Array:
  """Blurs values [n c] given at the lattice's points.

  The kernel is a matrix of rank at most the number of vertices: cut @ blur @ splat^T.

  Args:
    x: [n c] values.
    splat: [D n] weights by which values are spread: barycentric weights times whatever
      normalizes the kernel.
    cut: [D n] the same for reading them.
    lattice: the tables.

  Returns:
    [n c]. Its derivative by x is the transposed filter; that by the weights is exact too, which is
    the almost everywhere existing derivative of the filter by the features. It knows nothing of
    points that move into another simplex.
  """
  # Read in a stage of its own: fused with what comes next, it is several times slower.
  return stored(_slice, _blur(_splat(x, splat, lattice), lattice), cut, lattice)


_Saved: TypeAlias = tuple[Array, Array, Array, Lattice]


def _forward(x: Array, splat: Array, cut: Array, lattice: Lattice) -> tuple[Array, _Saved]:
  return lattice_filter(x, splat, cut, lattice), (x, splat, cut, lattice)


def _backward(saved: _Saved, g: Array) -> tuple[Array, Array, Array, Lattice]:
  x, splat, cut, lattice = saved
  back = _blur(_splat(g, cut, lattice), lattice, reverse=True)
  ahead = _blur(_splat(x, splat, lattice), lattice)
  by_splat = jnp.stack([(x * back[vertex]).sum(1) for vertex in lattice.vertex])
  by_cut = jnp.stack([(g * ahead[vertex]).sum(1) for vertex in lattice.vertex])
  none = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), lattice)
  return _slice(back, splat, lattice), by_splat, by_cut, none


lattice_filter.defvjp(_forward, _backward)


def _splat(x: Array, weight: Array, lattice: Lattice) -> Array:
  """[n c] -> [capacity + 1, c]; gathers, which run on all cores, where a scatter runs on one."""

  def added(corners: Array) -> Array:
    share = weight.reshape(-1).at[corners].get(mode="fill", fill_value=0)
    point = lax.rem(corners, np.int32(len(x)))
    terms = (_rows(x, at) * w[:, None] for at, w in zip(point, share, strict=True))
    return functools.reduce(jnp.add, terms)

  return added(lattice.first).at[lattice.owner].add(added(lattice.more), mode="promise_in_bounds")


def _blur(values: Array, lattice: Lattice, *, reverse: bool = False) -> Array:
  def along(v: Array, neighbors: Array, *, axis: int) -> Array:
    # Sliced in here, where that costs no copy.
    before, after = neighbors[axis]
    return v + 0.5 * (_rows(v, before) + _rows(v, after))

  axes = range(len(lattice.neighbors))
  for axis in reversed(axes) if reverse else axes:
    values = stored(functools.partial(along, axis=axis), values, lattice.neighbors)
  return values


def _slice(values: Array, weight: Array, lattice: Lattice) -> Array:
  """[capacity + 1, c] -> [n c]; unrolled, as one fused loop without the gathered arrays."""
  pairs = zip(lattice.vertex, weight, strict=True)
  return functools.reduce(jnp.add, (_rows(values, at) * share[:, None] for at, share in pairs))


def _rows(x: Array, at: Array) -> Array:
  return x.at[at].get(mode="promise_in_bounds", wrap_negative_indices=False)


def scale(d: int) -> float:
  """What a filtered value is multiplied by, so that the kernel's peak is about 1."""
  return 1 / (1 + math.pow(2, -d))
