"""Losses of classes that may overlap: each class is a question of its own, answered by a sigmoid.

The truth is int [... k]: 1 where a pixel is of a class, 0 where it isn't, IGNORE where that isn't
known, which adds nothing and gets no gradient. All are computed in float32 whatever the dtype of
the logits.
"""

import jax
import jax.numpy as jnp

from jseg.losses.regions import dice_of_regions, tversky_of_regions
from jseg.types import IGNORE, Array, InputError


def cross_entropy(
  logits: Array,
  truth: Array,
  *,
  label_smoothing: float = 0.0,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """Binary cross-entropy, summed over the pixels and classes whose truth is known.

  Args:
    logits: float [... k].
    truth: int [... k], 0, 1 or IGNORE.
    label_smoothing: share e in [0, 1) of each truth that is spread evenly over both answers: 1
      becomes 1 - e / 2, and 0 becomes e / 2.
    class_weights: float [k], at least 0: weight of the pixels that are of a class, where those that
      aren't weigh 1. They multiply the losses and the count alike.
    pixel_weights: float [...], at least 0. They multiply the losses and not the count.

  Returns:
    (sum of the losses in nats, number of known truths or the sum of their weights), float32
    scalars. (0, 0) if none is known.

  Raises:
    InputError: `label_smoothing` is out of range.
  """
  if not 0 <= label_smoothing < 1:
    raise InputError(f"label_smoothing: {label_smoothing} must be at least 0 (off) and below 1")
  x = logits.astype(jnp.float32)
  target = (1 - label_smoothing) * (truth == 1) + label_smoothing / 2
  return _reduce(jax.nn.softplus(x) - x * target, truth, class_weights, pixel_weights)


def focal(
  logits: Array,
  truth: Array,
  *,
  gamma: float = 2.0,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """Focal loss, -(1 - p)^gamma log p (Lin et al. 2017, arXiv:1708.02002, equation 4).

  p is the probability of the truth, of one sigmoid per class as in the paper. The paper's alpha is
  `class_weights`, but for a factor; they divide the mean too, so that gamma 0 is `cross_entropy`.

  Args:
    logits: float [... k].
    truth: int [... k], 0, 1 or IGNORE.
    gamma: exponent, at least 0; the higher, the less those pixels count that are right already.
    class_weights: float [k], or None; as for `cross_entropy`.
    pixel_weights: float [...], or None; as for `cross_entropy`.

  Returns:
    (sum, count) as `cross_entropy`.

  Raises:
    InputError: `gamma` is below 0.
  """
  if not gamma >= 0:
    raise InputError(f"gamma: {gamma} must be at least 0")
  x = logits.astype(jnp.float32)
  log_p = jax.nn.log_sigmoid(jnp.where(truth == 1, x, -x))
  # Below gamma 1 the power has an infinite slope at p = 1.
  miss = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
  return _reduce(-(miss**gamma) * log_p, truth, class_weights, pixel_weights)


def dice(
  logits: Array, truth: Array, *, classes: str = "present", smooth: float = 1.0
) -> tuple[Array, Array]:
  """1 - Dice of the probabilities, as `jseg.losses.soft_dice`, each class over its known pixels.

  Args:
    logits: float [b ... k].
    truth: int [b ... k], 0, 1 or IGNORE.
    classes: "present" takes the mean over the classes in an image, "all" over all k, so that what
      is found where there is nothing costs something too.
    smooth: constant above and below the line, at least 0, in pixels.

  Returns:
    (sum over the images, number of images of which anything is known), float32 scalars.

  Raises:
    InputError: an argument is impossible.
  """
  return dice_of_regions(*_by_class(logits, truth), classes, smooth)


def tversky(
  logits: Array,
  truth: Array,
  *,
  classes: str = "present",
  smooth: float = 1.0,
  false_positives: float = 0.3,
  false_negatives: float = 0.7,
  tversky_gamma: float = 1.0,
) -> tuple[Array, Array]:
  """Tversky and focal Tversky loss, as `jseg.losses.tversky`, each class over its known pixels.

  Args:
    logits: float [b ... k].
    truth: int [b ... k], 0, 1 or IGNORE.
    classes: as for `dice`.
    smooth: as for `dice`.
    false_positives: their weight, at least 0.
    false_negatives: their weight, at least 0.
    tversky_gamma: 1 / gamma is the exponent; at 4/3 the focal Tversky loss as published.

  Returns:
    (sum, count) as `dice`.

  Raises:
    InputError: an argument is impossible.
  """
  regions = _by_class(logits, truth)
  return tversky_of_regions(
    *regions, classes, smooth, false_positives, false_negatives, tversky_gamma
  )


def _by_class(logits: Array, truth: Array) -> tuple[Array, Array, Array]:
  """Probabilities float32 [k b n], where a class is true and where that is known, bool [k b n]."""

  def flat(x: Array) -> Array:
    return x.reshape(len(x), -1, x.shape[-1]).transpose(2, 0, 1)

  truth = flat(truth)
  return flat(jax.nn.sigmoid(logits.astype(jnp.float32))), truth == 1, truth != IGNORE


def _reduce(
  loss: Array, truth: Array, class_weights: Array | None, pixel_weights: Array | None
) -> tuple[Array, Array]:
  """Weights and sums a loss of pixels and classes, float32 [... k], where the truth is known."""
  counts = (truth != IGNORE).astype(jnp.float32)
  loss = jnp.where(truth != IGNORE, loss, 0.0)
  if class_weights is not None:
    weights = jnp.asarray(class_weights, jnp.float32).reshape((1,) * (truth.ndim - 1) + (-1,))
    weights = jnp.where(truth == 1, weights, 1.0)
    loss, counts = loss * weights, counts * weights
  if pixel_weights is not None:
    loss = loss * pixel_weights[..., None].astype(jnp.float32)
  return loss.sum(), counts.sum()
