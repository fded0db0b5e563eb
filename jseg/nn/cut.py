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
  starts, limits, steps = [0] * x.ndim, [*x.shape], [1] * x.ndim
  for axis, place in enumerate(places):
    if place != slice(None):  # an axis of symbolic size, as in an export, has no others
      starts[axis], limit, steps[axis] = place.indices(x.shape[axis])
      limits[axis] = max(starts[axis], limit)
  return lax.slice(x, starts, limits, steps)
