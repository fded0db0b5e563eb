"""Losses over labelled pixels: (logits, label) -> (sum, count).

Every loss returns the sum over the valid pixels and their number, never the mean: only sums can be
added up across devices that see different numbers of valid pixels. Divide last.
"""

import jax
import jax.numpy as jnp

from jseg.types import IGNORE, Array


def cross_entropy(logits: Array, label: Array) -> tuple[Array, Array]:
  """Softmax cross-entropy, summed over the pixels whose label is not IGNORE.

  Args:
    logits: float [... k], of any floating type; the loss is computed in float32.
    label: int [...], each in [0, k) or IGNORE.

  Returns:
    (sum of the losses in nats, number of valid pixels), float32 scalars. (0, 0) if none is valid.
  """
  # By comparison and not by look-up, whose derivative is a scatter. IGNORE equals no class, so its
  # pixels add nothing and get no gradient.
  hits = label[..., None] == jnp.arange(logits.shape[-1]).reshape((1,) * label.ndim + (-1,))
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
  return -jnp.where(hits, log_p, 0.0).sum(), (label != IGNORE).sum(dtype=jnp.float32)


def mean_over_devices(total: Array, count: Array, axis_name: str) -> tuple[Array, Array]:
  """The mean of a (sum, count) loss over all devices: reduce sums first, divide last.

  Returns:
    (mean loss, global count); the mean is 0 where nothing is valid.
  """
  total, count = jax.lax.psum((total, count), axis_name)
  return total / jnp.maximum(count, 1.0), count
