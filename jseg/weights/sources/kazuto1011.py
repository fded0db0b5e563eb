"""DeepLab V2 and V3 of kazuto1011/deeplab-pytorch; V2's weights are converted from Caffe."""

import re

from jseg.backbones.resnet import LAYERS
from jseg.weights.convert import LayerTarget
from jseg.weights.source_model import CAFFE_BGR, SourceModel
from jseg.weights.sources.names import Tensors, by_path, layer_names, scores_of

_KINDS = {"conv": "conv", "bn": "norm"}
_PARTS = {"reduce": "1", "conv3x3": "2", "increase": "3", "shortcut": "_shortcut"}
_V3 = {
  **{f"aspp.stages.c{i}": f"aspp/conv{i}" for i in range(4)},
  "aspp.stages.imagepool.conv": "aspp/image",
  "fc1": "aspp/project",
}


def _layer(name: str, v3: bool) -> LayerTarget | None:
  if match := re.fullmatch(r"layer1\.conv1\.(conv|bn)", name):
    return by_path(f"backbone/{_KINDS[match[1]]}1")
  pattern = r"layer([2-5])\.block(\d+)\.(reduce|conv3x3|increase|shortcut)\.(conv|bn)"
  if match := re.fullmatch(pattern, name):
    layer, block, part, kind = match.groups()
    unit = f"backbone/layer{int(layer) - 1}_{int(block) - 1}"
    return by_path(f"{unit}/{_KINDS[kind]}{_PARTS[part]}")
  if not v3:
    match = re.fullmatch(r"aspp\.c([0-3])", name)
    return LayerTarget(f"fc8_{int(match[1]) + 1}") if match else None
  if name == "fc2":
    return LayerTarget("classifier")
  stem, _, kind = name.rpartition(".")
  if stem in _V3 and kind in _KINDS:
    return by_path(f"{_V3[stem]}{'_norm' if kind == 'bn' else ''}")
  return None


def recognize(tensors: Tensors) -> SourceModel | None:
  """DeepLab V2 or V3, inside of `MSC` (names begin with "base.") or not; None if it is neither."""
  scales = any(name.startswith("base.layer1.") for name in tensors)
  prefix = "base." if scales else ""
  v2, v3 = f"{prefix}aspp.c0", f"{prefix}fc2"
  units = tuple(
    sum(f"{prefix}layer{i}.block{n}.reduce.conv.weight" in tensors for n in range(1, 37))
    for i in range(2, 6)
  )
  depth = next((d for d, n in LAYERS.items() if n == units and d >= 50), None)
  if depth is None:
    return None
  note, is_v3 = "", f"{v3}.weight" in tensors and f"{prefix}aspp.stages.c0.conv.weight" in tensors
  if is_v3:
    model, last = "deeplab_v3", v3
    arguments = {"backbone": f"resnet{depth}", "stride_on": "1x1", "ceil": True}
    if scales:
      note = "its several scales are not fused here, the image is seen at scale 1"
  elif f"{v2}.weight" in tensors:
    model, last = "deeplab_v2", v2
    arguments = {"backbone": f"resnet{depth}"} | ({} if scales else {"scales": (1.0,)})
    note = "DeepLabV2S has the same tensors; if it is that, add --set 'model.rates=(3, 6, 9, 12)'"
  else:
    return None
  layers = {name: _layer(name.removeprefix(prefix), is_v3) for name in layer_names(tensors)}
  return SourceModel(
    f"kazuto1011/deeplab-pytorch's {model} on resnet{depth}{', several scales' if scales else ''}",
    {model: arguments},
    {name: layer for name, layer in layers.items() if layer},
    scores_of(tensors, last),
    CAFFE_BGR,
    note=note,
  )
