"""torchvision's segmentation networks: FCN and DeepLab V3 on ResNet."""

from jseg.weights.source_model import SourceModel
from jseg.weights.sources.names import (
  Tensors,
  by_path,
  fcn_heads,
  layer_names,
  resnet_depth,
  resnet_path,
  scores_of,
)

_AUX = fcn_heads({"aux_classifier": "aux"})
_FCN = _AUX | fcn_heads({"classifier": "head"})
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


def recognize(tensors: Tensors) -> SourceModel | None:
  """fcn_resnet or deeplabv3_resnet, with or without auxiliary head; None if it is neither."""
  depth = resnet_depth(tensors, "backbone.")
  if depth is None or "classifier.4.weight" not in tensors:
    return None
  arguments: dict[str, object] = {
    "backbone": f"resnet{depth}",
    "aux": "aux_classifier.4.weight" in tensors,
  }
  if "classifier.0.convs.0.0.weight" in tensors:
    what, model, table = "deeplabv3_resnet", "deeplab_v3", _DEEPLAB_V3
    arguments |= {
      "head": "torchvision",
      "output_stride": 8,
      "multi_grid": (1,),
      "keep_first_rate": True,
    }
  else:
    what, model, table = "fcn_resnet", "fcn_resnet", _FCN
  layers = {}
  for name in layer_names(tensors):
    path = table.get(name) or (
      resnet_path(name.removeprefix("backbone.")) if name.startswith("backbone.") else None
    )
    if path:
      layers[name] = by_path(path)
  aux = " with auxiliary head" if arguments["aux"] else ""
  classes = scores_of(tensors, "classifier.4")
  return SourceModel(f"torchvision's {what}{depth}{aux}", {model: arguments}, layers, classes)
