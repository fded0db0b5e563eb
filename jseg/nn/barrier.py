"""What a CPU's program computes after what: `lax.optimization_barrier` for XLA on CPUs.

XLA removes JAX's barriers there before it decides what to compute where, when, and how often.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jseg.types import Array

_Result = TypeVar("_Result")


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


def computed_after(
  first: Sequence[Array], function: Callable[..., _Result], *args: Array
) -> _Result:
  """function(*args), computed when all of `first` is, once for all who read it, and by itself.

  XLA fuses nothing into a branch, or out of it, as long as it can't tell that it is always taken.

  Args:
    first: as in `true_after`.
    function: makes arrays of arrays.
    *args: its arguments.
  """

  def zeros(*args: Array) -> _Result:
    shapes = jax.eval_shape(function, *args)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

  return lax.cond(true_after(first), function, zeros, *args)
