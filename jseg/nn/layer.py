"""The base classes of layers: dtypes, kernel and bias, written once."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.types import Array

_Made = TypeVar("_Made")


class Layer(nn.Module, kw_only=True):
  """A Flax module with a compute and a parameter dtype, which are keyword-only.

  Attributes:
    dtype: dtype of the computation; None promotes from inputs and parameters.
    param_dtype: dtype of the parameters.
  """

  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.nowrap  # a constructor, whose result is no output to capture
  def typed(self, layer: Callable[..., _Made]) -> Callable[..., _Made]:
    """Returns the constructor `layer` with this layer's dtypes filled in."""
    return functools.partial(layer, dtype=self.dtype, param_dtype=self.param_dtype)


class KernelLayer(Layer):
  """A layer that applies a kernel and adds a bias: parameters `kernel` and `bias` [features].

  Attributes:
    features: channels of the output.
  """

  features: int

  def apply_kernel(
    self,
    x: Array,
    shape: Sequence[int],
    operation: Callable[[Array, Array], Array],
    *,
    init: nn.initializers.Initializer,
    use_bias: bool,
  ) -> Array:
    """Creates the parameters and computes `operation(x, kernel) + bias`.

    Args:
      x: [b ... c].
      shape: shape of the kernel.
      operation: function of x and the kernel, both in the dtype of the computation.
      init: initializer of the kernel.
      use_bias: whether to add a bias, which starts at 0.

    Returns:
      [b ... features]
    """
    kernel = self.param("kernel", init, tuple(shape), self.param_dtype)
    bias = None
    if use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    y = operation(x, kernel)
    return y if bias is None else y + jnp.expand_dims(bias, tuple(range(y.ndim - 1)))
