"""torchvision's Mask R-CNN: maskrcnn_resnet50_fpn, its second form, keypointrcnn_resnet50_fpn."""

import itertools
import re

from jseg.weights.convert import LayerTarget
from jseg.weights.source_model import SourceModel
from jseg.weights.sources.names import (
  Tensors,
  by_path,
  layer_names,
  resnet_depth,
  resnet_path,
  scores_of,
)

# Boxes are x, y, w, h there and y, x, h, w here.
_BOX = (1, 0, 3, 2)
_HEADS = {
  "rpn.head.cls_logits": LayerTarget("rpn/score"),
  "rpn.head.bbox_pred": LayerTarget("rpn/box", outputs=_BOX),
  "roi_heads.box_head.fc6": LayerTarget("box_head/dense1", "dense", (7, 7)),
  "roi_heads.box_head.fc7": LayerTarget("box_head/dense2", "dense"),
  "roi_heads.box_predictor.cls_score": LayerTarget("box_head/score", "dense"),
  "roi_heads.box_predictor.bbox_pred": LayerTarget("box_head/box", "dense", outputs=_BOX),
  "roi_heads.mask_predictor.conv5_mask": LayerTarget("mask_head/upsample", "transposed"),
  "roi_heads.mask_predictor.mask_fcn_logits": LayerTarget("mask_head/score"),
  "roi_heads.keypoint_predictor.kps_score_lowres": LayerTarget("keypoint_head/score", "transposed"),
}
_NEEDED = ("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score")
_MASKS = "roi_heads.mask_predictor.mask_fcn_logits"
_KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres"
# What layers were called before torchvision 0.13, and in the released weights of the first form.
_OLD = (
  (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)", r"\1.0"),
  (r"rpn\.head\.conv", "rpn.head.conv.0.0"),
  (r"roi_heads\.mask_head\.mask_fcn(\d)", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0"),
)


def recognize(tensors: Tensors) -> SourceModel | None:
  """Any form, on any ResNet; None if it is no Mask R-CNN."""
  depth = resnet_depth(tensors, "backbone.body.")
  names = layer_names(tensors)
  masks, keypoints = _MASKS in names, _KEYPOINTS in names
  if depth is None or not all(name in names for name in _NEEDED) or not (masks or keypoints):
    return None
  new = {name: _new_name(name) for name in names}
  old = any(name != new[name] for name in names)
  layers = {}
  for name in names:
    layer = _HEADS.get(name) or _layer(new[name])
    if layer and layer.kind == "norm" and old:
      # In those days frozen batch norm had no epsilon.
      layer = LayerTarget(layer.path, "norm", epsilon=0.0)
    if layer:
      layers[name] = layer
  known = set(new.values())

  def count(pattern: str) -> int:
    return next(i for i in itertools.count() if pattern.format(i) not in known)

  with_norm = "backbone.fpn.inner_blocks.0.1" in known
  box_convs = count("roi_heads.box_head.{}.0")
  arguments: dict[str, object] = {
    "backbone": f"resnet{depth}",
    "norm": "batch" if with_norm else "frozen_batch",
    "head_norm": "batch" if with_norm else "none",
    "rpn_convs": count("rpn.head.conv.{}.0"),
    "box_convs": box_convs,
    "box_dense": 2 if "roi_heads.box_head.fc7" in known else 1,
  }
  if masks:
    arguments["mask_convs"] = count("roi_heads.mask_head.{}.0")
  if keypoints:
    arguments |= {
      "masks": masks,
      "keypoints": tensors[f"{_KEYPOINTS}.weight"].shape[1],
      "keypoint_convs": sum(name.startswith("roi_heads.keypoint_head.") for name in names),
      "keypoint_channels": len(tensors[f"{_KEYPOINTS}.weight"]),
    }
  if box_convs:
    # The flattening in between has no weights, but a number.
    layers[f"roi_heads.box_head.{box_convs + 1}"] = LayerTarget("box_head/dense1", "dense", (7, 7))
  kind, form = "mask" if masks else "keypoint", "_v2" if with_norm else ""
  return SourceModel(
    f"torchvision's {kind}rcnn_resnet{depth}_fpn{form}",
    {"mask_rcnn": arguments},
    layers,
    scores_of(tensors, "roi_heads.box_predictor.cls_score"),
  )


def _new_name(name: str) -> str:
  for pattern, replacement in _OLD:
    if match := re.fullmatch(pattern, name):
      return replacement(match) if callable(replacement) else match.expand(replacement)
  return name


def _layer(name: str) -> LayerTarget | None:
  """Destination of a layer whose name has a number in it."""
  if name.startswith("backbone.body."):
    path = resnet_path(name.removeprefix("backbone.body."))
    return by_path(path) if path else None
  if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.([01])", name):
    kind, level, part = match.groups()
    path = f"fpn/{'lateral' if kind == 'inner' else 'level'}{int(level) + 2}"
    return by_path(path + ("_norm" if part == "1" else ""))
  if match := re.fullmatch(r"rpn\.head\.conv\.(\d)\.0", name):
    return LayerTarget(f"rpn/conv{int(match[1]) + 1}")
  if match := re.fullmatch(r"roi_heads\.(box|mask)_head\.(\d)\.([01])", name):
    head, place, part = match.groups()
    return by_path(f"{head}_head/{('conv', 'norm')[int(part)]}{int(place) + 1}")
  if match := re.fullmatch(r"roi_heads\.keypoint_head\.(\d+)", name):
    return LayerTarget(f"keypoint_head/conv{int(match[1]) // 2 + 1}")  # ReLUs have numbers too
  return None
