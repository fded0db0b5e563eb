"""ResNet under torchvision's names, which timm, hszhao/semseg and DrSleep share."""

import re
from collections.abc import Mapping

import numpy as np

from jseg.backbones.resnet import LAYERS

_KINDS = {"conv": "conv", "bn": "norm"}


def resnet_path(name: str) -> str | None:
  """Our path of a layer in the backbone; None if it has no such layer."""
  if match := re.fullmatch(r"(conv|bn)([123])", name):
    return f"backbone/{_KINDS[match[1]]}{match[2]}"
  if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))", name):
    layer, unit, kind, place, shortcut = match.groups()
    part = f"{_KINDS[kind]}{place}" if kind else f"{('conv', 'norm')[int(shortcut)]}_shortcut"
    return f"backbone/layer{layer}_{unit}/{part}"
  return None


def resnet_depth(tensors: Mapping[str, np.ndarray], prefix: str = "") -> int | None:
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
