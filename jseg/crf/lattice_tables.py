"""Tables of the permutohedral lattice: its vertices, their neighbors, and the points around them.

They are found by sorting keys of the vertices: on the host with NumPy by `host_lattice`, and under
jit, in a static size, by `make_lattice`.
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

from jseg.arithmetic import cdiv
from jseg.crf.lattice import FIRST, MORE, Corners, Lattice
from jseg.crf.stages import filled
from jseg.types import Array, InputError

_FARTHEST = 1 << 24
"""Bound of coordinates; beyond it float32 cannot separate corners, and positions overflow int32."""


def _round_up(size: int, step: int) -> int:
  """The next positive multiple of `step`, so that few different programs are compiled."""
  return max(cdiv(size, step), 1) * step


def _digits(d: int, major: Sequence[int]) -> np.ndarray:
  """Coefficients [d D] of whole numbers that a vertex's coordinates are named by.

  Differences of coordinates that follow one another; for the features in `major` what grows with
  that feature alone, so that vertices sorted by it have their neighbors and the points that use
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


class _Vertices(NamedTuple):
  """The vertices of one remainder class.

  Attributes:
    key: int64 [v], growing.
    begin: int [v], where the points of each vertex begin in `points`.
    sizes: int [v], number of points of each vertex.
    points: int32 [m], numbers of the points, by vertex.
  """

  key: np.ndarray
  begin: np.ndarray
  sizes: np.ndarray
  points: np.ndarray


class _Groups(NamedTuple):
  """Groups of points beyond the first of each vertex, for one remainder class.

  Attributes:
    vertex: int [r], the vertex in its class.
    begin: int [r], where each group begins in the points of the class.
    column: int32 [r], where each group is in the table of all classes.
  """

  vertex: np.ndarray
  begin: np.ndarray
  column: np.ndarray


def host_lattice(
  corner: np.ndarray,
  order: np.ndarray,
  major: Sequence[int],
  place: np.ndarray | None = None,
  n: int = 0,
) -> Lattice | None:
  """Finds the lattice around points, with room for little more than its vertices.

  Args:
    corner: int32 [D m], of `barycentric`.
    order: int32 [D m], of `barycentric`.
    major: numbers of the features by which vertices are sorted first, in this order: those that
      tell where points lie in memory.
    place: int [m], growing: the numbers of the m points among n, where the others are padding;
      None if there is no padding.
    n: number of points with padding.

  Returns:
    NumPy arrays. None if a vertex is too far off for 64-bit keys.
  """
  size, m = corner.shape
  place, n = (np.arange(m), m) if place is None else (place, n)
  id_bits = max((n - 1).bit_length(), 1)
  named = _host_keys(corner, order, major, id_bits)
  if named is None:
    return None
  keys, strides = named
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    vertices = list(pool.map(functools.partial(_unique, place=place, id_bits=id_bits), keys))
    table, numbers = _number_vertices([v.key for v in vertices])
    sink = _round_up(len(table), 1 << max(len(table).bit_length() - 4, 6))
    neighbors = filled((size, 2, sink + 1), sink, np.int32)
    list(pool.map(functools.partial(_connect, table), strides, neighbors))
    groups = _place_groups(vertices, list(pool.map(_further_groups, vertices)))
    length = sum(len(g.vertex) for g in groups)
    owner = filled((_round_up(length, cdiv(size * n, 4 * MORE)),), sink, np.int32)
    vertex = filled((size, n), sink, np.int32)
    first = filled((FIRST, sink + 1), size * n, np.int32)
    more = filled((MORE, len(owner)), size * n, np.int32)

    def write(k: int) -> None:
      found, further, own = vertices[k], groups[k], numbers[k]
      vertex[k, found.points] = np.repeat(own, found.sizes)
      owner[further.column] = own[further.vertex]
      end = found.begin + found.sizes
      points = found.points + np.int32(k * n)
      _write_groups(first, own, points, found.begin, end)
      _write_groups(more, further.column, points, further.begin, end[further.vertex])

    list(pool.map(write, range(size)))
  return Lattice(vertex, neighbors, first, more, owner, np.zeros((), bool))


def _host_keys(
  corner: np.ndarray, order: np.ndarray, major: Sequence[int], id_bits: int
) -> tuple[list[np.ndarray], np.ndarray] | None:
  """Keys [m] of the points' vertices of each class, and what a step along each axis subtracts."""
  if corner.max() >= _FARTHEST or corner.min() <= -_FARTHEST:
    return None
  d = len(corner) - 1
  rows = _digits(d, major)
  positions, low, span = _positions(corner, rows)
  low, span = [int(x) for x in low], [int(x) for x in span]
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
  return keys, strides


def _unique(key: np.ndarray, place: np.ndarray, id_bits: int) -> _Vertices:
  # Sorting keys with the points in their low bits is several times faster than an argsort.
  both = (key << id_bits) | place
  both.sort()
  key = both >> id_bits
  begin = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
  points = (both & ((1 << id_bits) - 1)).astype(np.int32)
  return _Vertices(key[begin], begin, np.diff(np.append(begin, len(key))), points)


def _number_vertices(keys: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
  """All keys, sorted, and the numbers in there of the vertices of each class."""
  table = np.concatenate(keys)
  by_key = np.argsort(table, kind="stable")
  number = np.empty(len(table), np.int32)
  number[by_key] = np.arange(len(table), dtype=np.int32)
  return table[by_key], np.split(number, np.cumsum([len(key) for key in keys])[:-1])


def _connect(table: np.ndarray, stride: np.int64, neighbors: np.ndarray) -> None:
  """Writes the neighbors [2 capacity + 1] along an axis of the vertices with the keys `table`."""
  # One step along an axis adds 1 to all coordinates but its own, from which it takes d. Both
  # halves are sorted; merging them is faster than looking up one in the other.
  both = np.concatenate([table << 1, (table - stride) << 1 | 1])
  both.sort(kind="stable")
  equal = np.flatnonzero((both[1:] ^ both[:-1]) == 1)
  here = np.cumsum(both & 1)[equal]
  beyond = equal - here
  neighbors[1, here] = beyond
  neighbors[0, beyond] = here


def _further_groups(vertices: _Vertices) -> tuple[np.ndarray, np.ndarray]:
  """Vertex and begin of each group beyond the first."""
  groups = (vertices.sizes - FIRST + MORE - 1) // MORE
  vertex = np.repeat(np.arange(len(groups)), groups)
  nth = np.arange(len(vertex)) - (np.cumsum(groups) - groups)[vertex]
  return vertex, vertices.begin[vertex] + FIRST + nth * MORE


def _place_groups(
  vertices: Sequence[_Vertices], further: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[_Groups]:
  """Sorts groups by point, so that those summed up in turn read what lies together in memory."""
  leading = np.concatenate(
    [v.points[begin] for v, (_, begin) in zip(vertices, further, strict=True)]
  )
  by_point = np.argsort(leading, kind="stable")
  column = np.empty(len(leading), np.int32)
  column[by_point] = np.arange(len(leading), dtype=np.int32)
  ends = np.cumsum([len(vertex) for vertex, _ in further])[:-1]
  columns = np.split(column, ends)
  return [_Groups(*both, at) for both, at in zip(further, columns, strict=True)]


def _write_groups(
  table: np.ndarray, at: np.ndarray, points: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> None:
  """Writes points begin, begin + 1, ... below end into the columns `at`, one in each row."""
  for i, row in enumerate(table):
    used = begin + i < end
    row[at[used]] = points[begin[used] + i]


class _Sorted(NamedTuple):
  """All corners of all points, sorted by vertex.

  Attributes:
    entry: int32 [D n], number k n + i of the corner k of point i.
    number: int32 [D n], number of its vertex; it may exceed the capacity.
    new: bool [D n], whether it is the first corner on its vertex.
    neighbors: int32 [D capacity], vertex after each one along each axis; the sink if there is none.
    fits: bool [], whether the keys were large enough.
  """

  entry: Array
  number: Array
  new: Array
  neighbors: Array
  fits: Array


def make_lattice(corners: Corners, major: Sequence[int], capacity: int) -> Lattice:
  """Finds the lattice of `host_lattice` under jit, with a static number of vertices.

  Raises:
    InputError: JAX is older than 0.8, whose programs can't mix integers of 32 and 64 bits.
  """
  if not hasattr(jax, "enable_x64"):
    raise InputError(
      f"a dense CRF under jit or as a layer needs JAX 0.8 or newer, and this is {jax.__version__}; "
      "call jseg.crf.dense_crf outside of jit, as jseg predict --crf does, or install a newer JAX"
    )
  size, n = corners.corner.shape
  found = _sort_corners(corners, major, capacity)
  vertex = jnp.zeros(size * n, jnp.int32).at[found.entry].set(found.number, unique_indices=True)
  own = lax.iota(jnp.int32, capacity)
  sink = jnp.full((size, 1), capacity, jnp.int32)
  before = jax.vmap(
    lambda at: (
      jnp.full(capacity + 1, capacity, jnp.int32).at[at].set(own).at[capacity].set(capacity)
    )
  )(found.neighbors)
  neighbors = jnp.stack([before, jnp.concatenate([found.neighbors, sink], 1)], 1)
  first, more, owner = _group_corners(found, capacity)
  vertex = jnp.minimum(vertex, capacity).reshape(size, n)
  overflow = ~found.fits | (found.number[-1] >= capacity)
  return Lattice(vertex, neighbors, first, more, owner, overflow)


def _sort_corners(corners: Corners, major: Sequence[int], capacity: int) -> _Sorted:
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
    # Not a product of matrices: a TPU has none of 64-bit integers.
    strides = (rows.T * jnp.stack([jnp.asarray(s, jnp.int64) for s in by_number])[None]).sum(1)
    keys = [key]
    for k in range(d):
      keys.append(keys[-1] - strides[order[d - k]])
    both = (jnp.stack(keys).reshape(-1) << id_bits) | lax.iota(jnp.int64, size * n)
    both = lax.sort(both, is_stable=False)
    found = both >> id_bits
    entry = (both & ((1 << id_bits) - 1)).astype(jnp.int32)
    new = jnp.concatenate([jnp.ones(1, bool), found[1:] != found[:-1]])
    number = _cumulative(new.astype(jnp.int32)) - 1
    kept = jnp.where(new, number, capacity)
    table = jnp.full(capacity, np.iinfo(np.int64).max).at[kept].set(found, mode="drop")

    def after(stride: Array) -> Array:
      wanted = table - stride
      at = jnp.minimum(jnp.searchsorted(table, wanted).astype(jnp.int32), capacity - 1)
      alive = lax.iota(jnp.int32, capacity) <= number[-1]
      return jnp.where(alive & (table[at] == wanted), at, capacity)

    neighbors = lax.map(after, strides)
  return _Sorted(entry, number, new, neighbors, fits)


def _group_corners(found: _Sorted, capacity: int) -> tuple[Array, Array, Array]:
  """The tables `first`, `more` and `owner` of the lattice."""
  total = len(found.entry)
  sequence = lax.iota(jnp.int32, total)
  number = jnp.minimum(found.number, capacity)
  kept = jnp.where(found.new, found.number, capacity)
  start = jnp.zeros(capacity + 1, jnp.int32).at[kept].set(sequence, mode="drop")
  rank = sequence - start[number]
  empty = jnp.full((FIRST, capacity + 1), total, jnp.int32)
  first = empty.at[rank, number].set(found.entry, mode="drop")
  rank = rank - FIRST
  begins = (rank >= 0) & (rank % MORE == 0)
  nth = jnp.where(rank < 0, total, _cumulative(begins.astype(jnp.int32)) - 1)
  groups = total // (FIRST + 1)
  empty = jnp.full((MORE, groups), total, jnp.int32)
  more = empty.at[rank % MORE, nth].set(found.entry, mode="drop")
  owner = jnp.full(groups, capacity, jnp.int32).at[nth].set(number, mode="drop")
  return first, more, owner


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
