"""Losses: (logits, label) -> (sum, count).

Every loss returns a sum and what to divide it by, never the mean: only sums can be added up across
devices that see different numbers of valid pixels. Divide last.

To add one: a function with its hyperparameters as keyword arguments, and a line in a table below.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jseg.lookup import lookup
from jseg.losses import detection
from jseg.losses.detection import keypoint_loss
from jseg.losses.pixels import cross_entropy, focal, ohem, weights_of
from jseg.losses.regions import lovasz_softmax, soft_dice, tversky
from jseg.types import Arguments, Array, InputError, InstanceOutputs

__all__ = [
  "DETECTION_LOSSES",
  "OVERLAPPING_PIXEL_LOSSES",
  "OVERLAPPING_REGION_LOSSES",
  "PIXEL_LOSSES",
  "REGION_LOSSES",
  "Loss",
  "arguments",
  "cross_entropy",
  "detection_losses",
  "focal",
  "keypoint_loss",
  "lovasz_softmax",
  "make_loss",
  "ohem",
  "soft_dice",
  "takes_weights",
  "tversky",
  "weights_of",
]

Loss = Callable[..., tuple[Array, Array]]
"""`(logits, label, class_weights=None, pixel_weights=None) -> (sum, count)`."""

PIXEL_LOSSES: dict[str, str] = {
  "cross_entropy": "jseg.losses.pixels:cross_entropy",
  "focal": "jseg.losses.pixels:focal",
  "ohem": "jseg.losses.pixels:ohem",
}
"""Sums over pixels, as "module:function"; they take `class_weights` and `pixel_weights`."""

REGION_LOSSES: dict[str, str] = {
  "dice": "jseg.losses.regions:soft_dice",
  "lovasz": "jseg.losses.regions:lovasz_softmax",
  "tversky": "jseg.losses.regions:tversky",
}
"""Sums over images, as "module:function"; they take no weights."""

OVERLAPPING_PIXEL_LOSSES: dict[str, str] = {
  "cross_entropy": "jseg.losses.binary:cross_entropy",
  "focal": "jseg.losses.binary:focal",
}
"""As `PIXEL_LOSSES`, where classes may overlap: of logits and truths [... k]."""

OVERLAPPING_REGION_LOSSES: dict[str, str] = {
  "dice": "jseg.losses.binary:dice",
  "tversky": "jseg.losses.binary:tversky",
}
"""As `REGION_LOSSES`, where classes may overlap."""

DETECTION_LOSSES: dict[str, Callable[[InstanceOutputs], tuple[Array, Array]]] = {
  "rpn_objectness": detection.rpn_objectness,
  "rpn_box": detection.rpn_box,
  "box_class": detection.box_class,
  "box": detection.box,
  "mask": detection.mask,
}
"""Losses of a network of objects, all of which are trained with."""

_WEIGHTS = ("class_weights", "pixel_weights")
_SCOPE = "across_devices"


def detection_losses(outputs: InstanceOutputs) -> dict[str, tuple[Array, Array]]:
  """Returns the losses of a network of objects by name, each as (sum, count)."""
  return {name: loss(outputs) for name, loss in DETECTION_LOSSES.items()}


def arguments() -> dict[str, object]:
  """Arguments of `make_loss` with their defaults: the hyperparameters of all losses by name."""
  values: dict[str, object] = {"name": "cross_entropy", "options": {}}
  table = {**PIXEL_LOSSES, **REGION_LOSSES}
  for name in table:
    values |= _hyperparameters(_find(name, table))
  return {**values, "set_weight": 1.0}


def _hyperparameters(loss: Loss) -> dict[str, object]:
  """Keyword arguments of a loss with their defaults, those that `make_loss` gives aside."""
  given = (*_WEIGHTS, _SCOPE)
  parameters = inspect.signature(loss).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given}


_TABLES = (PIXEL_LOSSES, REGION_LOSSES), (OVERLAPPING_PIXEL_LOSSES, OVERLAPPING_REGION_LOSSES)


def _parse(name: str, overlapping: bool = False) -> tuple[str, str]:
  """Splits a name into those of a pixel and of a region loss, either of which may be empty."""
  first, plus, second = name.partition("+")
  of_pixels, of_regions = _TABLES[overlapping]
  if plus:
    _find(first, of_pixels)
    _find(second, of_regions)
    return first, second
  parameters = inspect.signature(_find(first, {**of_pixels, **of_regions})).parameters
  return (first, "") if set(_WEIGHTS) <= set(parameters) else ("", first)


def _find(name: str, table: Mapping[str, str]) -> Loss:
  """Returns the loss of a name; raises InputError where there is none."""
  loss = lookup("name:", name, table)
  if not callable(loss):
    raise InputError(f"name: {name!r} is {loss!r}; it must be a function (logits, label)")
  return loss


def takes_weights(name: str) -> bool:
  """Whether the loss of this name, as for `make_loss`, takes weights of classes and pixels."""
  return bool(_parse(name)[0])


def make_loss(
  *,
  name: str = "cross_entropy",
  set_weight: float = 1.0,
  options: Arguments | None = None,
  overlapping: bool = False,
  **hyperparameters: Any,
) -> Loss:
  """Makes `loss(logits, label, class_weights=None, pixel_weights=None) -> (sum, count)`.

  Args:
    name: a pixel loss ("cross_entropy", "focal", "ohem"), a region loss ("dice", "lovasz",
      "tversky"), or one of each as "cross_entropy+dice"; your own are "package.module:name",
      pixel losses if they have the arguments `class_weights` and `pixel_weights`, else region
      losses. A sum is that of the means if all images have the same number of valid pixels; else an
      image's region loss counts as much as its pixels do. The pixels that "ohem" keeps are then
      picked within each image. Weights reach the pixel loss only.
    set_weight: factor of the region loss in a sum.
    options: hyperparameters of your own loss by name; every one must be its argument.
    overlapping: whether classes may overlap, so that each is a question of its own. The loss is
      then one of logits and truths int [... k] (`jseg.losses.binary`): "cross_entropy", "focal",
      "dice", "tversky", a sum or your own.
    **hyperparameters: hyperparameters of the losses here; what a loss doesn't have, it ignores.

  Raises:
    InputError: a value is impossible; when called, weights are given to a region loss alone.
  """
  if not set_weight >= 0:
    raise InputError(f"set_weight: {set_weight} must be at least 0")
  pixel_table, region_table = _TABLES[overlapping]
  pixel_name, region_name = _parse(name, overlapping)
  for key in hyperparameters:
    if key not in (known := arguments()):
      raise InputError(f"{key}: no loss has this argument; there are {', '.join(known)}")
  used = [_find(n, t) for n, t in ((pixel_name, pixel_table), (region_name, region_table)) if n]
  own = {key for loss in used for key in _hyperparameters(loss)} - arguments().keys()
  options = dict(options or {})
  for key in options:
    if key not in own:
      hint = f"there are {', '.join(sorted(own))}" if own else "they are for a loss of your own"
      raise InputError(f"options.{key}: {name!r} has no such hyperparameter; {hint}")
  hyperparameters |= options

  def bind(name: str, table: Mapping[str, str]) -> Loss:
    loss = _find(name, table)
    own = _hyperparameters(loss)
    bound = functools.partial(loss, **{k: v for k, v in hyperparameters.items() if k in own})
    # Defaults of ours are sound. Tracing six losses would take a moment at every start.
    if name not in table or {**own, **bound.keywords} != own:
      _try(bound, overlapping)
    return bound

  # Every known loss checks its own hyperparameters, used or not: a config's mistakes are told.
  bound = {key: bind(key, pixel_table) for key in (*pixel_table, pixel_name) if key}
  bound |= {key: bind(key, region_table) for key in (*region_table, region_name) if key}
  if not region_name:
    return bound[pixel_name]
  of_regions = bound[region_name]
  if not pixel_name:
    return functools.partial(_unweighted, of_regions, region_name)
  of_pixels = bound[pixel_name]
  if _SCOPE in inspect.signature(of_pixels).parameters:
    of_pixels = functools.partial(of_pixels, **{_SCOPE: False})
  return functools.partial(_sum_of_both, of_pixels, of_regions, set_weight)


def _try(loss: Loss, overlapping: bool) -> None:
  """Raises what a loss raises for its hyperparameters, without computing anything."""
  shape = (1, 1, 2)
  label = shape if overlapping else shape[:-1]
  jax.eval_shape(loss, *map(jax.ShapeDtypeStruct, (shape, label), ("float32", "int32")))


def _unweighted(
  loss: Loss,
  name: str,
  logits: Array,
  label: Array,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """A region loss alone."""
  if class_weights is not None or pixel_weights is not None:
    raise InputError(
      f"name: {name!r} takes no weights of classes or pixels; leave them out, or use one of "
      f"{', '.join(PIXEL_LOSSES)}, alone or + {name}"
    )
  return loss(logits, label)


def _sum_of_both(
  of_pixels: Loss,
  of_regions: Loss,
  set_weight: float,
  logits: Array,
  label: Array,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """A pixel loss, plus a region loss times the image's count: the count of pixels divides both."""

  def of_image(logits: Array, label: Array, pixel_weights: Array | None) -> tuple[Array, Array]:
    total, count = of_pixels(
      logits, label, class_weights=class_weights, pixel_weights=pixel_weights
    )
    region, _ = of_regions(logits[None], label[None])
    return total + set_weight * count * region, count

  total, count = jax.vmap(of_image)(logits, label, pixel_weights)
  return total.sum(), count.sum()
