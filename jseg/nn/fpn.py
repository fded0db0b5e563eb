"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144, section 3)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn.conv import Conv
from jseg.nn.norm import Norm
from jseg.nn.resize import resize_nearest
from jseg.types import Array


class FPN(nn.Module):
  """{"layer1", ..., "layer4"} -> [P2, P3, P4, P5, P6], each [b h w features], strides 4 to 64.

  A 1x1 convolution of each layer, to which the coarser level is added at twice its size, then a
  3x3 convolution. P6 is every second pixel of P5; it serves proposals alone.

  Attributes:
    features: channels of every level.
    norm: kind of normalisation after each convolution; "none" gives them a bias instead.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  features: int = 256
  norm: str = "none"
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, layers: Mapping[str, Array], *, train: bool = False) -> list[Array]:
    """Computes the levels, the finest first."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def conv(x: Array, kernel: int, name: str) -> Array:
      bias = self.norm == "none"
      init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
      size = (kernel, kernel)
      x = Conv(self.features, size, use_bias=bias, kernel_init=init, name=name, **types)(x)
      return Norm(self.norm, name=f"{name}_norm", **types)(x, train=train)

    coarser: Array | None = None
    levels: list[Array] = []
    for number in (5, 4, 3, 2):
      x = conv(layers[f"layer{number - 1}"], 1, f"lateral{number}")
      coarser = x if coarser is None else x + resize_nearest(coarser, x.shape[1:3])
      levels.insert(0, conv(coarser, 3, f"level{number}"))
    return [*levels, levels[-1][:, ::2, ::2]]
