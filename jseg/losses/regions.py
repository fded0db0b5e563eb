"""Losses of regions: overlap of the classes, image by image, each with its own hyperparameters.

They are no sums over pixels, so they are taken image by image and summed over images. All are
computed in float32 whatever the dtype of the logits. Void pixels add nothing and get no gradient.
"""

import jax
import jax.numpy as jnp

from jseg.types import IGNORE, Array, InputError

CLASSES = ("present", "all")


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
    smooth: constant above and below the line, at least 0, in pixels. An absent class costs
      p / (p + s) for a sum of probabilities p: smooth 0 has no gradient there.

  Returns:
    (sum over the images, number of images with any valid pixel), float32 scalars.

  Raises:
    InputError: an argument is impossible.
  """
  return dice_of_regions(*_by_class(logits, label), classes, smooth)


def dice_of_regions(
  p: Array, hits: Array, valid: Array, classes: str, smooth: float
) -> tuple[Array, Array]:
  """`soft_dice` of probabilities.

  Args:
    p: float32 [k b n], probability of each class.
    hits: bool [k b n], where it is the truth; nowhere where that isn't known.
    valid: bool [k b n], where the truth is known, or [1 b n] if that is so of all classes alike.
    classes: as for `soft_dice`.
    smooth: as for `soft_dice`.
  """
  _check_classes(classes)
  if not smooth >= 0:
    raise InputError(f"smooth: {smooth} must be at least 0")
  both = jnp.where(hits, p, 0.0).sum(-1)
  truth = hits.sum(-1, dtype=jnp.float32)
  sizes = jnp.where(valid, p, 0.0).sum(-1) + truth
  # Smooth 0 makes 0 / 0 of a class that is neither true nor predicted: Dice 0, without gradient.
  loss = 1.0 - (2.0 * both + smooth) / jnp.maximum(sizes + smooth, jnp.finfo(jnp.float32).tiny)
  return _mean_over_classes(loss, truth, valid, classes)


def tversky(
  logits: Array,
  label: Array,
  *,
  classes: str = "present",
  smooth: float = 1.0,
  false_positives: float = 0.3,
  false_negatives: float = 0.7,
  tversky_gamma: float = 1.0,
) -> tuple[Array, Array]:
  """(1 - Tversky index)^(1 / gamma) of the probabilities, the mean over classes, image by image.

  The index of a class is (TP + s) / (TP + a FP + b FN + s) over the valid pixels of an image, with
  TP = sum p g, FP = sum p (1 - g), FN = sum (1 - p) g, p its probability, g 1 where it is the truth
  (Salehi et al. 2017, arXiv:1706.05721, equation 3). With a = b = 1/2 it is Dice, with a = b = 1
  the Jaccard index. Gamma 4/3 makes it the focal Tversky loss (Abraham & Khan 2018,
  arXiv:1810.07842, equation 4).

  Args:
    logits: float [b ... k].
    label: int [b ...], each in [0, k) or IGNORE.
    classes: "present" takes the mean over the classes in an image's truth, "all" over all k.
    smooth: constant s above and below the line, at least 0, in pixels.
    false_positives: their weight a, at least 0.
    false_negatives: their weight b, at least 0; above a, small objects are rather found than
      missed.
    tversky_gamma: 1 / gamma is the exponent; above 1, classes count for more that are nearly right
      than without it, at 4/3 as published.

  Returns:
    (sum over the images, number of images with any valid pixel), float32 scalars.

  Raises:
    InputError: an argument is impossible.
  """
  regions = _by_class(logits, label)
  return tversky_of_regions(
    *regions, classes, smooth, false_positives, false_negatives, tversky_gamma
  )


def tversky_of_regions(
  p: Array,
  hits: Array,
  valid: Array,
  classes: str,
  smooth: float,
  false_positives: float,
  false_negatives: float,
  tversky_gamma: float,
) -> tuple[Array, Array]:
  """`tversky` of probabilities, as `dice_of_regions` is `soft_dice` of them."""
  _check_classes(classes)
  weights = {"false_positives": false_positives, "false_negatives": false_negatives}
  for key, value in {"smooth": smooth, **weights}.items():
    if not value >= 0:
      raise InputError(f"{key}: {value} must be at least 0")
  if not tversky_gamma > 0:
    raise InputError(f"tversky_gamma: {tversky_gamma} must be above 0; 1 is no focus")
  right = jnp.where(hits, p, 0.0).sum(-1)
  truth = hits.sum(-1, dtype=jnp.float32)
  wrong = jnp.where(valid & ~hits, p, 0.0).sum(-1)
  missed = jnp.where(hits, 1.0 - p, 0.0).sum(-1)
  errors = false_positives * wrong + false_negatives * missed
  tiny = jnp.finfo(jnp.float32).tiny
  # 1 - index, without the difference of two numbers that are nearly 1.
  loss = errors / jnp.maximum(right + errors + smooth, tiny)
  if tversky_gamma != 1:
    # Below an exponent of 1 the power has an infinite slope at 0.
    loss = jnp.maximum(loss, tiny) ** (1.0 / tversky_gamma)
  return _mean_over_classes(loss, truth, valid, classes)


def lovasz_softmax(logits: Array, label: Array, *, classes: str = "present") -> tuple[Array, Array]:
  """Lovasz-Softmax, a convex surrogate of 1 - IoU, the mean over classes, image by image.

  Berman et al. 2018, arXiv:1705.08790, algorithm 1 and equation 11: for each class the errors of an
  image's valid pixels, largest first, are weighted by how much each adds to the Jaccard loss. Needs
  two sorts of the image per class.

  Args:
    logits: float [b ... k].
    label: int [b ...], each in [0, k) or IGNORE.
    classes: "present" takes the mean over the classes in an image's truth, "all" over all k.

  Returns:
    (sum over the images, number of images with any valid pixel), float32 scalars.

  Raises:
    InputError: an argument is impossible.
  """
  _check_classes(classes)
  p, hits, valid = _by_class(logits, label)
  errors = jnp.where(valid, jnp.where(hits, 1.0 - p, p), 0.0)
  # Void pixels have no error and come last, where they change no weight. One class at a time bounds
  # the memory.
  weights = jax.lax.map(lambda x: _jaccard_steps(*x), (jax.lax.stop_gradient(errors), hits))
  return _mean_over_classes((errors * weights).sum(-1), hits.sum(-1), valid, classes)


def _check_classes(classes: str) -> None:
  if classes not in CLASSES:
    raise InputError(f"classes: {classes!r} is unknown; choose from {', '.join(CLASSES)}")


def _by_class(logits: Array, label: Array) -> tuple[Array, Array, Array]:
  """Probabilities float32 [k b n] and truth bool [k b n] of n pixels, and valid bool [1 b n]."""
  p = jax.nn.softmax(logits.astype(jnp.float32), -1)
  p = p.reshape(len(p), -1, p.shape[-1]).transpose(2, 0, 1)
  label = label.reshape(len(label), -1)
  hits = label[None] == jnp.arange(len(p))[:, None, None]
  return p, hits, label[None] != IGNORE


def _mean_over_classes(
  loss: Array, truth: Array, valid: Array, classes: str
) -> tuple[Array, Array]:
  """(sum, count) over the images of losses [k b], given true pixels [k b] and valid [k b n]."""
  counted = {"present": truth > 0, "all": jnp.broadcast_to(valid.any(-1), truth.shape)}[classes]
  mean = jnp.where(counted, loss, 0.0).sum(0) / jnp.maximum(counted.sum(0), 1)
  images = valid.any((0, -1))
  return jnp.where(images, mean, 0.0).sum(), images.sum(dtype=jnp.float32)


def _jaccard_steps(errors: Array, hits: Array) -> Array:
  """What each pixel adds to the Jaccard loss, if pixels turn wrong in the order of their errors.

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
