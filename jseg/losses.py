"""Losses over labelled pixels: (logits, label) -> (sum, count).

Every loss returns a sum and what to divide it by, never the mean: only sums can be added up across
devices that see different numbers of valid pixels. Divide last.

Losses of pixels (`cross_entropy`, `focal`, `ohem`) sum over pixels; losses of sets (`soft_dice`,
`lovasz_softmax`) are no sums over pixels, so they are taken image by image and sum over images.
All are computed in float32 whatever the type of the logits. Void pixels add nothing and get no
gradient. Nothing is looked up by label, since the derivative of a look-up is a scatter.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jseg.types import IGNORE, Array, InputError

Loss = Callable[..., tuple[Array, Array]]


def cross_entropy(
  logits: Array,
  label: Array,
  *,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """Softmax cross-entropy, summed over the pixels whose label is not IGNORE.

  Args:
    logits: float [... k], of any floating type; the loss is computed in float32.
    label: int [...], each in [0, k) or IGNORE.
    class_weights: float [k], at least 0. They multiply the losses and the count alike, so that the
      mean is a weighted mean, as in PyTorch.
    pixel_weights: float [...] as label, at least 0. They multiply the losses and not the count: a
      weight of 10 pulls ten times as hard, as in U-Net's sum of w(x) log p(x) (Ronneberger et al.
      2015, arXiv:1505.04597, equation 1).

  Returns:
    (sum of the losses in nats, number of valid pixels or the sum of their class weights), float32
    scalars. (0, 0) if none is valid.
  """
  return _reduce(-_log_p(logits, label), label, class_weights, pixel_weights)


def focal(
  logits: Array,
  label: Array,
  *,
  gamma: float = 2.0,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """Focal loss, -(1 - p)^gamma log p (Lin et al. 2017, arXiv:1708.02002, equation 4).

  p is the softmax probability of the truth, where the paper has one sigmoid a class. The paper's
  alpha is `class_weights`, which here divide the mean too, so that gamma 0 is `cross_entropy`.

  Args:
    logits: float [... k].
    label: int [...], each in [0, k) or IGNORE.
    gamma: at least 0; how much less the pixels count that are right already.
    class_weights: see `cross_entropy`.
    pixel_weights: see `cross_entropy`.

  Returns:
    (sum, count) as `cross_entropy`.
  """
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
) -> tuple[Array, Array]:
  """Cross-entropy of the hard pixels only (online hard example mining).

  Kept are the valid pixels whose probability of the truth is below `threshold`, and at least the
  share `hardest` of the valid pixels, lowest probabilities first; ties at its edge are all kept.
  Shrivastava et al. 2016, arXiv:1604.03540; for pixels as in BiSeNet (Yu et al. 2018,
  arXiv:1808.00897), whose code has these defaults.

  The share is picked among the pixels of one call. Under data parallelism that is one device's part
  of the batch, so that which pixels are kept depends on the number of devices.

  Args:
    logits: float [... k].
    label: int [...], each in [0, k) or IGNORE.
    hardest: share in [0, 1]; 0 leaves it to the threshold.
    threshold: probability in [0, 1]; 0 leaves it to the share.
    class_weights: see `cross_entropy`; they don't change which pixels are kept.
    pixel_weights: see `cross_entropy`; they don't change which pixels are kept.

  Returns:
    (sum, count) over the kept pixels as `cross_entropy`.
  """
  log_p = jax.lax.stop_gradient(_log_p(logits, label))
  least = jnp.ceil(hardest * (label != IGNORE).sum(dtype=jnp.float32)).astype(jnp.int32)
  ordered = jnp.sort(log_p.reshape(-1))  # void is 0, which comes last
  edge = jax.lax.dynamic_index_in_dim(ordered, jnp.maximum(least - 1, 0), keepdims=False)
  kept = (jnp.exp(log_p) < threshold) | ((log_p <= edge) & (least > 0))
  label = jnp.where(kept, label, IGNORE)
  return cross_entropy(logits, label, class_weights=class_weights, pixel_weights=pixel_weights)


def soft_dice(
  logits: Array, label: Array, *, classes: str = "present", smooth: float = 1.0
) -> tuple[Array, Array]:
  """1 - Dice of the probabilities, the mean over classes, image by image.

  Dice of a class is (2 sum p g + s) / (sum p + sum g + s) over the valid pixels of an image, p its
  probability, g 1 where it is the truth, s `smooth` (Drozdzal et al. 2016, arXiv:1608.04117; V-Net,
  arXiv:1606.04797, squares the terms below the line).

  Args:
    logits: float [b ... k].
    label: int [b ...], each in [0, k) or IGNORE.
    classes: "present" takes the mean over the classes in an image's truth, "all" over all k.
    smooth: at least 0, in pixels. An absent class costs p / (p + s) for a sum of probabilities p:
      smooth 0 has no gradient there.

  Returns:
    (sum over the images, number of images with any valid pixel), float32 scalars.
  """
  p, hits, valid = _by_class(logits, label)
  both = jnp.where(hits, p, 0.0).sum(-1)
  truth = hits.sum(-1, dtype=jnp.float32)
  sizes = jnp.where(valid[None], p, 0.0).sum(-1) + truth
  # Smooth 0 makes 0 / 0 of a class that is neither true nor predicted: Dice 0, without gradient.
  loss = 1.0 - (2.0 * both + smooth) / jnp.maximum(sizes + smooth, jnp.finfo(jnp.float32).tiny)
  return _mean_over_classes(loss, truth, valid, classes)


def lovasz_softmax(logits: Array, label: Array, *, classes: str = "present") -> tuple[Array, Array]:
  """Lovasz-Softmax, a convex surrogate of 1 - IoU, the mean over classes, image by image.

  Berman et al. 2018, arXiv:1705.08790, algorithm 1 and equation 11: for each class the errors of an
  image's valid pixels, largest first, are weighted by how much each adds to the Jaccard loss. Needs
  two sorts of the image a class.

  Args:
    logits: float [b ... k].
    label: int [b ...], each in [0, k) or IGNORE.
    classes: "present" takes the mean over the classes in an image's truth, "all" over all k.

  Returns:
    (sum over the images, number of images with any valid pixel), float32 scalars.
  """
  p, hits, valid = _by_class(logits, label)
  errors = jnp.where(valid[None], jnp.where(hits, 1.0 - p, p), 0.0)
  # Void pixels have no error and come last, where they change no weight. One class at a time bounds
  # the memory.
  weights = jax.lax.map(lambda x: _jaccard_steps(*x), (jax.lax.stop_gradient(errors), hits))
  return _mean_over_classes((errors * weights).sum(-1), hits.sum(-1), valid, classes)


PIXEL_LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "ohem": ohem}
SET_LOSSES: dict[str, Loss] = {"dice": soft_dice, "lovasz": lovasz_softmax}
CLASSES = ("present", "all")


def make_loss(
  *,
  name: str = "cross_entropy",
  gamma: float = 2.0,
  hardest: float = 0.0625,
  threshold: float = 0.7,
  classes: str = "present",
  smooth: float = 1.0,
  set_weight: float = 1.0,
) -> Loss:
  """Makes `loss(logits, label, class_weights=None, pixel_weights=None) -> (sum, count)`.

  Args:
    name: "cross_entropy", "focal" or "ohem"; "dice" or "lovasz"; or one of the former and one of
      the latter as "cross_entropy+dice". A sum is that of the means if all images have the same
      number of valid pixels; else an image's Dice or Lovasz counts as much as its pixels do. The
      pixels that "ohem" keeps are then picked within each image. Weights reach losses of pixels
      only.
    gamma: of "focal".
    hardest: of "ohem".
    threshold: of "ohem".
    classes: of "dice" and "lovasz".
    smooth: of "dice".
    set_weight: in a sum, the factor of "dice" or "lovasz".

  Raises:
    InputError: a value is impossible; when called, weights are given to "dice" or "lovasz" alone.
  """
  pixel_name, _, set_name = name.partition("+")
  if name in SET_LOSSES:
    pixel_name, set_name = "", name
  elif pixel_name not in PIXEL_LOSSES or ("+" in name and set_name not in SET_LOSSES):
    raise InputError(
      f"loss.name: {name!r} is unknown; choose from {', '.join([*PIXEL_LOSSES, *SET_LOSSES])}, "
      "or one of the first three + one of the last two, as cross_entropy+dice"
    )
  if classes not in CLASSES:
    raise InputError(f"loss.classes: {classes!r} is unknown; choose from {', '.join(CLASSES)}")
  for key, value in {"gamma": gamma, "smooth": smooth, "set_weight": set_weight}.items():
    if not value >= 0:
      raise InputError(f"loss.{key}: {value} must be at least 0")
  for key, value in {"hardest": hardest, "threshold": threshold}.items():
    if not 0 <= value <= 1:
      raise InputError(f"loss.{key}: {value} must be from 0 to 1")
  if not hardest and not threshold:
    raise InputError("loss.hardest and loss.threshold are both 0, which keeps no pixel; raise one")
  options: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "focal": {"gamma": gamma},
    "ohem": {"hardest": hardest, "threshold": threshold},
    "dice": {"classes": classes, "smooth": smooth},
    "lovasz": {"classes": classes},
  }

  def of_pixels(logits, label, class_weights, pixel_weights):
    weights = {"class_weights": class_weights, "pixel_weights": pixel_weights}
    return PIXEL_LOSSES[pixel_name](logits, label, **weights, **options[pixel_name])

  def of_sets(logits, label):
    return SET_LOSSES[set_name](logits, label, **options[set_name])

  def loss(logits, label, class_weights=None, pixel_weights=None):
    if not set_name:
      return of_pixels(logits, label, class_weights, pixel_weights)
    if not pixel_name:
      if class_weights is not None or pixel_weights is not None:
        raise InputError(
          f"loss.name: {name!r} takes no weights of classes or pixels; "
          f"leave them out, or use one of {', '.join(PIXEL_LOSSES)}, alone or + {name}"
        )
      return of_sets(logits, label)

    # The set's loss times the image's count: then the count of pixels divides both.
    def of_image(logits, label, pixel_weights):
      total, count = of_pixels(logits, label, class_weights, pixel_weights)
      return total + set_weight * count * of_sets(logits[None], label[None])[0], count

    total, count = jax.vmap(of_image)(logits, label, pixel_weights)
    return total.sum(), count.sum()

  return loss


def mean_over_devices(total: Array, count: Array, axis_name: str) -> tuple[Array, Array]:
  """The mean of a (sum, count) loss over all devices: reduce sums first, divide last.

  Returns:
    (mean loss, global count); the mean is 0 where nothing is valid.
  """
  total, count = jax.lax.psum((total, count), axis_name)
  return total / jnp.where(count > 0, count, 1.0), count


def weights_of(label: Array, class_weights: Array) -> Array:
  """What each pixel's class weighs: float32 [...] as label, 0 where it is IGNORE.

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


def _by_class(logits: Array, label: Array) -> tuple[Array, Array, Array]:
  """Probabilities float32 [k b n] and truth bool [k b n] of n pixels, and valid bool [b n]."""
  p = jax.nn.softmax(logits.astype(jnp.float32), -1)
  p = p.reshape(len(p), -1, p.shape[-1]).transpose(2, 0, 1)
  label = label.reshape(len(label), -1)
  hits = label[None] == jnp.arange(len(p))[:, None, None]
  return p, hits, label != IGNORE


def _mean_over_classes(
  loss: Array, truth: Array, valid: Array, classes: str
) -> tuple[Array, Array]:
  """(sum, count) over the images of losses [k b], given true pixels [k b] and valid [b n]."""
  counted = {"present": truth > 0, "all": jnp.ones(truth.shape, bool)}[classes]
  mean = jnp.where(counted, loss, 0.0).sum(0) / jnp.maximum(counted.sum(0), 1)
  images = valid.any(-1)
  return jnp.where(images, mean, 0.0).sum(), images.sum(dtype=jnp.float32)


def _jaccard_steps(errors: Array, hits: Array) -> Array:
  """What each pixel adds to the Jaccard loss if pixels turn wrong in the order of their errors.

  Args:
    errors: float32 [b n].
    hits: bool [b n], where the class is the truth.

  Returns:
    float32 [b n], without gradient.
  """
  position = jax.lax.broadcasted_iota(jnp.int32, errors.shape, 1)
  _, order, hits = jax.lax.sort((-errors, position, hits.astype(jnp.int32)), num_keys=1)
  truth = hits.sum(-1, keepdims=True)
  found = jnp.cumsum(hits, -1)
  left = (truth - found).astype(jnp.float32)  # the intersection once this pixel is wrong
  union = (truth + position + 1 - found).astype(jnp.float32)
  # Each in closed form: differences of the loss itself would be lost in float32's rounding.
  steps = jnp.where(hits > 0, 1.0 / union, left / union / jnp.maximum(union - 1.0, 1.0))
  # Of an absent class the first error costs everything.
  steps = jnp.where((truth == 0) & (position == 0), 1.0, steps)
  # Back in the order of the pixels by a sort, which is no scatter.
  return jax.lax.sort((order, steps), num_keys=1)[1]
