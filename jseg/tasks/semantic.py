"""Semantic segmentation of images: one class a pixel."""

from collections.abc import Mapping

import jax.numpy as jnp

from jseg.losses import cross_entropy
from jseg.metrics import confusion
from jseg.types import Array, Outputs


def loss(outputs: Outputs, label: Array, aux_weights: Mapping[str, float]) -> tuple[Array, Array]:
  """Cross-entropy of the logits, plus each auxiliary output's times its weight.

  Args:
    outputs: logits [b h w k] and named auxiliary logits of the same shape.
    label: int32 [b h w], IGNORE where nothing is known.
    aux_weights: by the names in `outputs.aux`.

  Returns:
    (sum, count); the auxiliary losses share the count.
  """
  total, count = cross_entropy(outputs.logits, label)
  for name, logits in outputs.aux.items():
    total += aux_weights[name] * cross_entropy(logits, label)[0]
  return total, count


def training_counts(outputs: Outputs, label: Array) -> Array:
  """Confusion matrix int32 [k k] of a training batch, at the resolution of the crop."""
  logits = outputs.logits
  return confusion(jnp.argmax(logits, -1), label, logits.shape[-1])
