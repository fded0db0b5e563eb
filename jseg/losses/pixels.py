"""Losses of pixels: sums over the labeled pixels, each with its own hyperparameters.

All are computed in float32 whatever the dtype of the logits. Void pixels add nothing and get no
gradient. Nothing is looked up by label, since the derivative of a look-up is a scatter.
"""

import jax
import jax.numpy as jnp

from jseg.nn.devices import AXIS, is_split
from jseg.types import IGNORE, Array, InputError


def cross_entropy(
  logits: Array,
  label: Array,
  *,
  label_smoothing: float = 0.0,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """Softmax cross-entropy, summed over the pixels whose label is not IGNORE.

  Args:
    logits: float [... k], of any floating type; the loss is computed in float32.
    label: int [...], each in [0, k) or IGNORE.
    label_smoothing: share e in [0, 1) of each pixel's truth that is spread evenly over all k
      classes (Szegedy et al. 2016, arXiv:1512.00567, section 7): the loss is
      (1 - e) -log p(truth) + e / k sum over c of -w_c log p_c, w the class weights, as in PyTorch.
    class_weights: float [k], at least 0. They multiply the losses and the count alike, so that the
      mean is a weighted mean, as in PyTorch.
    pixel_weights: float [...] as label, at least 0. They multiply the losses and not the count: a
      weight of 10 pulls ten times as hard, as in U-Net's sum of w(x) log p(x) (Ronneberger et al.
      2015, arXiv:1505.04597, equation 1).

  Returns:
    (sum of the losses in nats, number of valid pixels or the sum of their class weights), float32
    scalars. (0, 0) if none is valid.

  Raises:
    InputError: `label_smoothing` is out of range.
  """
  if not 0 <= label_smoothing < 1:
    raise InputError(f"label_smoothing: {label_smoothing} must be at least 0 (off) and below 1")
  total, count = _reduce(-_log_p(logits, label), label, class_weights, pixel_weights)
  if not label_smoothing:
    return total, count
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
  if class_weights is not None:
    log_p *= jnp.asarray(class_weights, jnp.float32).reshape((1,) * label.ndim + (-1,))
  even = jnp.where(label != IGNORE, -log_p.mean(-1), 0.0)
  spread, _ = _reduce(even, label, None, pixel_weights)
  return (1 - label_smoothing) * total + label_smoothing * spread, count


def focal(
  logits: Array,
  label: Array,
  *,
  gamma: float = 2.0,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """Focal loss, -(1 - p)^gamma log p (Lin et al. 2017, arXiv:1708.02002, equation 4).

  p is the softmax probability of the truth, where the paper has one sigmoid per class. The paper's
  alpha is `class_weights`, which here divide the mean too, so that gamma 0 is `cross_entropy`.

  Args:
    logits: float [... k].
    label: int [...], each in [0, k) or IGNORE.
    gamma: exponent, at least 0; the higher, the less those pixels count that are right already.
    class_weights: float [k], or None; as for `cross_entropy`.
    pixel_weights: float [...] as label, or None; as for `cross_entropy`.

  Returns:
    (sum, count) as `cross_entropy`.

  Raises:
    InputError: `gamma` is below 0.
  """
  if not gamma >= 0:
    raise InputError(f"gamma: {gamma} must be at least 0")
  log_p = _log_p(logits, label)
  # Below gamma 1 the power has an infinite slope at p = 1.
  miss = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
  return _reduce(-(miss**gamma) * log_p, label, class_weights, pixel_weights)


def ohem(
  logits: Array,
  label: Array,
  *,
  hardest: float = 0.0625,
  threshold: float = 0.7,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
  across_devices: bool = True,
) -> tuple[Array, Array]:
  """Cross-entropy of the hard pixels only (online hard example mining).

  Kept are the valid pixels whose probability of the truth is below `threshold`, and at least the
  share `hardest` of the valid pixels, lowest probabilities first; ties at its edge are all kept.
  Shrivastava et al. 2016, arXiv:1604.03540; for pixels as in BiSeNet (Yu et al. 2018,
  arXiv:1808.00897), whose code has these defaults.

  The share is picked among the pixels of the global batch, so that which ones are kept depends on
  neither the number of devices nor how void is spread over them; of a batch that is worked through
  in parts (`accumulate`), among the pixels of a part. A pixel whose loss is NaN is the hardest
  there is, so that it is not lost.

  Args:
    logits: float [... k].
    label: int [...], each in [0, k) or IGNORE.
    hardest: share in [0, 1]; 0 leaves it to the threshold.
    threshold: probability in [0, 1]; 0 leaves it to the share.
    class_weights: float [k], or None; as for `cross_entropy`. They don't change what is kept.
    pixel_weights: float [...] as label, or None; as for `cross_entropy`. They don't change what is
      kept.
    across_devices: whether the share is picked among the pixels of all devices, where a batch is
      split over several (`jseg.nn.devices`), or else among those of this call.

  Returns:
    (sum, count) over the kept pixels as `cross_entropy`.

  Raises:
    InputError: `hardest` or `threshold` is out of range, or both are 0.
  """
  for key, value in {"hardest": hardest, "threshold": threshold}.items():
    if not 0 <= value <= 1:
      raise InputError(f"{key}: {value} must be from 0 to 1")
  if not hardest and not threshold:
    raise InputError("hardest: 0, as threshold is, keeps no pixel; raise one of them")
  log_p = jax.lax.stop_gradient(_log_p(logits, label))
  kept = jnp.exp(log_p) < threshold
  if hardest:
    kept |= _largest(-log_p, label != IGNORE, hardest, across_devices and is_split())
  label = jnp.where(kept, label, IGNORE)
  return cross_entropy(logits, label, class_weights=class_weights, pixel_weights=pixel_weights)


def _largest(values: Array, valid: Array, share: float, across_devices: bool) -> Array:
  """Marks the largest of the valid values, ties at the edge included.

  Args:
    values: float32 [...], at least 0 or NaN, which counts as the largest; 0 where not valid.
    valid: bool [...].
    share: share in (0, 1] of the valid ones that is marked, rounded up to whole values.
    across_devices: whether the values of all devices are one set.

  Returns:
    bool [...]
  """

  def total(marked: Array) -> Array:
    count = marked.sum(dtype=jnp.int32)
    return jax.lax.psum(count, AXIS) if across_devices else count

  # The bits of floats that aren't negative are in the order of their values, so that 31 counts find
  # the edge bit by bit: quicker than sorting, and a count is all that devices must exchange.
  bits = jax.lax.bitcast_convert_type(jnp.abs(values), jnp.int32)
  least = jnp.ceil(share * total(valid).astype(jnp.float32)).astype(jnp.int32)

  def refine(i: Array, edge: Array) -> Array:
    higher = edge | (1 << (30 - i))
    return jnp.where(total(bits >= higher) >= least, higher, edge)

  return (bits >= jax.lax.fori_loop(0, 31, refine, jnp.int32(0))) & (least > 0)


def weights_of(label: Array, class_weights: Array) -> Array:
  """Weight of each pixel's class: float32 [...] as label, 0 where it is IGNORE.

  Args:
    label: int [...], each in [0, k) or IGNORE.
    class_weights: float [k].
  """
  by_class = jnp.asarray(class_weights, jnp.float32).reshape((1,) * label.ndim + (-1,))
  return jnp.where(_hits(label, by_class.size), by_class, 0.0).sum(-1)


def _hits(label: Array, num_classes: int) -> Array:
  """Bool [... k]: which class is the truth. IGNORE equals no class."""
  return label[..., None] == jnp.arange(num_classes).reshape((1,) * label.ndim + (-1,))


def _log_p(logits: Array, label: Array) -> Array:
  """Log probability of the truth, float32 [...]; 0 where it is void."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
  return jnp.where(_hits(label, logits.shape[-1]), log_p, 0.0).sum(-1)


def _reduce(
  loss: Array,
  label: Array,
  class_weights: Array | None,
  pixel_weights: Array | None,
) -> tuple[Array, Array]:
  """Weights and sums a loss of pixels, float32 [...], that is 0 where void."""
  counts = (label != IGNORE).astype(jnp.float32)
  if class_weights is not None:
    counts = weights_of(label, class_weights)
    loss = loss * counts
  if pixel_weights is not None:
    loss = loss * jnp.where(label != IGNORE, pixel_weights, 0.0).astype(jnp.float32)
  return loss.sum(), counts.sum()
