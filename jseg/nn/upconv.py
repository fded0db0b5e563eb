"""Up-convolution: the transposed convolution whose stride is its kernel size."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.types import Array

he_normal_per_tap = nn.initializers.variance_scaling(2.0, "fan_in", "normal", batch_axis=(0, 1))
"""N(0, sqrt(2 / c)): an output pixel of an up-convolution sees one tap, so c inputs."""


class UpConv(nn.Module):
  """Doubles height and width: [b h w c] -> [b 2h 2w features].

  out[2i + a, 2j + b] = x[i, j] @ kernel[a, b] + bias. Taps never overlap, so this is one matrix
  product and a reordering. The kernel is laid out as PyTorch's, moved to [2 2 c features].

  Attributes:
    features: channels of the output.
    kernel_init: initialiser of `kernel`.
    dtype: type of the computation and of the output; None: that of the input and parameters.
    param_dtype: type of the parameters.
  """

  features: int
  kernel_init: Callable[..., Array] = he_normal_per_tap
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Up-samples x."""
    b, h, w, c = x.shape
    f = self.features
    kernel = self.param("kernel", self.kernel_init, (2, 2, c, f), self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, (f,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    y = x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, 4 * f) + jnp.tile(bias, 4)[None]
    return y.reshape(b, h, w, 2, 2, f).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, f)
