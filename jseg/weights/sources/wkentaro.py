"""FCN of wkentaro/pytorch-fcn, trained there or converted from the authors' Caffe networks."""

from jseg.weights.convert import LayerTarget
from jseg.weights.source_model import CAFFE_BGR, SourceModel
from jseg.weights.sources.names import Tensors, layer_names, scores_of

_LAST = {"upscore": "fcn32s", "upscore16": "fcn16s", "upscore8": "fcn8s"}


def recognize(tensors: Tensors) -> SourceModel | None:
  """FCN-32s, 16s or 8s; None if it is none of them."""
  model = next((ours for last, ours in _LAST.items() if f"{last}.weight" in tensors), None)
  if model is None or not {"score_fr.weight", "conv5_3.weight"} <= tensors.keys():
    return None
  layers = {}
  for name in layer_names(tensors):
    if name.startswith("upscore"):
      layers[name] = LayerTarget(name, "transposed")
    elif name.startswith(("conv", "fc")):
      layers[name] = LayerTarget(f"backbone/{name}")
    elif name.startswith("score"):
      layers[name] = LayerTarget(name)
  note = "FCN8sAtOnce has the same tensors; if it is that, add --set model.at_once=True"
  return SourceModel(
    f"wkentaro/pytorch-fcn's {model}",
    {model: {}},
    layers,
    scores_of(tensors, "score_fr"),
    CAFFE_BGR,
    first="backbone/conv1_1",
    note=note if model == "fcn8s" else "",
  )
