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
  # A whole axis is left as it is: its size may be symbolic, as that of an export's batch.
  parts = [(i, p) for i, p in enumerate(places) if p not in (slice(None), slice(None, None, 1))]
  for axis, place in parts:
    starts[axis], limit, steps[axis] = place.indices(x.shape[axis])
    limits[axis] = max(starts[axis], limit)
  return lax.slice(x, starts, limits, steps) if parts else x
