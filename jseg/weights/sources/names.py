"""Names of layers that several sources share: torchvision's ResNet, FCN heads."""

import re
from collections.abc import Mapping

import numpy as np

from jseg.backbones.resnet import LAYERS
from jseg.weights.convert import LayerTarget

Tensors = Mapping[str, np.ndarray]
"""Tensors by the names that their source gives them."""

_KINDS = {"conv": "conv", "bn": "norm"}


def layer_names(tensors: Tensors) -> list[str]:
  """Names of the layers that tensors belong to, in order."""
  return list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))


def by_path(path: str) -> LayerTarget:
  """A convolution, or a norm if its path says so."""
  return LayerTarget(path, "norm" if "norm" in path else "conv")


def scores_of(tensors: Tensors, layer: str) -> int:
  """Number of classes that a layer scores."""
  return len(tensors[f"{layer}.weight"])


def fcn_heads(names: Mapping[str, str]) -> dict[str, str]:
  """Our paths of the layers of FCN heads, for the heads' names, theirs -> ours.

  So called by torchvision and hszhao/semseg; modules 2 and 3 are ReLU and dropout.
  """
  parts = {0: "conv", 1: "norm", 4: "classifier"}
  return {f"{a}.{i}": f"{b}/{part}" for a, b in names.items() for i, part in parts.items()}


def resnet_path(name: str) -> str | None:
  """Our path of a layer of torchvision's ResNet; None if it has no such layer.

  timm, hszhao/semseg, DrSleep and segmentation_models.pytorch share these names.
  """
  if match := re.fullmatch(r"(conv|bn)([123])", name):
    return f"backbone/{_KINDS[match[1]]}{match[2]}"
  if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))", name):
    layer, unit, kind, place, shortcut = match.groups()
    part = f"{_KINDS[kind]}{place}" if kind else f"{('conv', 'norm')[int(shortcut)]}_shortcut"
    return f"backbone/layer{layer}_{unit}/{part}"
  return None


def resnet_depth(tensors: Tensors, prefix: str = "") -> int | None:
  """18 to 152, or None if it is no ResNet, or one of another width (ResNeXt, Wide ResNet)."""
  units = tuple(
    sum(f"{prefix}layer{i}.{n}.conv1.weight" in tensors for n in range(36)) for i in range(1, 5)
  )
  bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
  for depth, expected in LAYERS.items():
    if units == expected and bottleneck == (depth >= 50):
      inner = tensors[f"{prefix}layer1.0.conv1.weight"].shape[0]
      shape = tensors.get(f"{prefix}layer1.0.conv2.weight", np.empty(0)).shape
      last = tensors.get(f"{prefix}layer4.0.conv1.weight", np.empty(0)).shape
      # Wider ones begin wider, but their stem doesn't.
      stem = [tensors[n].shape[0] for n in (f"{prefix}conv1.weight",) if n in tensors]
      fits = shape[:2] == (inner, inner) and last[:1] == (8 * inner,)
      return depth if fits and all(n == inner for n in stem) else None
  return None


def resnet_name(tensors: Tensors, prefix: str = "") -> str | None:
  """Name of a ResNet, as in `jseg.backbones`; None if `resnet_depth` knows none."""
  depth = resnet_depth(tensors, prefix)
  return None if depth is None else f"resnet{depth}"
