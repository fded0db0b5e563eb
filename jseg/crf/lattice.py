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
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.types import Array

_COLOUR_SHIFT = 57  # bits below the number of a corner's remainder class
_BLOCK = 4096  # points that are spread at a time; they and their products stay in a core's cache


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
    overflow: bool [], whether vertices did not fit: results are wrong then.
  """

  vertex: Any
  neighbours: Any
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


def staged(f: Any, *args: Any, blocks: int = 16) -> Any:
  """f(*args) of arrays [n ...] in a loop over blocks of n.

  What a loop returns is stored; elsewhere XLA for CPUs drops optimization barriers and fuses stages
  into one another, computing the first again for every element that the second reads.
  """
  n = jax.tree.leaves(args)[0].shape[0]
  length = -(-n // blocks)

  def split(x: Array) -> Array:
    pad = ((0, length * blocks - n),) + ((0, 0),) * (x.ndim - 1)
    return (jnp.pad(x, pad) if length * blocks > n else x).reshape(blocks, length, *x.shape[1:])

  out = lax.map(lambda block: f(*block), jax.tree.map(split, args))
  return jax.tree.map(lambda x: x.reshape(blocks * length, *x.shape[2:])[:n], out)


def _key_bits(n: int) -> int:
  """How many bits the packed coordinates of a vertex may take beside a point's number."""
  return min(63 - max((n - 1).bit_length(), 1), _COLOUR_SHIFT)


def _round_up(size: int) -> int:
  """The next number with three leading bits, so that few different programs are compiled."""
  step = 1 << max(size.bit_length() - 3, 6)
  return -(-size // step) * step


def host_lattice(corner: np.ndarray, order: np.ndarray) -> Lattice | None:
  """The lattice of the n points of `barycentric`, with room for little more than its vertices.

  Args:
    corner: int32 [D n].
    order: int32 [D n].

  Returns:
    Arrays of NumPy's. None if a vertex's coordinates don't fit into the key that it is found by.
  """
  size, n = corner.shape
  d = size - 1
  low = corner[:d].min(1) - 3
  span = corner[:d].max(1) + 3 - low
  if np.log2(span.astype(np.float64)).sum() >= _key_bits(n):
    return None
  strides = np.concatenate([np.cumprod(np.append(1, span[:-1]), dtype=np.int64), [0]])
  id_bits = max((n - 1).bit_length(), 1)
  # The last coordinate follows from the others, and the key of vertex k + 1 from that of k.
  keys = [strides[:d] @ (corner[:d] - low[:, None])]
  for k in range(d):
    keys.append(keys[-1] - strides[order[d - k]])

  def unique(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Sorting keys with the points in their low bits is several times quicker than an argsort.
    both = (key << id_bits) | np.arange(n)
    both.sort()
    key = both >> id_bits
    new = np.append(True, key[1:] != key[:-1])
    vertex = np.empty(n, np.int32)
    vertex[both & ((1 << id_bits) - 1)] = np.cumsum(new, dtype=np.int32) - 1
    return key[new], vertex

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    found = list(pool.map(unique, keys))
    starts = np.cumsum([0, *(len(key) for key, _ in found)]).astype(np.int32)
    sink = _round_up(int(starts[-1]))
    neighbours = np.full((size, 2, sink + 1), sink, np.int32)

    def connect(axis: int) -> None:
      for k in range(size):
        # One step along the axis adds 1 to all coordinates but its own, from which it takes d.
        key, after = found[k][0], found[(k + 1) % size][0]
        wanted = key - strides[axis] + (strides.sum() if k == d else 0)
        at = np.minimum(np.searchsorted(after, wanted), len(after) - 1)
        there = np.flatnonzero(after[at] == wanted)
        here, beyond = there + starts[k], at[there] + starts[(k + 1) % size]
        neighbours[axis, 1, here] = beyond
        neighbours[axis, 0, beyond] = here

    list(pool.map(connect, range(size)))
  vertex = np.stack([v + start for (_, v), start in zip(found, starts, strict=False)])
  return Lattice(vertex, neighbours, np.zeros((), bool))


def make_lattice(corners: Corners, capacity: int) -> Lattice:
  """`host_lattice` under jit, of a static number of vertices."""
  corner, order = corners.corner, corners.order
  size, n = corner.shape
  d = size - 1
  low = corner[:d].min(1) - 3
  span = corner[:d].max(1) + 3 - low
  fits = jnp.log2(span.astype(jnp.float32)).sum() < _key_bits(n)
  id_bits = np.uint64(max((n - 1).bit_length(), 1))
  with jax.enable_x64(True):
    steps = [jnp.uint64(1)]
    for i in range(d - 1):
      steps.append(steps[-1] * span[i].astype(jnp.uint64))
    strides = jnp.stack([*steps, jnp.uint64(0)])
    key = jnp.zeros(n, jnp.uint64)
    for i in range(d):
      key = key + (corner[i] - low[i]).astype(jnp.uint64) * strides[i]
    one_class = np.uint64(1 << _COLOUR_SHIFT)

    # A loop compiles its sort once.
    def unique(
      carry: tuple[Array, Array, Array, Array], dropped: Array
    ) -> tuple[tuple[Array, Array, Array, Array], Array]:
      key, count, table, colour = carry
      both = lax.sort((key << id_bits) | lax.iota(jnp.uint64, n), is_stable=False)
      found = both >> id_bits
      new = jnp.concatenate([jnp.ones(1, bool), found[1:] != found[:-1]])
      number = count + _cumulative(new.astype(jnp.int32)) - 1
      point = (both & ((np.uint64(1) << id_bits) - np.uint64(1))).astype(jnp.int32)
      vertex = jnp.zeros(n, jnp.int32).at[point].set(number, unique_indices=True)
      table = table.at[jnp.where(new, number, capacity)].set(found + colour, mode="drop")
      return (key - strides[dropped], number[-1] + 1, table, colour + one_class), vertex

    start = (
      key,
      jnp.zeros((), jnp.int32),
      jnp.full(capacity, np.uint64(2**64 - 1)),
      jnp.uint64(0),
    )
    (_, count, table, _), vertex = lax.scan(unique, start, order[::-1])
    alive = lax.iota(jnp.int32, capacity) < count
    last = (table >> np.uint64(_COLOUR_SHIFT)) == d

    def after(stride: Array) -> Array:
      wanted = table - stride + one_class
      wanted = jnp.where(last, wanted + strides.sum() - np.uint64(size) * one_class, wanted)
      at = jnp.minimum(jnp.searchsorted(table, wanted).astype(jnp.int32), capacity - 1)
      return jnp.where(alive & (table[at] == wanted), at, capacity)

    beyond = lax.map(after, strides)
  own = lax.iota(jnp.int32, capacity)
  sink = jnp.full((size, 1), capacity, jnp.int32)
  before = jax.vmap(
    lambda at: (
      jnp.full(capacity + 1, capacity, jnp.int32).at[at].set(own).at[capacity].set(capacity)
    )
  )(beyond)
  neighbours = jnp.stack([before, jnp.concatenate([beyond, sink], 1)], 1)
  return Lattice(jnp.minimum(vertex, capacity), neighbours, ~fits | (count > capacity))


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
    x: [n c] values. Multiples of 8 channels are quickest.
    splat: [D n] weights by which values are spread: barycentric weights times whatever
      normalises the kernel.
    cut: [D n] the same for reading them.
    lattice: the tables.

  Returns:
    [n c]. Its derivative by x is the transposed filter; that by the weights is exact too, which is
    the almost everywhere existing derivative of the filter by the features. It knows nothing of
    points that move into another simplex.
  """
  return _slice(_blur(_splat(x, splat, lattice), lattice), cut, lattice)


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
  """[n c] -> [capacity + 1, c]."""
  n, c = x.shape
  block = min(n, _BLOCK)

  def add(values: Array, i: Array) -> tuple[Array, None]:
    # The last block begins earlier, to be as long as the others.
    start = jnp.minimum(i * block, n - block)
    fresh = start + lax.iota(jnp.int32, block) >= i * block
    vertex = lax.dynamic_slice_in_dim(lattice.vertex, start, block, axis=1)
    share = lax.dynamic_slice_in_dim(weight, start, block, axis=1) * fresh[None]
    rows = lax.dynamic_slice_in_dim(x, start, block)
    rows = (share[:, :, None] * rows[None]).reshape(-1, c)
    return values.at[vertex.reshape(-1)].add(rows, mode="promise_in_bounds"), None

  empty = jnp.zeros((lattice.neighbours.shape[-1], c), x.dtype)
  return lax.scan(add, empty, lax.iota(jnp.int32, -(-n // block)))[0]


def _blur(values: Array, lattice: Lattice, *, reverse: bool = False) -> Array:
  # A scan keeps XLA from fusing one axis into the next and computing it again for every neighbour.
  def along(v: Array, neighbours: Array) -> tuple[Array, None]:
    return v + 0.5 * (
      v.at[neighbours[0]].get(mode="promise_in_bounds")
      + v.at[neighbours[1]].get(mode="promise_in_bounds")
    ), None

  return lax.scan(along, values, lattice.neighbours, reverse=reverse)[0]


def _slice(values: Array, weight: Array, lattice: Lattice) -> Array:
  """[capacity + 1, c] -> [n c]; unrolled, as one fused loop without the gathered arrays."""
  total: Array | None = None
  for vertex, share in zip(lattice.vertex, weight, strict=True):
    term = values.at[vertex].get(mode="promise_in_bounds") * share[:, None]
    total = term if total is None else total + term
  assert total is not None
  return total


def scale(d: int) -> float:
  """What a filtered value is multiplied by, so that the kernel's peak is about 1."""
  return 1 / (1 + math.pow(2, -d))
