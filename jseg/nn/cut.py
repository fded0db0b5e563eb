"""Slices with steps."""

from jax import lax

from jseg.types import Array


def cut(x: Array, *places: slice) -> Array:
  """x[places], of its first axes, as XLA's slice.

  JAX 0.7, which Colab has, makes a gather of an index with a step, and a scatter of its gradient.

  Args:
    x: array.
    *places: slices whose steps are positive.
  """
  ends = [place.indices(n) for place, n in zip(places, x.shape[: len(places)], strict=True)]
  ends += [(0, n, 1) for n in x.shape[len(places) :]]
  starts, limits, steps = zip(*ends, strict=True)
  return lax.slice(x, starts, tuple(map(max, starts, limits)), steps)
