"""RefineNet of DrSleep/refinenet-pytorch, converted from the authors' MatConvNet networks."""

from jseg.weights.source_model import SourceModel
from jseg.weights.sources.names import (
  Tensors,
  by_path,
  layer_names,
  resnet_name,
  resnet_path,
  scores_of,
)


def _decoder() -> dict[str, str]:
  # Their blocks count from 1 and begin at layer4.
  names = {"clf_conv": "classifier"}
  for i in range(1, 5):
    level, flow = f"layer{5 - i}", f"mflow_conv_g{i}"
    names |= {
      f"p_ims1d2_outl{i}_dimred": f"{level}_reduce",
      f"adapt_stage{i}_b2_joint_varout_dimred": f"{level}_fuse",
      f"{flow}_b3_joint_varout_dimred": f"carry{i}_fuse",
    }
    names |= {f"{flow}_pool.0.{n}_outvar_dimred": f"chain{i - 1}_{n - 1}" for n in range(1, 5)}
    for theirs, ours, count in (
      (f"adapt_stage{i}_b", f"{level}_unit", 2),
      (f"{flow}_b", f"out{i - 1}", 3),
    ):
      for n in range(1, count + 1):
        names[f"{theirs}.0.{n}_conv"] = f"{ours}_{n - 1}_1"
        names[f"{theirs}.0.{n}_conv_relu_varout_dimred"] = f"{ours}_{n - 1}_2"
  return names


def recognize(tensors: Tensors) -> SourceModel | None:
  """RefineNet on any ResNet; None if it is none."""
  backbone = resnet_name(tensors)
  if backbone is None or not {"p_ims1d2_outl1_dimred.weight", "clf_conv.weight"} <= tensors.keys():
    return None
  table = _decoder()
  paths = {name: table.get(name) or resnet_path(name) for name in layer_names(tensors)}
  return SourceModel(
    f"DrSleep/refinenet-pytorch's RefineNet on {backbone}",
    {"refinenet": {"backbone": backbone}},
    {name: by_path(path) for name, path in paths.items() if path},
    scores_of(tensors, "clf_conv"),
  )
