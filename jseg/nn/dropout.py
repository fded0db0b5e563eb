"""Dropout that doesn't depend on how a batch is split."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn.devices import example_keys
from jseg.types import Array


class Dropout(nn.Module):
  """Dropout (Srivastava et al. 2014), drawn by each example's place in the global batch.

  [b ... c] -> [b ... c]. Flax's draws for a device's whole part of the batch, so that its masks are
  others on another number of devices. The key is `sample`, the same on every device, as the
  trainer gives it; `dropout` where there is no such key.

  Attributes:
    rate: probability with which a value is set to 0; the others are divided by 1 - rate.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    """Draws in training, and else passes values on."""
    if not train or self.rate == 0:
      return x
    keys = example_keys(self.make_rng("sample" if self.has_rng("sample") else "dropout"), len(x))
    keep = 1 - self.rate
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys)
    return jnp.where(kept, x / keep, 0)
