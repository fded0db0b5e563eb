"""A network of overlapping classes on the device: the losses, and counting at full size."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jseg.data.overlaps import table
from jseg.losses import Loss
from jseg.metrics import overlap_counts
from jseg.step import Losses
from jseg.tasks.multilabel.decision import Thresholds
from jseg.tasks.semantic import forward
from jseg.tasks.semantic.forward import Targets
from jseg.types import Array, Batch, Outputs

Combinations = Sequence[Sequence[int]]
"""See `jseg.data.ClassInfo.combinations`."""


def truth_of(label: Array, combinations: Combinations) -> Array:
  """What each pixel is of each class: uint8 [... k], 0, 1, or IGNORE where that isn't known.

  Args:
    label: int [...], each a place in `combinations` or IGNORE.
    combinations: [m k].
  """
  return jnp.take(jnp.asarray(table(combinations)), label.astype(jnp.int32), axis=0)


def make_losses(
  loss: Loss, combinations: Combinations, class_weights: Array | None
) -> Callable[[Outputs, Targets], Losses]:
  """Makes `(outputs, targets) -> {"main": (sum, count), and one per auxiliary output}`.

  Args:
    loss: loss of logits and truths (`jseg.losses.make_loss` of overlapping classes).
    combinations: [m k].
    class_weights: float32 [k], weight of the pixels that are of a class; None: they weigh 1.
  """
  losses = forward.make_losses(loss, class_weights)

  def of_truths(outputs: Outputs, targets: Targets) -> Losses:
    return losses(outputs, Targets(truth_of(targets.label, combinations)))

  return of_truths


def training_counts(
  outputs: Outputs, targets: Targets, combinations: Combinations, decision: Thresholds
) -> dict[str, Array]:
  """Counts each class in a training batch, int32 [3 k], at the crop's resolution."""
  truth = truth_of(targets.label, combinations)
  return {"overlaps": overlap_counts(decision.decide(outputs.logits, False)[0], truth)}


def count_batch(
  logits: Array, batch: Batch, combinations: Combinations, decision: Thresholds
) -> tuple[Array]:
  """Counts each class in each image of a batch of logits [b H W k], at its label's size.

  Returns:
    (int32 [b 3 k],).
  """
  count = functools.partial(_count_example, combinations=combinations, decision=decision)
  return (
    jax.lax.map(
      lambda example: count(*example),
      (logits, batch["size"], batch["label"], batch["label_size"]),
    ),
  )


def _count_example(
  logits: Array,
  size: Array,
  label: Array,
  label_size: Array,
  *,
  combinations: Combinations,
  decision: Thresholds,
) -> Array:
  """Counts one image at the size of its label; see `jseg.tasks.semantic.forward.count_example`."""
  if label.ndim == 3:
    found, _ = decision.decide(logits[tuple(slice(n) for n in label.shape)], False)
  else:
    canvas = (label.shape[0], label.shape[1])
    found, _ = forward.decide_at_full_size(logits, size, label_size, canvas, decision=decision)
  return overlap_counts(found, truth_of(label, combinations))
