"""The axis over which a batch is split, and what layers and networks may ask about it.

Nothing else in `jseg.nn` and no network names the axis: a layer asks `is_split`, a network that
draws random numbers asks for `example_keys`.
"""

import contextlib
import contextvars
from collections.abc import Iterator

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


# (index, number) of the part of a device's share that is being traced. Like the axis itself it
# belongs to the trace: nothing of it is left after `part_of_batch`.
_PART: contextvars.ContextVar[tuple[Array | int, int]] = contextvars.ContextVar(
  "part", default=(0, 1)
)


@contextlib.contextmanager
def part_of_batch(index: Array | int, parts: int) -> Iterator[None]:
  """What is traced inside sees one of several equal parts of this device's share of a batch.

  Args:
    index: int32, which part.
    parts: number of parts.
  """
  token = _PART.set((index, parts))
  try:
    yield
  finally:
    _PART.reset(token)


def share_index() -> Array | int:
  """Which share of the global batch the caller sees: numbered device by device, part by part."""
  index, parts = _PART.get()
  return lax.axis_index(AXIS) * parts + index if is_split() else index


def example_keys(key: Array, batch: int) -> Array:
  """One key per example that the caller sees, by the example's place in the global batch.

  What is drawn then depends neither on the number of devices, nor on the parts that a batch is
  worked through in, nor on the other examples.

  Args:
    key: a key that is the same on every device.
    batch: number of examples b that the caller sees, on this device and in this part.

  Returns:
    keys [b]
  """
  places = jnp.arange(batch) + share_index() * batch
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)
