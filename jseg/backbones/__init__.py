"""Classifiers whose features networks build on, by name. To add one: a file, and a line here."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jseg.backbones.alexnet import AlexNet
from jseg.backbones.base import Backbone, Features
from jseg.backbones.googlenet import GoogLeNet
from jseg.backbones.resnet import ResNet
from jseg.backbones.vgg import VGG16
from jseg.lookup import lookup_class
from jseg.types import Arguments, InputError

__all__ = [
  "VGG16",
  "AlexNet",
  "Backbone",
  "Features",
  "GoogLeNet",
  "ResNet",
  "check",
  "create",
  "names",
]

# name: "module:class", and the arguments that make it this one. "_torchvision" is the form of its
# weights.
_BACKBONES: dict[str, tuple[str, Arguments]] = {
  "resnet18": ("jseg.backbones.resnet:ResNet", {"depth": 18}),
  "resnet34": ("jseg.backbones.resnet:ResNet", {"depth": 34}),
  "resnet50": ("jseg.backbones.resnet:ResNet", {"depth": 50}),
  "resnet101": ("jseg.backbones.resnet:ResNet", {"depth": 101}),
  "resnet152": ("jseg.backbones.resnet:ResNet", {"depth": 152}),
  "vgg16": ("jseg.backbones.vgg:VGG16", {}),
  "vgg16_bn": ("jseg.backbones.vgg:VGG16", {"norm": "batch"}),
  "alexnet": (
    "jseg.backbones.alexnet:AlexNet",
    {"widths": (96, 256, 384, 384, 256), "groups": 2, "lrn": True},
  ),
  "alexnet_torchvision": ("jseg.backbones.alexnet:AlexNet", {}),
  "googlenet": ("jseg.backbones.googlenet:GoogLeNet", {}),
  "googlenet_torchvision": (
    "jseg.backbones.googlenet:GoogLeNet",
    {"norm": "batch", "lrn": False, "branch3_kernel": 3, "last_pool": 2},
  ),
}


def names() -> list[str]:
  """Names of all backbones."""
  return list(_BACKBONES)


def create(
  backbone: str,
  /,
  *,
  output_stride: int = 32,
  norm: str | None = None,
  remat: str = "none",
  optional: Arguments | None = None,
  **arguments: Any,
) -> Backbone:
  """Makes a backbone, a Flax module: `module(image, train=False) -> Features`.

  Example:
    >>> module = create("resnet50", output_stride=8, norm="frozen_batch", name="backbone")

  Args:
    backbone: one of `names()`, or "package.module:Name" of a subclass of `Backbone`.
    output_stride: largest stride of a map; below 32 the rest is dilated.
    norm: kind of normalization (`jseg.nn.Norm`) in place of the backbone's own; one that has none,
      such as "vgg16", stays without.
    remat: what the backbone computes again in the backward pass (`jseg.nn.Staged`).
    optional: further arguments that are passed on to a backbone that has them.
    **arguments: other arguments of the backbone: `width`, `dtype`, `param_dtype`, and for Flax
      `name` and `parent`.

  Raises:
    InputError: there is no such backbone or argument, it can't be dilated or computed again, or a
      value is impossible.
  """
  kind, own = _load(backbone)
  fields = {f.name: f.default for f in dataclasses.fields(kind) if f.init}
  chosen = {**own, **{k: v for k, v in (optional or {}).items() if k in fields}, **arguments}
  if norm is not None and chosen.get("norm", fields.get("norm", "none")) != "none":
    chosen["norm"] = norm
  if "output_stride" in fields:
    chosen["output_stride"] = output_stride
  elif output_stride != 32:
    raise InputError(
      f"backbone: {backbone!r} has output stride 32 and can't be dilated to {output_stride}; take "
      "a ResNet or VGG16"
    )
  if remat != "none":
    if "remat" not in fields:
      raise InputError(f"remat: backbone {backbone!r} has no stages (`jseg.nn.Staged`); set none")
    chosen["remat"] = remat
  for argument in chosen:
    if argument not in fields:
      known = ", ".join(k for k in fields if k not in ("parent", "name"))
      raise InputError(f"backbone {backbone} has no argument {argument!r}; choose from {known}")
  return kind(**chosen)


def check(backbone: str, /, *, strides: Sequence[int] = (32,), **arguments: Any) -> None:
  """Checks a network's choice of backbone before anything is computed.

  Args:
    backbone: name of the backbone, as for `create`.
    strides: nominal strides of the maps that the network takes.
    **arguments: arguments, as for `create`.

  Raises:
    InputError: `create` would, or the backbone lacks one of the maps.
  """
  # Without a parent: called from inside a network, Flax would make it part of that.
  module = create(backbone, parent=None, **arguments)
  if missing := set(strides) - set(module.strides):
    raise InputError(
      f"backbone: {backbone!r} has no map of stride {min(missing)}; take a ResNet or VGG16"
    )


def _load(backbone: str) -> tuple[type[Backbone], Arguments]:
  """Returns the class of a backbone and the arguments that its name stands for."""
  kinds = {name: kind for name, (kind, _) in _BACKBONES.items()}
  _, own = _BACKBONES.get(backbone, (None, {}))
  return lookup_class("backbone", backbone, kinds, Backbone), own
