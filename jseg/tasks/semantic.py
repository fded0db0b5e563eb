"""Segmentation of images and volumes: one class a pixel."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from jseg.losses import Loss, weights_of
from jseg.metrics import confusion
from jseg.types import Array, InputError, Outputs


def make_task_loss(
  loss: Loss, aux_weights: Mapping[str, float], class_weights: Array | None = None
) -> Callable[[Outputs, Array, Array | None], tuple[Array, Array]]:
  """Makes `(outputs, label, border) -> (sum, count)`.

  Args:
    loss: of logits and labels (`jseg.losses.make_loss`).
    aux_weights: of the auxiliary outputs' losses, by name.
    class_weights: float [k], or None.

  Returns:
    The loss of the logits, plus each auxiliary output's times its weight. Labels are int32 [b h w]
    of the logits' size, IGNORE where nothing is known. `border` float32 [b h w] or None is added to
    each pixel's class weight, as in U-Net's w = w_c + w_0 exp(...) (Ronneberger et al. 2015,
    equation 2), whose loss is not divided by the weights.
  """

  def task_loss(outputs: Outputs, label: Array, border: Array | None = None) -> tuple[Array, Array]:
    if border is None:
      weights = {"class_weights": class_weights}
    else:
      by_class = 1.0 if class_weights is None else weights_of(label, class_weights)
      weights = {"pixel_weights": border + by_class}
    total, count = loss(outputs.logits, label, **weights)
    for name, logits in outputs.aux.items():
      if name not in aux_weights:
        raise InputError(f"aux_weights.{name} is missing; say what that output's loss counts")
      extra, extra_count = loss(logits, label, **weights)
      # Counts differ only where a loss picks its pixels by the logits.
      share = count / jnp.where(extra_count > 0, extra_count, 1.0)
      total += aux_weights[name] * extra * share
    return total, count

  return task_loss


def training_counts(outputs: Outputs, label: Array) -> Array:
  """Confusion matrix int32 [k k] of a training batch, at the resolution of the crop."""
  logits = outputs.logits
  return confusion(jnp.argmax(logits, -1), label, logits.shape[-1])
