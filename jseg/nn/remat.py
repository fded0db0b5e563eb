"""Rematerialization: activations that are computed again in the backward pass, not kept.

Chen et al. 2016, arXiv:1604.06174; Griewank & Walther 2000 on checkpoints of checkpoints.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen import transforms
from jax import lax
from jax.extend import core

from jseg.barrier import after
from jseg.nn.layer import Layer
from jseg.types import Array, InputError, Tree

KINDS = ("none", "stages", "all")

_Result = TypeVar("_Result")


def check_remat(kind: str) -> None:
  """Raises InputError if `Staged` has no such kind of rematerialization."""
  if kind not in KINDS:
    raise InputError(f"remat: {kind!r} is unknown; choose from {', '.join(KINDS)}")


class Staged(Layer, kw_only=True):
  """A layer made of stages, whose activations need not be kept for the backward pass.

  Parameters, their names, what is drawn at random and the updates of statistics are the same for
  all kinds; gradients are equal to float32's rounding.

  Kinds:
    none: what the backward pass needs is kept.
    stages: only what goes from stage to stage is kept, and each stage is computed again when the
      backward pass comes to it.
    all: so is, inside of a stage, each unit, such as a convolution with its norm. Least memory; the
      forward pass is computed up to three times.

  Attributes:
    remat: one of the kinds above.
  """

  remat: str = "none"

  @nn.nowrap
  def stage(self, compute: Callable[..., _Result], *arrays: Tree) -> _Result:
    """Returns `compute(layer, *arrays)`, with `layer` this one: call its methods, not `self`'s.

    Args:
      compute: function of a layer and arrays; whatever is made inside belongs to that layer.
      *arrays: all arrays that it computes from; trees of them and None are fine.
    """
    return self._compute(compute, arrays, again=self.remat != "none")

  @nn.nowrap
  def unit(self, compute: Callable[..., _Result], *arrays: Tree) -> _Result:
    """As `stage`, of a part of a stage."""
    return self._compute(compute, arrays, again=self.remat == "all")

  @nn.nowrap
  def _compute(
    self, compute: Callable[..., _Result], arrays: tuple[Tree, ...], *, again: bool
  ) -> _Result:
    check_remat(self.remat)
    # Nothing is differentiated in an initialization.
    if not again or self.is_initializing():
      return compute(self, *arrays)
    return transforms.lift_transform(_lifted, compute)(self, *arrays)


def _lifted(function: Callable[..., Tree]) -> Callable[..., Tree]:
  """`_again` of a function of Flax's scope: its variables and keys are arguments too."""

  def inner(scope_of: Any, packed: Any, variables: Tree, keys: Tree, *arrays: Tree) -> Tree:
    def compute(variables: Tree, keys: Tree, *arrays: Tree) -> Tree:
      scope = scope_of(variables, keys)
      result = function(scope, *arrays)
      return result, packed(scope)

    # Traced here, once: Flax would draw other random numbers in another trace.
    program, shape = jax.make_jaxpr(compute, return_shape=True)(variables, keys, *arrays)
    computed = _again(core.jaxpr_as_fun(program))(
      jax.tree.leaves((variables, keys)), jax.tree.leaves(arrays)
    )
    return jax.tree.unflatten(jax.tree.structure(shape), computed)

  return lift.pack(inner, (True,), (True,), (True,), name="remat")


def _again(function: Callable[..., list[Array]]) -> Callable[..., list[Array]]:
  """A function of which the backward pass keeps the arguments alone, and computes the rest again.

  As `jax.checkpoint`, but on CPUs too. JAX sets a barrier before what is computed again, which XLA
  removes on a CPU, to find that all of it has been computed before. Here the arrays are made new
  to XLA, and come after the incoming gradient.

  Args:
    function: function of arrays. What is returned takes them in two lists: those that don't change
      within a step, such as parameters, and those that come from the stage before.
  """

  @jax.custom_vjp
  def computed_again(fixed: list[Array], arrays: list[Array]) -> list[Array]:
    return function(*fixed, *arrays)

  def forward(fixed: list[Array], arrays: list[Array]) -> tuple[list[Array], Any]:
    return function(*fixed, *arrays), (fixed, arrays)

  def backward(saved: Any, gradient: list[Array]) -> tuple[list[Array], list[Array]]:
    fixed, arrays = saved
    floats = [g for g in gradient if jnp.issubdtype(g.dtype, jnp.inexact)]
    arrays = lax.platform_dependent(arrays, floats, cpu=_after, default=_behind_barrier)
    return jax.vjp(lambda *both: function(*both[0], *both[1]), fixed, arrays)[1](gradient)

  computed_again.defvjp(forward, backward)
  return computed_again


def _behind_barrier(arrays: list[Array], gradient: list[Array]) -> list[Array]:
  return lax.optimization_barrier((arrays, gradient))[0]


def _after(arrays: list[Array], gradient: list[Array]) -> list[Array]:
  return [after(a, gradient) for a in arrays]
