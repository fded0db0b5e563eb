"""Classifiers of ImageNet under torchvision's and timm's names; they give backbones."""

from collections.abc import Sequence

import numpy as np

from jseg.backbones import vgg
from jseg.weights.convert import LayerTarget
from jseg.weights.source_model import Preprocessing, SourceModel
from jseg.weights.sources.names import (
  Tensors,
  by_path,
  layer_names,
  resnet_name,
  resnet_path,
)

# Positions of the convolutions in `features`.
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
_VGG16_NAMES = [f"conv{b}_{i}" for b, n in enumerate(vgg.LAYERS, 1) for i in range(1, n + 1)]
_VGG16_FC = {
  "classifier.0": LayerTarget("backbone/fc6", "dense", (7, 7)),
  "classifier.3": LayerTarget("backbone/fc7", "dense"),
  "pre_logits.fc1": LayerTarget("backbone/fc6"),  # timm
  "pre_logits.fc2": LayerTarget("backbone/fc7"),
}
_ALEXNET = (0, 3, 6, 8, 10)
_ALEXNET_FC = {
  "classifier.1": LayerTarget("backbone/fc6", "dense", (6, 6)),
  "classifier.4": LayerTarget("backbone/fc7", "dense"),
}
_GOOGLENET_STEM = {"conv1": "conv1", "conv2": "conv2_reduce", "conv3": "conv2"}
_GOOGLENET_BRANCHES = {
  "branch1": "1x1",
  "branch2.0": "3x3_reduce",
  "branch2.1": "3x3",
  "branch3.0": "5x5_reduce",
  "branch3.1": "5x5",
  "branch4.1": "pool",
}
# Networks that take any ResNet or VGG16: with skips, dilated, and on maps of several strides.
_SKIPS = ("fcn32s", "fcn16s", "fcn8s")
_DILATED = ("deeplab_v3", "deeplab_v2", "fcn_resnet", "pspnet")
_PYRAMID = ("unet", "refinenet", "mask_rcnn")
# The convolutions alone are of the original Caffe network: RGB in 0..255, less this mean.
_VGG16_CAFFE = Preprocessing((0.48235294, 0.45882353, 0.40784314), 1 / 255)
# Its released weights come from TensorFlow; torchvision transforms their input.
_GOOGLENET_INPUT = Preprocessing((0.5, 0.5, 0.5), 0.5)


def recognize(tensors: Tensors) -> SourceModel | None:
  """AlexNet, VGG16, GoogLeNet or ResNet; None if it is none of them."""
  if "inception3a.branch1.conv.weight" in tensors:
    return _googlenet(tensors)
  convolutions = {
    int(name.split(".")[1])
    for name, tensor in tensors.items()
    if tensor.ndim == 4 and name.startswith("features.") and name.split(".")[1].isdigit()
  }
  for positions, with_norm in ((_VGG16, False), (_VGG16_BN, True)):
    if convolutions == set(positions):
      return _vgg16(tensors, positions, with_norm)
  if convolutions == set(_ALEXNET):
    layers = {f"features.{n}": LayerTarget(f"backbone/conv{i}") for i, n in enumerate(_ALEXNET, 1)}
    networks = {"fcn32s": {"backbone": "alexnet_torchvision"}}
    return SourceModel("torchvision's alexnet", networks, layers | _ALEXNET_FC)
  return _resnet(tensors)


def _vgg16(tensors: Tensors, positions: Sequence[int], with_norm: bool) -> SourceModel:
  names = list(zip(positions, _VGG16_NAMES, strict=True))
  layers = {f"features.{i}": LayerTarget(f"backbone/{name}") for i, name in names}
  if with_norm:
    for i, name in names:
      layers[f"features.{i + 1}"] = LayerTarget(f"backbone/{name.replace('conv', 'norm')}", "norm")
  what = f"vgg16{'_bn' if with_norm else ''}"
  networks: dict[str, dict[str, object]] = {"segnet": {}}
  if not with_norm:
    networks |= {"deeplab_v1": {}}
  networks |= {name: {"backbone": what} for name in (*_SKIPS, *_DILATED, *_PYRAMID)}
  owner = "timm" if "pre_logits.fc1.weight" in tensors else "torchvision"
  # torchvision's own file of the convolutions alone holds a classifier of NaN.
  first = tensors.get("classifier.0.weight", tensors.get("pre_logits.fc1.weight", np.nan))
  if not np.isnan(first).all():
    layers |= _VGG16_FC
    return SourceModel(f"{owner}'s {what}", networks, layers, first="backbone/conv1_1")
  what += " without classifier, for images in 0..255 less the mean"
  return SourceModel(
    f"{owner}'s {what}",
    networks,
    layers,
    preprocessing=_VGG16_CAFFE,
    first="backbone/conv1_1",
    first_norm="backbone/norm1_1",
  )


def _googlenet(tensors: Tensors) -> SourceModel:
  layers = {}
  for name in layer_names(tensors):
    block, *branch, kind = name.split(".")
    part = _GOOGLENET_BRANCHES.get(".".join(branch))
    ours = _GOOGLENET_STEM.get(block) if not branch else part and f"{block}_{part}"
    if ours and not block.startswith("aux"):
      layers[name] = by_path(f"backbone/{ours}{'_norm' if kind == 'bn' else ''}")
  return SourceModel(
    "torchvision's googlenet",
    {"fcn32s": {"backbone": "googlenet_torchvision"}},
    layers,
    preprocessing=_GOOGLENET_INPUT,
    first_norm="backbone/conv1_norm",
  )


def _resnet(tensors: Tensors) -> SourceModel | None:
  backbone = resnet_name(tensors)
  if backbone is None or "conv1.weight" not in tensors:
    return None
  paths = {name: resnet_path(name) for name in layer_names(tensors)}
  layers = {name: by_path(path) for name, path in paths.items() if path}
  if "conv3.weight" in tensors:
    description = f"hszhao/semseg's {backbone} with a stem of three convolutions"
    return SourceModel(description, {"pspnet": {"backbone": backbone}}, layers)
  networks: dict[str, dict[str, object]] = {
    name: {"backbone": backbone} for name in (*_DILATED, *_PYRAMID, *_SKIPS) if name != "pspnet"
  }
  networks["deeplab_v2"]["stride_on"] = "3x3"
  return SourceModel(f"torchvision's or timm's {backbone}", networks, layers)
