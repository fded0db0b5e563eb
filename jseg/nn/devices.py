"""The axis over which a batch is split, and what layers and networks may ask about it.

Nothing else in `jseg.nn` and no network names the axis: a layer asks `is_split`, a network that
draws random numbers asks for `example_keys`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jseg.types import Array

AXIS = "batch"
"""Name of the mapped axis over which a batch is split."""


def is_split() -> bool:
  """Whether the caller is traced inside a map over `AXIS`.

  The same module serves the mapped step and calls without any map: initialization, evaluation, a
  notebook. An unbound name is an error in JAX, and that error is the public way of asking.
  """
  try:
    lax.axis_size(AXIS)
  except NameError:
    return False
  return True


def example_keys(key: Array, batch: int) -> Array:
  """One key per example of this device, by the example's place in the global batch.

  What is drawn then depends neither on the number of devices nor on the other examples.

  Args:
    key: a key that is the same on every device.
    batch: number of examples b on this device.

  Returns:
    keys [b]
  """
  places = jnp.arange(batch)
  if is_split():
    places += lax.axis_index(AXIS) * batch
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)
