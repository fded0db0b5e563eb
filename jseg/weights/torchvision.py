"""torchvision's segmentation networks: FCN and DeepLab V3 on ResNet."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jseg.weights.foreign import Foreign, by_path, layer_names, scores_of
from jseg.weights.resnet import resnet_depth, resnet_path


def heads(names: Mapping[str, str]) -> dict[str, str]:
  """Of FCN heads, here and in hszhao/semseg: modules 2 and 3 are ReLU and dropout."""
  parts = {0: "conv", 1: "norm", 4: "classifier"}
  return {f"{a}.{i}": f"{b}/{part}" for a, b in names.items() for i, part in parts.items()}


_AUX = heads({"aux_classifier": "aux"})
_FCN = _AUX | heads({"classifier": "head"})
_DEEPLAB_V3 = _AUX | {
  **{f"classifier.0.convs.{i}.0": f"aspp/conv{i}" for i in range(4)},
  **{f"classifier.0.convs.{i}.1": f"aspp/conv{i}_norm" for i in range(4)},
  "classifier.0.convs.4.1": "aspp/image",
  "classifier.0.convs.4.2": "aspp/image_norm",
  "classifier.0.project.0": "aspp/project",
  "classifier.0.project.1": "aspp/project_norm",
  "classifier.1": "conv",
  "classifier.2": "norm",
  "classifier.4": "classifier",
}


def recognise(tensors: Mapping[str, np.ndarray]) -> Foreign | None:
  """fcn_resnet or deeplabv3_resnet, with or without auxiliary head; None if it is neither."""
  depth = resnet_depth(tensors, "backbone.")
  if depth is None or "classifier.4.weight" not in tensors:
    return None
  knobs: dict[str, Any] = {"depth": depth, "aux": "aux_classifier.4.weight" in tensors}
  if "classifier.0.convs.0.0.weight" in tensors:
    what, model, table = "deeplabv3_resnet", "deeplab_v3", _DEEPLAB_V3
    knobs |= {"head": "torchvision", "output_stride": 8, "multi_grid": (1,), "lag": True}
  else:
    what, model, table = "fcn_resnet", "fcn_resnet", _FCN
  layers = {}
  for name in layer_names(tensors):
    path = table.get(name) or (
      resnet_path(name.removeprefix("backbone.")) if name.startswith("backbone.") else None
    )
    if path:
      layers[name] = by_path(path)
  aux = " with auxiliary head" if knobs["aux"] else ""
  classes = scores_of(tensors, "classifier.4")
  return Foreign(f"torchvision's {what}{depth}{aux}", {model: knobs}, layers, classes)
