"""Rematerialization: activations that are computed again in the backward pass, not kept.

Chen et al. 2016, arXiv:1604.06174; Griewank & Walther 2000 on checkpoints of checkpoints.
"""

from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn

from jseg.nn.layer import Layer
from jseg.types import InputError, Tree

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
    return nn.remat(compute)(self, *arrays)
