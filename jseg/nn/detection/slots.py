"""Work that follows the number of used slots, while all shapes stay static.

What varies in number, such as the objects of an image, lies in a fixed number of slots. Heads work
through those that are used in chunks, in a loop that ends with the last one.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from jseg.arithmetic import cdiv
from jseg.types import Array, Tree

Compute = Callable[[Tree, Array, Tree], Tree]
"""`(variables, x [m ...], extra [m ...]) -> tree of [m ...]`, row by row."""


@flax.struct.dataclass
class Slots:
  """The b x n slots of a batch as one list of p = b n, the used ones of all images first.

  Attributes:
    order: int32 [p], the slot (image n + slot of the image) at each place of the list; 0 from
      `count` on.
    place: int32 [b n], the place of each slot in the list; anything where not `used`.
    used: bool [b n].
    count: int32, number of used slots.
  """

  order: Array
  place: Array
  used: Array
  count: Array

  @property
  def image(self) -> Array:
    """The image of each place of the list, int32 [p]."""
    return self.order // self.used.shape[1]

  def take(self, values: Array) -> Array:
    """Lists the slots' values: [b n ...] -> [p ...]."""
    return values.reshape(-1, *values.shape[2:])[self.order]

  def put_back(self, values: Array) -> Array:
    """Brings a list back to its slots: [p ...] -> [b n ...], 0 where not `used`."""
    used = self.used.reshape(*self.used.shape, *[1] * (values.ndim - 1))
    return jnp.where(used, values[self.place], jnp.zeros((), values.dtype))


def list_slots(used: Array) -> Slots:
  """Lists the used slots, bool [b n], of which those of each image must be its first."""
  b, n = used.shape
  counts = used.sum(1, dtype=jnp.int32)
  end = jnp.cumsum(counts)
  start = end - counts
  at = jnp.arange(b * n, dtype=jnp.int32)
  image = jnp.minimum((at[:, None] >= end[None]).sum(1, dtype=jnp.int32), b - 1)
  order = jnp.where(at < end[-1], image * n + at - start[image], 0)
  place = jnp.minimum(start[:, None] + jnp.arange(n, dtype=jnp.int32)[None], b * n - 1)
  return Slots(order=order, place=place, used=used, count=end[-1])


def in_chunks(
  compute: Compute, variables: Tree, x: Array, extra: Tree, *, count: Array, chunk: int
) -> Tree:
  """Computes the first rows of a list, chunk by chunk; time follows their number.

  The gradient is computed chunk by chunk too, and each chunk's activations once more for it, so
  that memory does not depend on the number of rows. It is a loop, not a choice of sizes: devices
  may take different numbers of turns, so `compute` must not hold a sum over devices.

  Args:
    compute: `(variables, x [m ...], extra [m ...]) -> tree of [m ...]`, row by row.
    variables: tree of arrays that get gradients.
    x: float [p ...], which gets a gradient.
    extra: tree of [p ...], integers, or None.
    count: int32, number of rows to compute.
    chunk: highest number m of rows that are computed together.

  Returns:
    The results [p ...]; 0 for the chunks that begin at `count` or later.
  """
  chunk = fitting_chunk(len(x), chunk)
  y = _chunks(compute, chunk, variables, *pad_rows((x, extra), chunk), count)
  return jax.tree.map(lambda a: a[: len(x)], y)


def fitting_chunk(length: int, most: int) -> int:
  """The largest divisor of `length` up to `most`, or `most` where that is less than half of it."""
  most = min(length, most)
  best = max(n for n in range(1, most + 1) if length % n == 0)
  return best if 2 * best >= most else most


def pad_rows(tree: Tree, chunk: int) -> Tree:
  """Adds rows of zeros to arrays [p ...] of a tree up to a multiple of `chunk`."""

  def pad(a: Array) -> Array:
    return jnp.pad(a, [(0, -len(a) % chunk), *[(0, 0)] * (a.ndim - 1)])

  return jax.tree.map(pad, tree)


def rows(tree: Tree, i: Array | int, chunk: int) -> Tree:
  """Chunk i of the rows of a tree's arrays."""
  return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * chunk, chunk), tree)


def turns(count: Array, chunk: int) -> Array:
  """How many chunks `count` rows are."""
  # JAX 0.7.2 passes a constant on to a gradient as an array without arithmetic.
  return cdiv(jnp.asarray(count), chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunks(
  compute: Compute, chunk: int, variables: Tree, x: Array, extra: Tree, count: Array
) -> Tree:
  def add_chunk(i: Array, y: Tree) -> Tree:
    part, rest = rows((x, extra), i, chunk)
    return _set_rows(y, compute(variables, part, rest), i, chunk)

  shapes = jax.eval_shape(compute, variables, *rows((x, extra), 0, chunk))
  empty = jax.tree.map(lambda s: jnp.zeros((len(x), *s.shape[1:]), s.dtype), shapes)
  return lax.fori_loop(0, turns(count, chunk), add_chunk, empty)


def _chunks_forward(
  compute: Compute, chunk: int, variables: Tree, x: Array, extra: Tree, count: Array
) -> tuple[Tree, Tree]:
  return _chunks(compute, chunk, variables, x, extra, count), (variables, x, extra, count)


def _chunks_backward(compute: Compute, chunk: int, saved: Tree, dy: Tree) -> tuple[Tree, ...]:
  variables, x, extra, count = saved

  def add_chunk(i: Array, gradients: tuple[Tree, Array]) -> tuple[Tree, Array]:
    total, dx = gradients
    part, rest = rows((x, extra), i, chunk)
    _, pull = jax.vjp(lambda variables, part: compute(variables, part, rest), variables, part)
    own, dpart = pull(rows(dy, i, chunk))
    return jax.tree.map(jnp.add, total, own), _set_rows(dx, dpart, i, chunk)

  zeros = jax.tree.map(jnp.zeros_like, (variables, x))
  total, dx = lax.fori_loop(0, turns(count, chunk), add_chunk, zeros)
  return total, dx, None, None


_chunks.defvjp(_chunks_forward, _chunks_backward)


def _set_rows(tree: Tree, part: Tree, i: Array | int, chunk: int) -> Tree:
  return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, i * chunk, 0), tree, part)
