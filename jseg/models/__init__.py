"""The networks by name. To add one: a file in this folder, and a line here."""

import dataclasses
import importlib
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.models.base import Network
from jseg.types import IGNORE, InputError

__all__ = [
  "Network",
  "aux_weights",
  "count_parameters",
  "create",
  "knobs",
  "names",
  "ndim",
  "task",
  "tiny",
]

# name: "module:class".
_MODELS = {
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
# Arguments that are not the network's own: the data set and the run decide on them.
_COMMON = ("num_classes", "dtype", "param_dtype", "parent", "name")


def names() -> list[str]:
  """Names of all networks."""
  return list(_MODELS)


def create(name: str, num_classes: int, **overrides: Any) -> nn.Module:
  """Makes a network.

  Args:
    name: one of `names()`.
    num_classes: number of classes, background included.
    **overrides: knobs (`knobs(name)`), `dtype` and `param_dtype` that differ from the defaults.

  Returns:
    The Flax module: `model.apply(variables, image, train=False) -> Outputs`.

  Raises:
    InputError: there is no such network or knob, or a value is impossible.
  """
  model = _load(name)
  unknown = [k for k in overrides if k not in knobs(name) and k not in ("dtype", "param_dtype")]
  if unknown:
    raise InputError(
      f"model {name} has no setting {unknown[0]!r}; choose from {', '.join(knobs(name))}"
    )
  # Masks of classes are bytes, of which one value means "ignore"; objects may be of any number.
  rule = f"2 to {IGNORE}" if task(name) == "semantic" else "at least 2"
  if isinstance(num_classes, bool) or not isinstance(num_classes, int):
    raise InputError(f"num_classes: {num_classes!r} must be a whole number, {rule}")
  if num_classes < 2 or (num_classes > IGNORE and task(name) == "semantic"):
    raise InputError(f"num_classes: {num_classes} must be {rule}; count the background as a class")
  return model(num_classes, **overrides)


def knobs(name: str) -> dict[str, Any]:
  """What can be set on a network, with its defaults: plain values, fit for a config file.

  The type of the computation isn't among them, as it belongs to the run.
  """
  fields = dataclasses.fields(_load(name))
  return {f.name: f.default for f in fields if f.init and f.name not in _COMMON}


def tiny(name: str) -> dict[str, Any]:
  """Knobs of a network small enough for tests."""
  return dict(_load(name).TINY)


def count_parameters(name: str, num_classes: int, channels: int = 3, **overrides: Any) -> int:
  """Number of trained values of a network, found without computing anything.

  Args:
    name: one of `names()`.
    num_classes: as for `create`.
    channels: of the image.
    **overrides: as for `create`.
  """
  model = create(name, num_classes, **overrides)
  image = jax.ShapeDtypeStruct((1, *(64,) * ndim(name), channels), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def aux_weights(name: str) -> dict[str, float]:
  """What the losses of a network's auxiliary outputs count, by name; empty for most."""
  return dict(getattr(_load(name), "AUX_WEIGHTS", {}))


def ndim(name: str) -> int:
  """2 for a network of images, 3 for one of volumes."""
  return getattr(_load(name), "ndim", 2)


def task(name: str) -> str:
  """What a network is for: "semantic", one class a pixel, or "instance", a mask an object."""
  return getattr(_load(name), "task", "semantic")


def _load(name: str) -> Any:
  """The class of a network; imported only now, so that start-up is quick."""
  if name not in _MODELS:
    raise InputError(f"model {name!r} is unknown; choose from {', '.join(_MODELS)}")
  path, attribute = _MODELS[name].split(":")
  return getattr(importlib.import_module(path), attribute)
