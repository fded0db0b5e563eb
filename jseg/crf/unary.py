"""Unary logits from labels and from probabilities."""

import jax
import jax.numpy as jnp
import numpy as np

from jseg.types import IGNORE, Array, InputError


def unary_from_labels(
  labels: jax.typing.ArrayLike, k: int, gt_prob: float, ignore: int | None = IGNORE
) -> Array:
  """Makes logits of a classifier that is right with probability `gt_prob`.

  pydensecrf's `unary_from_labels`, negated and channels-last. By default that one counts labels
  from 1 and takes 0 for unsure: `unary_from_labels(labels - 1, k, gt_prob, ignore=-1)` here.

  Args:
    labels: int [h w] in [0, k), or any other shape.
    k: number of classes.
    gt_prob: in (0, 1).
    ignore: label of pixels of unknown class, whose logits are uniform; None if there is none.

  Returns:
    float32 [h w k].

  Raises:
    InputError: labels outside of [0, k) or not integers, or a probability outside of (0, 1).
  """
  labels = np.asarray(labels)
  if not 0 < gt_prob < 1:
    raise InputError(f"gt_prob: {gt_prob} must lie between 0 and 1; 0.5 to 0.9 are usual")
  if k < 1:
    raise InputError(f"k: {k} classes must be at least 1")
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(f"labels: the dtype {labels.dtype} must be an integer type")
  unknown = np.zeros(labels.shape, bool) if ignore is None else labels == ignore
  wrong = ~unknown & ((labels < 0) | (labels >= k))
  if wrong.any():
    raise InputError(
      f"labels: {int(labels[wrong][0])} is none of {k} classes; "
      f"map it to one of them or to the ignore label {ignore}"
    )
  other = np.log((1 - gt_prob) / max(k - 1, 1))
  hit = np.arange(k) == np.where(unknown, 0, labels)[..., None]
  logits = np.where(hit, np.log(gt_prob), other)
  return jnp.asarray(np.where(unknown[..., None], -np.log(k), logits), jnp.float32)


def unary_from_probabilities(
  probabilities: jax.typing.ArrayLike, scale: float | None = None, clip: float | None = 1e-5
) -> Array:
  """Makes logits log p; pydensecrf's `unary_from_softmax`, negated and channels-last.

  Args:
    probabilities: [h w k] in [0, 1].
    scale: confidence in (0, 1]: p becomes scale p + (1 - scale) / k; None for 1.
    clip: smallest probability; None leaves log(0) = -inf.

  Returns:
    float32 [h w k].

  Raises:
    InputError: a scale outside of (0, 1].
  """
  p = jnp.asarray(probabilities, jnp.float32)
  if scale is not None:
    if not 0 < scale <= 1:
      raise InputError(f"scale: {scale} must be above 0 and at most 1; None is 1")
    p = scale * p + (1 - scale) / p.shape[-1]
  return jnp.log(p if clip is None else jnp.clip(p, clip, 1))
