"""Writes the files in tests/golden that come from torchvision's Mask R-CNN and its operations.

  pip install torch torchvision
  python tools/golden_mask_rcnn.py

Weights and images come from tests/golden/formula.py. Boxes are torchvision's, (x0 y0 x1 y1). Of
large maps a regular grid is kept, so that files stay small.
"""

import json
import math
from typing import Any

import numpy as np
import torch
import torchvision
from golden_fill import GOLDEN, fill, formula
from torchvision.models.detection.image_list import ImageList

SIZES = ((128, 192), (150, 90))  # of the two images; the second is padded to a multiple of 32
# Fewer regions than usual, so that the tests are quick.
ARGUMENTS: dict[str, Any] = {
  "num_classes": 91,
  "rpn_pre_nms_top_n_train": 300,
  "rpn_pre_nms_top_n_test": 300,
  "rpn_post_nms_top_n_train": 200,
  "rpn_post_nms_top_n_test": 200,
  "box_detections_per_img": 20,
  # All anchors and regions are trained on, so that nothing is drawn.
  "rpn_batch_size_per_image": 40000,
  "box_batch_size_per_image": 400,
  "box_positive_fraction": 0.5,
}
# Residual branches are weak, as in golden_pytorch.py; scores are spread out.
SCALE = {
  r"\.bn3\.weight$": 0.25,
  r"(inner|layer)_blocks.*0\.weight$": 0.5,
  r"rpn\.head\.cls_logits\.weight$": 0.5,
  r"rpn\.head\.bbox_pred\.weight$": 0.2,
  r"cls_score\.weight$": 0.5,
  r"box_predictor\.bbox_pred\.weight$": 0.2,
  r"mask_fcn_logits\.weight$": 0.5,
  r"keypoint_head.*weight$": 0.8,
}
OBJECTS = {
  "boxes": [[20.0, 30.0, 90.0, 110.0], [100.0, 8.0, 180.0, 60.0], [5.0, 90.0, 25.0, 120.0]],
  "labels": [17, 3, 44],
}


def steps(shape: tuple[int, ...]) -> list[int]:
  """Distance of the kept elements along each axis of a map."""
  kept = (8, 8, 4, 6) if len(shape) == 4 else (12, 24)
  return [math.ceil(n / k) for n, k in zip(shape, kept, strict=False)]


def save(
  name: str,
  model: torch.nn.Module,
  arguments: dict[str, Any],
  entries: list[tuple[str, tuple[int, ...]]],
  results: dict[str, np.ndarray],
  losses: dict[str, torch.Tensor],
  **about: Any,
) -> None:
  """Writes the golden file of a network: `results`, and everything else as `meta`."""
  meta = {
    "reference": "pytorch/vision",
    "commit": torchvision.version.git_version,
    "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    "class": f"{type(model).__module__}.{name}",
    "arguments": arguments,
    "state_dict": entries,
    "scale": SCALE,
    "parameters": sum(p.numel() for p in model.parameters()),
    **about,
    "losses": {k: float(v) for k, v in losses.items()},
  }
  np.savez_compressed(GOLDEN / f"{name}.npz", meta=np.array(json.dumps(meta)), **results)


def keypoints() -> None:
  """The keypoint network: heat maps of its detections, keypoints, and the loss of given regions."""
  name, arguments = "keypointrcnn_resnet50_fpn", {**ARGUMENTS, "num_classes": 2}
  arguments["box_detections_per_img"] = 8
  model = torchvision.models.get_model(
    name, weights=None, weights_backbone=None, **arguments
  ).eval()
  entries = fill(model, SCALE)
  height, width = SIZES[0]
  image = torch.from_numpy(formula.image("image0", (1, 3, height, width)))
  size = [(height, width)]
  features = model.backbone(image)
  proposals, _ = model.rpn(ImageList(image, size), features)
  heads = model.roi_heads
  found = heads(features, proposals, size)[0][0]
  pooled = heads.keypoint_roi_pool(features, [found["boxes"]], size)
  heatmaps = heads.keypoint_predictor(heads.keypoint_head(pooled))
  print(name, heatmaps.shape, heatmaps.std(), found["scores"], found["keypoints_scores"].std())
  # Two objects with keypoints inside, on the edge, outside and unseen.
  points = torch.tensor(
    [[[30.0, 40, 2], [90, 110, 1], [20, 30, 1]], [[5, 5, 1], [150, 20, 0], [179.5, 59, 2]]]
  )
  boxes = torch.tensor(OBJECTS["boxes"][:2])
  loss = torchvision.models.detection.roi_heads.keypointrcnn_loss(
    torch.from_numpy(formula.image("heatmaps", (2, 3, 56, 56))),
    proposals=[boxes],
    gt_keypoints=[points],
    keypoint_matched_idxs=[torch.arange(2)],
  )
  results = {k: found[k].numpy() for k in ("boxes", "scores", "keypoints", "keypoints_scores")}
  results |= {"heatmaps": heatmaps[:, ::4, ::3, ::3].numpy(), "points": points.numpy()}
  about = {"sizes": SIZES[:1], "objects": {"boxes": OBJECTS["boxes"][:2]}}
  save(name, model, arguments, entries, results, {"loss_keypoint": loss}, **about)


def network(name: str) -> None:
  """One network: features, proposals, heads, detections and losses."""
  model = torchvision.models.get_model(
    name, weights=None, weights_backbone=None, **ARGUMENTS
  ).eval()
  entries = fill(model, SCALE)
  results: dict[str, np.ndarray] = {}
  canvases = []
  for i, (height, width) in enumerate(SIZES):
    shape = (1, 3, height, width)
    image = torch.from_numpy(formula.image(f"image{i}", shape))
    x = torch.nn.functional.pad(image, (0, -width % 32, 0, -height % 32))
    canvases.append(x)
    features = model.backbone(x)
    images = ImageList(x, [(height, width)])
    proposals, _ = model.rpn(images, features)
    scores, deltas = model.rpn.head(list(features.values()))
    pooled = model.roi_heads.box_roi_pool(features, proposals, [(height, width)])
    logits, differences = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    found = model.roi_heads(features, proposals, [(height, width)])[0][0]
    masks = model.roi_heads.mask_roi_pool(features, [found["boxes"]], [(height, width)])
    masks = model.roi_heads.mask_predictor(model.roi_heads.mask_head(masks))
    masks = masks[torch.arange(len(masks)), found["labels"]]
    print(
      name, i, "proposals", proposals[0].shape, "detections", found["scores"][:40], found["labels"]
    )
    maps = {f"p{j}": f for j, f in enumerate(features.values(), 2)}
    maps |= {f"rpn_score{j}": f for j, f in enumerate(scores, 2)}
    maps |= {f"rpn_box{j}": f for j, f in enumerate(deltas, 2)}
    maps |= {"pooled": pooled, "class_logits": logits, "box_deltas": differences}
    for key, value in maps.items():
      print(f"  {key} {tuple(value.shape)}: std {value.std():.3g}")
      grid = tuple(slice(None, None, step) for step in steps(tuple(value.shape)))
      results[f"{key}_{i}"] = value[grid].numpy().copy()
    results |= {
      f"proposals_{i}": proposals[0].numpy(),
      f"mask_logits_{i}": masks[:, ::3, ::3].numpy(),
    }
    results |= {f"{k}_{i}": found[k].numpy() for k in ("boxes", "scores", "labels")}

  losses = training_losses(model, canvases[0])
  print({k: float(v) for k, v in losses.items()})
  save(name, model, ARGUMENTS, entries, results, losses, sizes=SIZES, objects=OBJECTS)


def training_losses(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
  """Losses of the first image, with running statistics in all norms."""
  model.rpn.training = model.roi_heads.training = True
  size = SIZES[0]
  masks = torch.zeros((len(OBJECTS["labels"]), *size), dtype=torch.uint8)
  for mask, (x0, y0, x1, y1) in zip(masks, OBJECTS["boxes"], strict=True):
    mask[int(y0) : int(y1), int(x0) : int(x1)] = 1
  targets = {k: torch.tensor(v) for k, v in OBJECTS.items()} | {"masks": masks}
  features = model.backbone(x)
  proposals, losses = model.rpn(ImageList(x, [size]), features, [targets])
  _, more = model.roi_heads(features, proposals, [size], [targets])
  return losses | more


def operations() -> None:
  """RoIAlign and RoIPool of one map and of a pyramid, with boxes of all kinds; anchors."""
  ops = torchvision.ops
  rng = np.random.default_rng(0)
  corner, size = rng.uniform(-10, 110, (24, 2)), rng.uniform(0, 90, (24, 2))
  boxes = np.concatenate([corner, corner + size], 1)
  boxes[0], boxes[1], boxes[2] = [0, 0, 128, 96], [5, 5, 5, 5], [120, 90, 200, 190]
  boxes[3] = [-60, -40, -20, -10]  # wholly outside
  boxes = torch.from_numpy(boxes.astype(np.float32))
  maps = {
    str(i): torch.from_numpy(formula.image(f"map{i}", (1, 4, 96 >> i, 128 >> i)))
    for i in range(2, 6)
  }
  results = {"roi_boxes": boxes.numpy()}
  rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
  for aligned in (False, True):
    y = ops.roi_align(maps["2"], rois, 3, 1 / 4, 2, aligned=aligned)
    results[f"roi_align_{'aligned' if aligned else 'plain'}"] = y.numpy()
  large = torch.from_numpy(
    np.array([[0, 0, 30, 40], [10, 10, 122, 122], [0, 0, 300, 200], [9, 9, 500, 490]], np.float32)
  )
  large_maps = {
    str(i): torch.from_numpy(formula.image(f"large{i}", (1, 4, 512 >> i, 512 >> i)))
    for i in range(2, 6)
  }
  pooler = ops.MultiScaleRoIAlign(["2", "3", "4", "5"], 3, 2)
  results["pyramid_boxes"] = large.numpy()
  results["pyramid_align"] = pooler(large_maps, [large], [(512, 512)]).numpy()
  inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
  results["pool_boxes"] = boxes[inside].numpy()
  results["roi_pool"] = ops.roi_pool(maps["2"], rois[inside], 3, 1 / 4).numpy()
  generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
    ((32,), (20, 45)), ((0.5, 1.0, 2.0),) * 2
  )
  images = ImageList(torch.zeros(1, 3, 96, 64), [(96, 64)])
  results["anchors"] = generator(images, [torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 2, 1)])[
    0
  ].numpy()
  meta = {"commit": torchvision.version.git_version, "torchvision": torchvision.__version__}
  np.savez_compressed(GOLDEN / "detection_ops.npz", meta=np.array(json.dumps(meta)), **results)


@torch.no_grad()
def main() -> None:
  """Computes and writes the files."""
  operations()
  network("maskrcnn_resnet50_fpn")
  network("maskrcnn_resnet50_fpn_v2")
  keypoints()


if __name__ == "__main__":
  main()
