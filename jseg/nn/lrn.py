"""Local response normalization, from before batch norm."""

import jax.numpy as jnp
from jax import lax

from jseg.types import Array


def local_response_norm(
  x: Array, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75
) -> Array:
  """Divides x by (1 + alpha / size * sum of squares over `size` channels)^beta.

  Krizhevsky et al. 2012 section 3.3, with Caffe's and PyTorch's division of alpha by the size.

  Args:
    x: [... c]; computed in float32.
    size: odd number of channels summed over, centered on each channel.
    alpha: weight of the mean square.
    beta: exponent of the divisor.
  """
  reach = size // 2
  square = jnp.square(x.astype(jnp.float32))
  edges = [(0, 0)] * (x.ndim - 1) + [(reach, reach)]
  square = jnp.pad(square, edges)
  parts = [lax.slice_in_dim(square, i, i + x.shape[-1], axis=-1) for i in range(size)]
  return (x * (1 + alpha / size * sum(parts[1:], parts[0])) ** -beta).astype(x.dtype)
