"""Gaussian filtering of scattered points on the permutohedral lattice.

Adams, Baek and Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral Lattice".
Points of a d-dimensional feature space are spread on the d + 1 corners of the simplex they lie in
(splat), the corners are blurred by [.5 1 .5] along each of the lattice's d + 1 axes, and read back
(slice). The cost grows linearly in the number of points and quadratically in d.

Nearly everything is a gather, as scattering rows is slow. `sort_points` finds out which corners
exist, by sorting; `make_lattice` turns that into tables of a static size; `lattice_filter` filters.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.types import Array

_GROUP = 8  # entries added up by one row of a table
_COLOUR_SHIFT = 57  # bits below the number of a corner's remainder class


class SortedPoints(NamedTuple):
  """The corners of n points in a d-dimensional space, sorted by vertex. D = d + 1.

  Attributes:
    weight: [n D] barycentric weights; the only part with a derivative.
    vertex: int32 [n D] number of each corner's vertex, in [0, size).
    entry: int32 [n D] index into the flattened `weight` in order of vertices.
    vertex_of: int32 [n D] vertex of each sorted entry, ascending.
    key: uint32 [n D, 2] key of each sorted entry's vertex: high and low half.
    delta: uint32 [D, D, 2] what is added to a key to go along an axis, by axis and remainder class.
    size: int32 [], number of vertices; `rows` and `spill` those of the tables that add up entries.
    fits: bool [], whether keys fit into 64 bits. All else is meaningless if not.
  """

  weight: Array
  vertex: Array
  entry: Array
  vertex_of: Array
  key: Array
  delta: Array
  size: Array
  rows: Array
  spill: Array
  fits: Array


class Lattice(NamedTuple):
  """Tables of a static size; `capacity` rows of vertices, one more as a sink that stays 0.

  Attributes:
    vertex: int32 [n D], the sink where a vertex is beyond the capacity.
    rows: int32 [rows 8] entries that a row adds up; n D where there is none.
    groups: int32 [capacity 8] rows that a vertex adds up.
    spill: int32 [spill 8] further rows, for vertices of more than 64 entries.
    spill_vertex: int32 [spill] the vertices they belong to.
    neighbours: int32 [D, 2, capacity + 1] vertices before and after along each axis.
    overflow: bool [], whether anything did not fit: results are wrong then.
  """

  vertex: Array
  rows: Array
  groups: Array
  spill: Array
  spill_vertex: Array
  neighbours: Array
  overflow: Array


class Sizes(NamedTuple):
  """Static sizes of a lattice's tables."""

  capacity: int
  rows: int
  spill: int


def safe_sizes(n: int, d: int) -> Sizes:
  """Sizes that hold the lattice of any n points."""
  entries = n * (d + 1)
  return Sizes(entries, entries, entries // _GROUP**2 + 1)


def fit_sizes(n: int, d: int, size: int, rows: int, spill: int) -> Sizes:
  """Sizes for what was counted, rounded up so that few different programs are compiled."""
  return Sizes(
    *(
      min(_round_up(x), bound)
      for x, bound in zip((size, rows, spill), safe_sizes(n, d), strict=True)
    )
  )


def _round_up(x: int) -> int:
  """The next number with four leading bits, at most an eighth more; at least 64."""
  step = 1 << max(x.bit_length() - 4, 6)
  return max(-(-x // step) * step, 64)


def barycentric(features: Array) -> tuple[Array, Array, Array]:
  """Simplex and position in it of each point.

  Args:
    features: [n d], in units of the Gaussian's standard deviation.

  Returns:
    weights [n D] by remainder class; the simplex's corner of class 0, divided by D, int32 [n D];
    and its coordinates' ranks int32 [n D], which name the permutation.
  """
  n, d = features.shape
  size = d + 1
  i = np.arange(1, size)
  scale = size * np.sqrt(2 / 3) / np.sqrt(i * (i + 1))
  c = features * scale.astype(features.dtype)[None]
  # e_j = sum_{i > j} c_i - j c_j; column 0 of c stands for nothing.
  above = jnp.cumsum(c[:, ::-1], 1)[:, ::-1]
  after = jnp.concatenate([above[:, 1:], jnp.zeros((n, 1), c.dtype)], 1)
  elevated = jnp.concatenate([above[:, :1], after - i.astype(c.dtype)[None] * c], 1)

  corner = lax.stop_gradient(jnp.round(elevated / size)).astype(jnp.int32)
  rest = elevated - corner.astype(c.dtype) * size
  rank = [jnp.zeros(n, jnp.int32)] * size
  for a in range(size):
    for b in range(a + 1, size):
      less = (rest[:, a] < rest[:, b]).astype(jnp.int32)
      rank[a] = rank[a] + less
      rank[b] = rank[b] + 1 - less
  ranks = jnp.stack(rank, 1) + corner.sum(1, keepdims=True)
  low, high = ranks < 0, ranks > d
  ranks = ranks + size * (low.astype(jnp.int32) - high.astype(jnp.int32))
  corner = corner + low.astype(jnp.int32) - high.astype(jnp.int32)

  v = (elevated - corner.astype(c.dtype) * size) / size
  # In order of rank, which is a permutation of 0..d; a sum of selections is quicker than a sort.
  ordered = [jnp.where(ranks == r, v, 0).sum(1) for r in range(size)]
  weights = [ordered[d - k] - ordered[size - k] for k in range(1, size)]
  first = 1 + ordered[d] - ordered[0]
  return jnp.stack([first, *weights], 1), corner, ranks


def sort_points(features: Array) -> SortedPoints:
  """Finds the lattice's vertices around points [n d]."""
  n, d = features.shape
  size = d + 1
  weight, corner, ranks = barycentric(features)
  corner, ranks = lax.stop_gradient((corner, ranks))
  # Vertex k has coordinates D (corner_i - [rank_i > d - k]) + k; the last follows from the others.
  low = corner[:, :d].min(0) - 3
  span = corner[:, :d].max(0) + 3 - low
  id_bits = max((n - 1).bit_length(), 1)
  bits = min(63 - id_bits, _COLOUR_SHIFT)
  fits = jnp.log2(span.astype(jnp.float32)).sum() < bits
  with jax.enable_x64(True):
    span64 = span.astype(jnp.uint64)
    strides = [jnp.uint64(1)]
    for i in range(d):
      strides.append(strides[-1] * span64[i])
    offset = corner[:, :d] - low[None]
    ids = lax.iota(jnp.uint64, n)
    keys, points, new = [], [], []
    for k in range(size):
      a = (offset - (ranks[:, :d] > d - k).astype(jnp.int32)).astype(jnp.uint64)
      packed = a[:, 0]
      for i in range(1, d):
        packed = packed + a[:, i] * strides[i]
      # One operand sorts several times faster than two. Classes are sorted one by one.
      found = lax.sort((packed << np.uint64(id_bits)) | ids, is_stable=False)
      key = found >> np.uint64(id_bits)
      points.append((found & np.uint64((1 << id_bits) - 1)).astype(jnp.int32))
      new.append(jnp.concatenate([jnp.ones(1, bool), key[1:] != key[:-1]]))
      keys.append(key | np.uint64(k << _COLOUR_SHIFT))
    key = jnp.concatenate(keys)
    zero = jnp.uint64(0)
    steps = [*strides[:d], zero]
    total = functools.reduce(jnp.add, steps)
    delta = jnp.stack(
      [
        jnp.stack(
          [zero - steps[j] + np.uint64(1 << _COLOUR_SHIFT)] * d
          + [total - steps[j] - np.uint64(d << _COLOUR_SHIFT)]
        )
        for j in range(size)
      ]
    )
    halves = [_halves(key), _halves(delta)]
  first = jnp.concatenate(new)
  vertex_of = jnp.cumsum(first.astype(jnp.int32)) - 1
  vertex = jnp.stack(
    [
      jnp.zeros(n, jnp.int32)
      .at[points[k]]
      .set(vertex_of[k * n : (k + 1) * n], unique_indices=True, mode="promise_in_bounds")
      for k in range(size)
    ],
    1,
  )
  entry = jnp.concatenate([p * size + k for k, p in enumerate(points)])
  at = lax.iota(jnp.int32, n * size)
  within = at - lax.cummax(jnp.where(first, at, 0))
  rows = (within % _GROUP == 0).sum(dtype=jnp.int32)
  spill = ((within % _GROUP**2 == 0) & ~first).sum(dtype=jnp.int32)
  return SortedPoints(
    weight,
    vertex,
    entry,
    vertex_of,
    halves[0],
    halves[1],
    vertex_of[-1] + 1,
    rows,
    spill,
    fits,
  )


def _halves(x: Array) -> Array:
  """uint64 [...] -> uint32 [... 2], so that no 64-bit array leaves the code that needs it."""
  return jnp.stack([(x >> np.uint64(32)).astype(jnp.uint32), x.astype(jnp.uint32)], -1)


def _whole(x: Array) -> Array:
  """uint32 [... 2] -> uint64 [...]."""
  return (x[..., 0].astype(jnp.uint64) << np.uint64(32)) | x[..., 1].astype(jnp.uint64)


def make_lattice(points: SortedPoints, sizes: Sizes) -> Lattice:
  """Tables of the lattice, of static sizes."""
  n, size = points.vertex.shape
  entries = n * size
  capacity = sizes.capacity
  start = jnp.searchsorted(points.vertex_of, lax.iota(jnp.int32, capacity + 1)).astype(jnp.int32)
  count = jnp.diff(start)

  rows_of = -(-count // _GROUP)
  rows = _table(start[:-1], start[1:], rows_of, sizes.rows, entries)
  rows = jnp.where(rows < entries, points.entry[jnp.minimum(rows, entries - 1)], entries)
  row_start = jnp.cumsum(rows_of) - rows_of
  row_end = row_start + rows_of
  groups = row_start[:, None] + np.arange(_GROUP, dtype=np.int32)[None]
  groups = jnp.where(groups < jnp.minimum(row_end, sizes.rows)[:, None], groups, sizes.rows)
  spills_of = jnp.maximum(-(-rows_of // _GROUP) - 1, 0)
  spill = _table(row_start + _GROUP, row_end, spills_of, sizes.spill, sizes.rows)
  spill_vertex = _owner(spills_of, sizes.spill)

  with jax.enable_x64(True):
    at = jnp.minimum(start[:-1], entries - 1)
    alive = lax.iota(jnp.int32, capacity) < points.size
    key = jnp.where(alive, _whole(points.key[at]), np.uint64(2**64 - 1))
    colour = (key >> np.uint64(_COLOUR_SHIFT)).astype(jnp.int32)
    safe_colour = jnp.minimum(colour, size - 1)

    def after(delta: Array) -> Array:
      wanted = key + _whole(delta)[safe_colour]
      found = jnp.minimum(jnp.searchsorted(key, wanted).astype(jnp.int32), capacity - 1)
      return jnp.where(alive & (key[found] == wanted), found, capacity)

    # A loop over the axes compiles six times faster than six searches.
    after_of = lax.map(after, points.delta)
  own = lax.iota(jnp.int32, capacity)

  def before(after: Array) -> Array:
    return jnp.full(capacity, capacity, jnp.int32).at[after].set(own, mode="drop")

  neighbours = jnp.stack([lax.map(before, after_of), after_of], 1)
  sink = jnp.full((size, 2, 1), capacity, jnp.int32)
  overflow = (
    ~points.fits
    | (points.size > capacity)
    | (points.rows > sizes.rows)
    | (points.spill > sizes.spill)
  )
  return Lattice(
    jnp.minimum(points.vertex, capacity),
    rows,
    groups,
    spill,
    spill_vertex,
    jnp.concatenate([neighbours, sink], 2),
    overflow,
  )


def _owner(counts: Array, length: int) -> Array:
  """Which of the owners of so many rows each owns row i < length."""
  ends = jnp.cumsum(counts)
  owner = jnp.searchsorted(ends, lax.iota(jnp.int32, length), side="right")
  return owner.astype(jnp.int32)


def _table(start: Array, end: Array, counts: Array, length: int, none: int) -> Array:
  """Splits the ranges [start, end) into rows of 8 consecutive numbers: int32 [length 8]."""
  owner = _owner(counts, length)
  safe = jnp.minimum(owner, counts.shape[0] - 1)
  row = lax.iota(jnp.int32, length) - (jnp.cumsum(counts) - counts)[safe]
  at = (start[safe] + _GROUP * row)[:, None] + np.arange(_GROUP, dtype=np.int32)[None]
  inside = (at < end[safe][:, None]) & (owner < counts.shape[0])[:, None]
  return jnp.where(inside, at, none)


def table_weights(lattice: Lattice, weight: Array) -> Array:
  """Weights [n D] in the order of the splat's table: [rows 8], 0 where it is empty."""
  flat = jnp.append(weight.reshape(-1), jnp.zeros(1, weight.dtype))
  return flat[lattice.rows]


@jax.custom_vjp
def lattice_filter(
  x: Array, splat: Array, cut: Array, tables: tuple[Array, Array], lattice: Lattice
) -> Array:
  """Blurs values [n c] given at the lattice's points.

  The kernel is a matrix of rank at most `size`: cut @ blur @ splat^T.

  Args:
    x: [n c] values.
    splat: [n D] weights by which values are spread: barycentric weights times whatever
      normalises the kernel.
    cut: [n D] the same for reading them.
    tables: `table_weights` of both, made once for many calls.
    lattice: the tables.

  Returns:
    [n c]. Its derivative by x is the transposed filter; that by the weights is exact too, which is
    the almost everywhere existing derivative of the filter by the features. It knows nothing of
    points that move into another simplex.
  """
  return _slice(_blur(_splat(x, tables[0], lattice), lattice), cut, lattice)


def _forward(x, splat, cut, tables, lattice):
  return lattice_filter(x, splat, cut, tables, lattice), (x, splat, cut, tables, lattice)


def _backward(saved, g):
  x, splat, cut, tables, lattice = saved
  back = _blur(_splat(g, tables[1], lattice), lattice, reverse=True)
  ahead = _blur(_splat(x, tables[0], lattice), lattice)
  by_splat = jnp.stack([(x * back[lattice.vertex[:, k]]).sum(1) for k in range(splat.shape[1])], 1)
  by_cut = jnp.stack([(g * ahead[lattice.vertex[:, k]]).sum(1) for k in range(cut.shape[1])], 1)
  zeros = jax.tree.map(jnp.zeros_like, tables)
  none = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), lattice)
  return _slice(back, splat, lattice), by_splat, by_cut, zeros, none


lattice_filter.defvjp(_forward, _backward)


def _sum_rows(x: Array, index: Array, weight: Array | None = None) -> Array:
  """sum_j weight[:, j] x[index[:, j]]; unrolled, as one fused loop without the gathered array."""
  total: Array | None = None
  for j in range(index.shape[1]):
    term = x.at[index[:, j]].get(mode="promise_in_bounds")
    if weight is not None:
      term = term * weight[:, j : j + 1]
    total = term if total is None else total + term
  assert total is not None
  return total


def _append_zero(x: Array) -> Array:
  return jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])


def _splat(x: Array, table: Array, lattice: Lattice) -> Array:
  """[n c] -> [capacity + 1, c]."""
  size = lattice.vertex.shape[1]
  points = jnp.minimum(lattice.rows // size, x.shape[0] - 1)
  partial = _append_zero(_sum_rows(x, points, table))
  values = _append_zero(_sum_rows(partial, lattice.groups))
  # The few vertices of very many points.
  rest = _sum_rows(partial, lattice.spill)
  return values.at[lattice.spill_vertex].add(rest, mode="drop")


def _blur(values: Array, lattice: Lattice, *, reverse: bool = False) -> Array:
  # A scan keeps XLA from fusing one axis into the next and computing it again for every neighbour.
  def along(v: Array, neighbours: Array) -> tuple[Array, None]:
    return v + 0.5 * (
      v.at[neighbours[0]].get(mode="promise_in_bounds")
      + v.at[neighbours[1]].get(mode="promise_in_bounds")
    ), None

  return lax.scan(along, values, lattice.neighbours, reverse=reverse)[0]


def _slice(values: Array, weight: Array, lattice: Lattice) -> Array:
  """[capacity + 1, c] -> [n c]."""
  return _sum_rows(values, lattice.vertex, weight)


def scale(d: int) -> float:
  """What a filtered value is multiplied by, so that the kernel's peak is about 1."""
  return 1 / (1 + math.pow(2, -d))
