"""Gaussian filtering of scattered points on the permutohedral lattice.

Adams, Baek and Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral Lattice".
Points of a d-dimensional feature space are spread on the d + 1 corners of the simplex they lie in
(splat), the corners are blurred by [.5 1 .5] along each of the lattice's d + 1 axes, and read back
(slice). The cost grows linearly in the number of points and quadratically in d.

Which corners exist and what lies beside them is found by sorting: on the host by `host_lattice`
where the features are known, else by `make_lattice`, in a static size.
"""

import concurrent.futures
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf.stages import filled, staged, stored
from jseg.types import Array

FIRST, MORE = 4, 8
"""The shares of so many points are summed up at a time, at a vertex and beside it."""

_FARTHEST = 1 << 24
"""From here on corners lie closer than float32 can tell, and positions overflow 32 bits."""


class Corners(NamedTuple):
  """The simplices of n points in a d-dimensional space. D = d + 1.

  Vertex k of a simplex has the coordinates D (corner_i - [rank_i > d - k]) + k, where `order` lists
  the coordinates by rank.

  Attributes:
    weight: [D n] barycentric weights; the only part with a derivative.
    corner: int32 [D n] the simplex's corner of remainder class 0, divided by D.
    order: int32 [D n] number of the coordinate of each rank.
  """

  weight: Any
  corner: Any
  order: Any


class Lattice(NamedTuple):
  """Vertices around n points. After them comes a sink, whose value stays 0.

  Attributes:
    vertex: int32 [D n] number of each corner's vertex; the sink where there is no room for it.
    neighbours: int32 [D 2 capacity + 1] vertices before and after along each axis, or the sink.
    first: int32 [4 capacity + 1] which corners, numbered k n + i, lie on a vertex, the first four;
      D n where there are fewer.
    more: int32 [8 r] any others, in groups of one vertex.
    owner: int32 [r] that vertex; the sink where a group is empty.
    overflow: bool [], whether vertices did not fit: results are wrong then.
  """

  vertex: Any
  neighbours: Any
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

  def elevate(*f: Array) -> tuple[list[Array], list[Array]]:
    elevated = []
    above = jnp.zeros_like(f[0])
    for j in range(d, 0, -1):
      c = f[j - 1] * (unit / math.sqrt(j * (j + 1)))
      elevated.append(above - j * c)
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
    def by_rank(values: list[Any], t: int) -> Array:
      chosen = [jnp.where(r == t, x, 0) for r, x in zip(rank, values, strict=True)]
      return functools.reduce(jnp.add, chosen)

    v = [e / size - r.astype(e.dtype) for e, r in zip(elevated, corner, strict=True)]
    at = [by_rank(v, t) for t in range(size)]
    weight = [1 + at[d] - at[0], *(at[d - k] - at[size - k] for k in range(1, size))]
    return weight, [by_rank(list(range(size)), t).astype(jnp.int32) for t in range(size)]

  elevated, corner = staged(elevate, *(features[:, j] for j in range(d)))
  rank, corner = staged(sort, lax.stop_gradient(elevated), corner)
  weight, order = staged(weigh, elevated, corner, rank)
  return Corners(jnp.stack(weight), jnp.stack(corner), jnp.stack(order))


def _round_up(size: int, step: int) -> int:
  """The next multiple, so that few different programs are compiled."""
  return max(-(-size // step), 1) * step


def _digits(d: int, major: Sequence[int]) -> np.ndarray:
  """Coefficients [d D] of whole numbers that a vertex's coordinates are named by.

  Differences of coordinates that follow one another; for the features in `major` what grows with
  that feature alone, so that vertices sorted by it have their neighbours and the points that use
  them near by in memory. A remainder class has no part in any.
  """
  rows = np.eye(d, d + 1, dtype=np.int64) - np.eye(d, d + 1, 1, dtype=np.int64)
  for j in major:
    rows[j, : j + 1] = 1
    rows[j, j + 1] = -(j + 1)
  return rows


def _positions(corner: Any, rows: np.ndarray) -> tuple[list[Any], list[Any], list[Any]]:
  """The numbers of corners [D n], the least, and how many, with room for vertices around them."""
  at = [sum(int(w) * corner[i] for i, w in enumerate(row) if w) for row in rows]
  room = [2 * int(row.clip(0).sum()) for row in rows]
  low = [p.min() - r for p, r in zip(at, room, strict=True)]
  return at, low, [p.max() + r + 1 - a for p, r, a in zip(at, room, low, strict=True)]


def _strides(span: list[Any], major: Sequence[int]) -> list[Any]:
  """What each number adds to a key, those in `major` most."""
  by_number: list[Any] = [1] * len(span)
  order = [*(j for j in range(len(span)) if j not in major), *reversed(major)]
  for i, j in itertools.pairwise(order):
    by_number[j] = by_number[i] * span[i]
  return by_number


def host_lattice(
  corner: np.ndarray,
  order: np.ndarray,
  major: Sequence[int],
  place: np.ndarray | None = None,
  n: int = 0,
) -> Lattice | None:
  """The lattice of the points of `barycentric`, with room for little more than its vertices.

  Args:
    corner: int32 [D m].
    order: int32 [D m].
    major: numbers of the features by which vertices are sorted first, in that order: those that
      tell where points lie in memory.
    place: int [m], the numbers, growing, of the m points among n, where others are padding; None
      if there are no others.
    n: number of points with padding.

  Returns:
    Arrays of NumPy's. None if a vertex's position is too far off for the key it is found by.
  """
  size, m = corner.shape
  d = size - 1
  place, n = (np.arange(m), m) if place is None else (place, n)
  if corner.max() >= _FARTHEST or corner.min() <= -_FARTHEST:
    return None
  rows = _digits(d, major)
  positions, low, span = _positions(corner, rows)
  low, span = [int(x) for x in low], [int(x) for x in span]
  id_bits = max((n - 1).bit_length(), 1)
  if math.prod(span).bit_length() + id_bits > 63:
    return None
  by_number = _strides(span, major)
  strides = rows.T @ np.array(by_number)
  # The key of vertex k + 1 follows from that of k.
  keys = [
    sum((p.astype(np.int64) - a) * s for p, a, s in zip(positions, low, by_number, strict=True))
  ]
  for k in range(d):
    keys.append(keys[-1] - strides[order[d - k]])

  def unique(key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Sorting keys with the points in their low bits is several times quicker than an argsort.
    both = (key << id_bits) | place
    both.sort()
    key = both >> id_bits
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    return key[first], first, (both & ((1 << id_bits) - 1)).astype(np.int32)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    found = list(pool.map(unique, keys))
    counts = [np.diff(np.append(first, m)) for _, first, _ in found]
    starts = np.cumsum([0, *map(len, counts)])
    table = np.concatenate([key for key, _, _ in found])
    by_key = np.argsort(table, kind="stable")
    table, count = table[by_key], len(table)
    number = np.empty(count, np.int32)
    number[by_key] = np.arange(count, dtype=np.int32)
    sink = _round_up(count, 1 << max(count.bit_length() - 4, 6))
    neighbours = filled((size, 2, sink + 1), sink, np.int32)

    def connect(axis: int) -> None:
      # One step along an axis adds 1 to all coordinates but its own, from which it takes d. Both
      # halves are sorted; merging them is quicker than looking up one in the other.
      both = np.concatenate([table << 1, (table - strides[axis]) << 1 | 1])
      both.sort(kind="stable")
      equal = np.flatnonzero((both[1:] ^ both[:-1]) == 1)
      here = np.cumsum(both & 1)[equal]
      beyond = equal - here
      neighbours[axis, 1, here] = beyond
      neighbours[axis, 0, beyond] = here

    list(pool.map(connect, range(size)))

    def cut(k: int) -> tuple[np.ndarray, np.ndarray]:
      """Vertices of class k with groups beside the first, and where these begin."""
      groups = (counts[k] - FIRST + MORE - 1) // MORE
      of = np.repeat(np.arange(len(groups)), groups)
      nth = np.arange(len(of)) - (np.cumsum(groups) - groups)[of]
      return of, found[k][1][of] + FIRST + nth * MORE

    rest = list(pool.map(cut, range(size)))
    # In the order of points, so that groups that are summed up in turn read what lies together.
    leading = np.concatenate([found[k][2][begin] for k, (_, begin) in enumerate(rest)])
    by_point = np.argsort(leading, kind="stable")
    column = np.empty(len(leading), np.int32)
    column[by_point] = np.arange(len(leading), dtype=np.int32)
    ends = np.cumsum([0, *(len(of) for of, _ in rest)])
    owner = filled((_round_up(len(leading), -(-size * n // (4 * MORE))),), sink, np.int32)
    vertex = filled((size, n), sink, np.int32)
    first = filled((FIRST, sink + 1), size * n, np.int32)
    more = filled((MORE, len(owner)), size * n, np.int32)

    def write(k: int) -> None:
      _, begin, points = found[k]
      of, later = rest[k]
      own, beside = number[starts[k] : starts[k + 1]], column[ends[k] : ends[k + 1]]
      vertex[k, points] = np.repeat(own, counts[k])
      owner[beside] = own[of]
      end = begin + counts[k]
      for table, at, start, stop in ((first, own, begin, end), (more, beside, later, end[of])):
        for i, row in enumerate(table):
          used = start + i < stop
          row[at[used]] = points[start[used] + i] + k * n

    list(pool.map(write, range(size)))
  return Lattice(vertex, neighbours, first, more, owner, np.zeros((), bool))


def make_lattice(corners: Corners, major: Sequence[int], capacity: int) -> Lattice:
  """`host_lattice` under jit, of a static number of vertices."""
  corner, order = corners.corner, corners.order
  size, n = corner.shape
  d = size - 1
  rows = _digits(d, major)
  positions, low, span = _positions(corner, rows)
  id_bits = max((size * n - 1).bit_length(), 1)
  fits = jnp.log2(jnp.stack(span).astype(jnp.float32)).sum() < 62 - id_bits
  fits &= (corner.max() < _FARTHEST) & (corner.min() > -_FARTHEST)
  with jax.enable_x64(True):
    by_number = _strides([s.astype(jnp.int64) for s in span], major)
    key = sum(
      (p - a).astype(jnp.int64) * s for p, a, s in zip(positions, low, by_number, strict=True)
    )
    strides = jnp.asarray(rows.T) @ jnp.stack([jnp.asarray(s, jnp.int64) for s in by_number])
    keys = [key]
    for k in range(d):
      keys.append(keys[-1] - strides[order[d - k]])
    both = (jnp.stack(keys).reshape(-1) << id_bits) | lax.iota(jnp.int64, size * n)
    both = lax.sort(both, is_stable=False)
    found = both >> id_bits
    entry = (both & ((1 << id_bits) - 1)).astype(jnp.int32)
    new = jnp.concatenate([jnp.ones(1, bool), found[1:] != found[:-1]])
    number = _cumulative(new.astype(jnp.int32)) - 1
    last = number[-1]
    kept = jnp.where(new, number, capacity)
    table = jnp.full(capacity, np.iinfo(np.int64).max).at[kept].set(found, mode="drop")

    def after(stride: Array) -> Array:
      wanted = table - stride
      at = jnp.minimum(jnp.searchsorted(table, wanted).astype(jnp.int32), capacity - 1)
      alive = lax.iota(jnp.int32, capacity) <= last
      return jnp.where(alive & (table[at] == wanted), at, capacity)

    beyond = lax.map(after, strides)
  vertex = jnp.zeros(size * n, jnp.int32).at[entry].set(number, unique_indices=True)
  own = lax.iota(jnp.int32, capacity)
  sink = jnp.full((size, 1), capacity, jnp.int32)
  before = jax.vmap(
    lambda at: (
      jnp.full(capacity + 1, capacity, jnp.int32).at[at].set(own).at[capacity].set(capacity)
    )
  )(beyond)
  neighbours = jnp.stack([before, jnp.concatenate([beyond, sink], 1)], 1)
  sequence = lax.iota(jnp.int32, size * n)
  number = jnp.minimum(number, capacity)
  start = jnp.zeros(capacity + 1, jnp.int32).at[kept].set(sequence, mode="drop")
  rank = sequence - start[number]
  first = (
    jnp.full((FIRST, capacity + 1), size * n, jnp.int32).at[rank, number].set(entry, mode="drop")
  )
  rank = rank - FIRST
  begins = (rank >= 0) & (rank % MORE == 0)
  nth = jnp.where(rank < 0, size * n, _cumulative(begins.astype(jnp.int32)) - 1)
  groups = size * n // (FIRST + 1)
  more = jnp.full((MORE, groups), size * n, jnp.int32).at[rank % MORE, nth].set(entry, mode="drop")
  owner = jnp.full(groups, capacity, jnp.int32).at[nth].set(number, mode="drop")
  vertex = jnp.minimum(vertex, capacity).reshape(size, n)
  return Lattice(vertex, neighbours, first, more, owner, ~fits | (last >= capacity))


def _cumulative(x: Array) -> Array:
  """Inclusive cumulative sum of int32 [n].

  A loop over columns of a square: it compiles in no time, unlike XLA's tree of slices.
  """
  n = x.shape[0]
  side = max(math.isqrt(n - 1) + 1, 1)
  columns = jnp.pad(x, (0, side * side - n)).reshape(side, side).T

  def along(total: Array, column: Array) -> tuple[Array, Array]:
    return total + column, total + column

  ends, parts = lax.scan(along, jnp.zeros(side, jnp.int32), columns)
  _, before = lax.scan(lambda t, e: (t + e, t), jnp.zeros((), jnp.int32), ends)
  return (parts + before[None]).T.reshape(-1)[:n]


@jax.custom_vjp
def lattice_filter(x: Array, splat: Array, cut: Array, lattice: Lattice) -> Array:
  """Blurs values [n c] given at the lattice's points.

  The kernel is a matrix of rank at most the number of vertices: cut @ blur @ splat^T.

  Args:
    x: [n c] values.
    splat: [D n] weights by which values are spread: barycentric weights times whatever
      normalises the kernel.
    cut: [D n] the same for reading them.
    lattice: the tables.

  Returns:
    [n c]. Its derivative by x is the transposed filter; that by the weights is exact too, which is
    the almost everywhere existing derivative of the filter by the features. It knows nothing of
    points that move into another simplex.
  """
  # Read in a stage of its own: fused with what comes next, it is several times slower.
  return stored(_slice, _blur(_splat(x, splat, lattice), lattice), cut, lattice)


def _forward(x, splat, cut, lattice):
  return lattice_filter(x, splat, cut, lattice), (x, splat, cut, lattice)


def _backward(saved, g):
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
  def along(v: Array, neighbours: Array, *, axis: int) -> Array:
    # Sliced in here, where that costs no copy.
    before, after = neighbours[axis]
    return v + 0.5 * (_rows(v, before) + _rows(v, after))

  axes = range(len(lattice.neighbours))
  for axis in reversed(axes) if reverse else axes:
    values = stored(functools.partial(along, axis=axis), values, lattice.neighbours)
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
