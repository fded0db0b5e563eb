"""What a CPU's program computes after what: `lax.optimization_barrier` for XLA on CPUs.

XLA removes JAX's barriers there before it decides what to compute where, when, and how often. A
call that it is told not to inline stays: all arguments are there before it begins, nothing is fused
into it or out of it, and its results are computed once.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata

_Result = TypeVar("_Result")


def after(then: Array, first: Sequence[Array]) -> Array:
  """`then`, which isn't there before all of `first` is.

  Args:
    then: an array.
    first: arrays that are to be computed before it.
  """
  return computed_after(first, lambda a: a, then)


def computed_after(first: Sequence[Array], function: Callable[..., _Result], *args: Any) -> _Result:
  """function(*args), computed when all of `first` is, once for all who read it, and by itself.

  Args:
    first: arrays that are to be computed before it, beside the arguments.
    function: takes trees of arrays and returns one.
    *args: arguments of the function, all of which are there before it begins.
  """

  def call(first: Sequence[Array], *args: Any) -> _Result:
    # Else JAX, which drops what isn't used, would drop `first`.
    _, args = lax.optimization_barrier((first, args))
    with set_xla_metadata(inlineable=None):  # what the function calls itself is a part of it
      return function(*args)

  with set_xla_metadata(inlineable="false"):
    return jax.jit(call)(first, *args)
