"""The sum that ends a residual unit (He et al. 2016, arXiv:1512.03385)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jseg.barrier import computed_after
from jseg.nn.once import traced_once
from jseg.types import Array


@traced_once()
def add_relu(x: Array, y: Array) -> Array:
  """relu(x + y), of two maps of one shape and dtype, computed once.

  On a CPU XLA would compute such a sum anew for each reader. The next unit's sum is one of them, so
  that the last of 23 units would begin with the first one's.
  """
  return _computed_once(x, y)


@jax.custom_jvp
def _computed_once(x: Array, y: Array) -> Array:
  return lax.platform_dependent(x, y, cpu=_once, default=_add_relu)


def _add_relu(x: Array, y: Array) -> Array:
  return nn.relu(x + y)


def _once(x: Array, y: Array) -> Array:
  return computed_after([], _add_relu, x, y)


@_computed_once.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
  out = _computed_once(*primals)
  dx, dy = tangents
  return out, jnp.where(out > 0, dx + dy, jnp.zeros_like(out))
