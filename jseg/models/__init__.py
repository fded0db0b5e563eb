"""The networks by name. To add one: a file in this folder, and a line here."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jseg import nn
from jseg.lookup import lookup_class
from jseg.models.base import Network
from jseg.types import Arguments, InputError

__all__ = [
  "Network",
  "arguments",
  "check_remat",
  "count_parameters",
  "create",
  "fitting",
  "get",
  "names",
  "upgrade",
]

# name: "module:class".
_MODELS: dict[str, str] = {
  "patch_classifier": "jseg.models.patch_classifier:PatchClassifier",
  "fcn32s": "jseg.models.fcn:FCN32s",
  "fcn16s": "jseg.models.fcn:FCN16s",
  "fcn8s": "jseg.models.fcn:FCN8s",
  "segnet": "jseg.models.segnet:SegNet",
  "segnet_basic": "jseg.models.segnet:SegNetBasic",
  "unet": "jseg.models.unet:UNet",
  "unet3d": "jseg.models.unet3d:UNet3D",
  "deeplab_v1": "jseg.models.deeplab_v1:DeepLabV1",
  "deeplab_v2": "jseg.models.deeplab_v2:DeepLabV2",
  "deeplab_v3": "jseg.models.deeplab_v3:DeepLabV3",
  "fcn_resnet": "jseg.models.fcn_resnet:FCNResNet",
  "pspnet": "jseg.models.pspnet:PSPNet",
  "refinenet": "jseg.models.refinenet:RefineNet",
  "mask_rcnn": "jseg.models.mask_rcnn:MaskRCNN",
}
# Fields that are not arguments of the network alone: the data set, the run and Flax set them.
_COMMON: frozenset[str] = frozenset(
  {"num_classes", "dtype", "param_dtype", "remat", "parent", "name"}
)


def names() -> list[str]:
  """Names of the library's own networks."""
  return list(_MODELS)


def create(name: str, num_classes: int, *, remat: str = "none", **overrides: Any) -> Network:
  """Makes a network.

  Args:
    name: one of `names()`, or "package.module:Name" of a subclass of `Network`.
    num_classes: number of classes, background included.
    remat: what is computed again in the backward pass (`jseg.nn.Staged`).
    **overrides: arguments (`arguments(name)`), `dtype` and `param_dtype` that differ from the
      defaults.

  Returns:
    The Flax module: `model.apply(variables, image, train=False) -> Outputs`.

  Raises:
    InputError: there is no such network or argument, it has no stages to compute again, or a value
      is impossible.
  """
  model, known = get(name), arguments(name)
  unknown = [k for k in overrides if k not in known and k not in ("dtype", "param_dtype")]
  if unknown:
    raise InputError(f"model {name} has no setting {unknown[0]!r}; choose from {', '.join(known)}")
  most = model.MAX_CLASSES
  rule = f"2 to {most}" if most else "at least 2"
  if isinstance(num_classes, bool) or not isinstance(num_classes, int):
    raise InputError(f"num_classes: {num_classes!r} must be a whole number, {rule}")
  if num_classes < 2 or (most and num_classes > most):
    raise InputError(f"num_classes: {num_classes} must be {rule}; count the background as a class")
  check_remat(model, remat)
  if remat != "none":
    overrides["remat"] = remat
  return model(num_classes, **overrides)


def check_remat(network: type[Network], remat: str) -> None:
  """Raises InputError if a network's class can't be made with this `remat`."""
  nn.check_remat(remat)
  if remat != "none" and not issubclass(network, nn.Staged):
    raise InputError(
      f"remat: {network.__name__} has no stages to compute again; leave it none, or derive the "
      "network from jseg.nn.Staged"
    )


def arguments(network: str | type[Network]) -> dict[str, object]:
  """Arguments of a network with their defaults: plain values, fit for a config file.

  The dtype isn't among them, as it belongs to the run.

  Args:
    network: name of the network, as for `create`, or its class.

  Raises:
    InputError: there is no such network, or an argument of it has no default.
  """
  kind = get(network) if isinstance(network, str) else network
  fields = [f for f in dataclasses.fields(kind) if f.init and f.name not in _COMMON]
  for field in fields:
    if field.default is dataclasses.MISSING:
      raise InputError(f"{kind.__name__}: argument {field.name} must have a default")
  return {field.name: field.default for field in fields}


def upgrade(name: str, arguments: Arguments) -> Arguments:
  """Translates the arguments of an older run's configuration (`Network.upgrade`)."""
  return get(name).upgrade(arguments)


def fitting(*, task: str | None = None, ndim: int | None = None) -> list[str]:
  """Names of the library's networks of a task, or for images (2) or volumes (3)."""
  kinds = {name: get(name) for name in names()}
  return [
    name for name, kind in kinds.items() if task in (None, kind.task) and ndim in (None, kind.ndim)
  ]


def count_parameters(name: str, num_classes: int, channels: int = 3, **overrides: Any) -> int:
  """Number of trained values of a network, found without computing anything.

  Args:
    name: name of the network, as for `create`.
    num_classes: number of classes, as for `create`.
    channels: channels of the image.
    **overrides: arguments, as for `create`.
  """
  model = create(name, num_classes, **overrides)
  image = jax.ShapeDtypeStruct((1, *(64,) * model.ndim, channels), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def get(name: str) -> type[Network]:
  """Returns the class of a network; it is imported only now, so that start-up is quick.

  Raises:
    InputError: there is no such network.
  """
  return lookup_class("model", name, _MODELS, Network)
