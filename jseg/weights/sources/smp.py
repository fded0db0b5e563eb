"""U-Net of qubvel-org/segmentation_models.pytorch, on a ResNet."""

import re

from jseg.weights.source_model import SourceModel
from jseg.weights.sources.names import (
  Tensors,
  by_path,
  layer_names,
  resnet_name,
  resnet_path,
  scores_of,
)

_HEAD = "segmentation_head.0"


def recognize(tensors: Tensors) -> SourceModel | None:
  """Unet with five decoder blocks on resnet18 to resnet152; None if it is something else."""
  backbone = resnet_name(tensors, "encoder.")
  blocks = [f"decoder.blocks.{i}.conv1.0.weight" for i in range(5)]
  if backbone is None or not {f"{_HEAD}.weight", *blocks} <= tensors.keys():
    return None
  paths = {name: _path(name) for name in layer_names(tensors)}
  return SourceModel(
    f"segmentation_models.pytorch's Unet on {backbone}",
    {"unet": {"backbone": backbone, "decoder": tuple(len(tensors[name]) for name in blocks)}},
    {name: by_path(path) for name, path in paths.items() if path},
    scores_of(tensors, _HEAD),
  )


def _path(name: str) -> str | None:
  if name == _HEAD:
    return "classifier"
  if name.startswith("encoder."):
    return resnet_path(name.removeprefix("encoder."))
  if match := re.fullmatch(r"decoder\.blocks\.(\d)\.conv([12])\.([01])", name):
    block, conv, part = match.groups()
    return f"decoder{int(block) + 1}_{conv}{('', '_norm')[int(part)]}"
  return None
