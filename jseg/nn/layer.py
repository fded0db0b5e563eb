"""The base class of all layers and networks: the dtypes, written once."""

import functools
from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

_Made = TypeVar("_Made")


class Layer(nn.Module, kw_only=True):
  """A Flax module with a compute and a parameter dtype, which are keyword-only.

  Attributes:
    dtype: dtype of the computation; None promotes from inputs and parameters.
    param_dtype: dtype of the parameters.
  """

  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def typed(self, layer: Callable[..., _Made]) -> Callable[..., _Made]:
    """Returns the constructor `layer` with this layer's dtypes filled in."""
    return functools.partial(layer, dtype=self.dtype, param_dtype=self.param_dtype)
