"""PSPNet of hszhao/semseg, the authors' own."""

from jseg.weights.source_model import SourceModel
from jseg.weights.sources.names import (
  Tensors,
  by_path,
  fcn_heads,
  layer_names,
  resnet_name,
  resnet_path,
  scores_of,
)

_BINS = (1, 2, 3, 6)
_TABLE = {
  **{f"layer0.{3 * i}": f"backbone/conv{i + 1}" for i in range(3)},
  **{f"layer0.{3 * i + 1}": f"backbone/norm{i + 1}" for i in range(3)},
  **{f"ppm.features.{i}.1": f"pyramid/level{bins}" for i, bins in enumerate(_BINS)},
  **{f"ppm.features.{i}.2": f"pyramid/level{bins}_norm" for i, bins in enumerate(_BINS)},
  **fcn_heads({"cls": "head", "aux": "aux"}),
}


def recognize(tensors: Tensors) -> SourceModel | None:
  """PSPNet with or without auxiliary head; None if it is none."""
  needed = {"layer0.0.weight", "ppm.features.3.1.weight", "cls.4.weight"}
  backbone = resnet_name(tensors)
  if backbone is None or not needed <= tensors.keys():
    return None
  paths = {name: _TABLE.get(name) or resnet_path(name) for name in layer_names(tensors)}
  return SourceModel(
    f"hszhao/semseg's PSPNet on {backbone}",
    {"pspnet": {"backbone": backbone, "aux": "aux.4.weight" in tensors}},
    {name: by_path(path) for name, path in paths.items() if path},
    scores_of(tensors, "cls.4"),
  )
