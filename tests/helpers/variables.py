"""Random variables of a network."""

import jax
import jax.numpy as jnp
import numpy as np


def draw(model, image, seed=0, gain=2.0):
  """Variables without the zeros and ones of initialization: those hide what is done to them.

  Args:
    model: the network or backbone.
    image: its input, or the input's shape and dtype.
    seed: another one draws other values.
    gain: variance of the kernels, times their fan-in.
  """
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    if leaf.ndim > 1:
      deviation = np.sqrt(gain / np.prod(leaf.shape[:-1]))
      return jnp.asarray(rng.normal(0, deviation, leaf.shape), leaf.dtype)
    center = 1.0 if path[-1].key in ("scale", "var") else 0.0
    return jnp.asarray(center + rng.uniform(-0.1, 0.1, leaf.shape), leaf.dtype)

  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return jax.tree_util.tree_map_with_path(value, shapes)
