"""PSPNet of hszhao/semseg, the authors' own."""

from collections.abc import Mapping

import numpy as np

from jseg.weights.foreign import Foreign, by_path, layer_names, scores_of
from jseg.weights.resnet import resnet_depth, resnet_path
from jseg.weights.torchvision import heads

_BINS = (1, 2, 3, 6)
_TABLE = {
  **{f"layer0.{3 * i}": f"backbone/conv{i + 1}" for i in range(3)},
  **{f"layer0.{3 * i + 1}": f"backbone/norm{i + 1}" for i in range(3)},
  **{f"ppm.features.{i}.1": f"pyramid/level{bins}" for i, bins in enumerate(_BINS)},
  **{f"ppm.features.{i}.2": f"pyramid/level{bins}_norm" for i, bins in enumerate(_BINS)},
  **heads({"cls": "head", "aux": "aux"}),
}


def recognise(tensors: Mapping[str, np.ndarray]) -> Foreign | None:
  """PSPNet with or without auxiliary head; None if it is none."""
  needed = {"layer0.0.weight", "ppm.features.3.1.weight", "cls.4.weight"}
  depth = resnet_depth(tensors)
  if depth is None or not needed <= tensors.keys():
    return None
  paths = {name: _TABLE.get(name) or resnet_path(name) for name in layer_names(tensors)}
  return Foreign(
    f"hszhao/semseg's PSPNet on resnet{depth}",
    {"pspnet": {"depth": depth, "aux": "aux.4.weight" in tensors}},
    {name: by_path(path) for name, path in paths.items() if path},
    scores_of(tensors, "cls.4"),
  )
