"""Dropout that is drawn example by example."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn.devices import example_keys
from jseg.types import Array


class Dropout(nn.Module):
  """Sets values to 0 at random, and divides the others by the share that is kept.

  Srivastava et al. 2014, JMLR 15. What is drawn for an example depends on its place in the global
  batch, as far as the stream of random numbers does: the training passes of the library give
  `sample`, the same on all devices. Where a caller has only Flax's `dropout`, that is used.

  Attributes:
    rate: probability of 0, in [0, 1).
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    """Drops values of x [b ...] in training; returns x itself otherwise."""
    if not train or not self.rate:
      return x
    keys = example_keys(self.make_rng("sample" if self.has_rng("sample") else "dropout"), len(x))
    keep = 1.0 - self.rate
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys)
    return jnp.where(kept, x / keep, 0.0).astype(x.dtype)
