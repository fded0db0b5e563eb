"""What a CPU's program computes after what: `lax.optimization_barrier` for XLA on CPUs.

XLA removes JAX's barriers there before it decides what to compute where, when, and how often.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jseg.types import Array


def true_after(first: Sequence[Array]) -> Array:
  """True, which the program knows only once it has computed all of `first`: bool [].

  Args:
    first: arrays of numbers; those without elements, which need no computing, don't count.
  """
  corners = [lax.slice(a, (0,) * a.ndim, (1,) * a.ndim).reshape(()) for a in first if a.size]
  total = sum((a.astype(jnp.int32) for a in corners), jnp.zeros((), jnp.int32))
  return (total | 1) != 0  # XLA can't tell that an odd number is never 0


def after(then: Array, first: Sequence[Array]) -> Array:
  """`then` as a new array, which isn't there before all of `first` is.

  Args:
    then: an array.
    first: as in `true_after`.
  """
  return jnp.where(true_after(first), then, jnp.zeros_like(then))
