"""Mask R-CNN of jseg and of torchvision, for networks.py and mask_rcnn.py.

What inference costs depends on how much is found. So both have the same weights, torchvision's new
ones, and the same least score, with which torchvision's finds five objects an image.
"""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from beside import Side, sides

from jseg import models, weights
from jseg.images import normalize
from jseg.losses import detection_losses as losses
from jseg.types import Array, Targets, Variables

_K = 91
_FOUND = 5  # objects an image
XY = [1, 0, 3, 2]  # torchvision's boxes are (x0 y0 x1 y1)


def random_boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
  """float32 [count 4], (y0 x0 y1 x1) within an image."""
  low = rng.uniform(0, 0.7 * size, (count, 2))
  return np.concatenate([low, low + rng.uniform(8, 0.3 * size, (count, 2))], 1).astype(np.float32)


def example(batch: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Images float32 [b h w 3], 0 to 1, boxes [b 5 4] and classes [b 5] of five objects each.

  The images are one, so that as much is found in each.
  """
  rng = np.random.default_rng(0)
  image = np.repeat(rng.random((1, size, size, 3), np.float32), batch, 0)
  boxes = random_boxes(rng, 5 * batch, size).reshape(batch, 5, 4)
  return image, boxes, rng.integers(1, _K, (batch, 5))


def theirs(
  image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, file: pathlib.Path
) -> tuple[int, Side, Side]:
  """Number of parameters, training step and inference of torchvision's network.

  Its weights are written to `file`, .pth, and the least score beside it, for `ours`.
  """
  import torch
  import torchvision

  torch.manual_seed(0)
  size = image.shape[1]
  network = torchvision.models.get_model(
    "maskrcnn_resnet50_fpn",
    weights=None,
    weights_backbone=None,
    min_size=size,
    max_size=size,
  )
  torch.save(network.state_dict(), file)
  optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
  x = list(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
  targets = []
  for objects, labels in zip(boxes, classes, strict=True):
    masks = torch.zeros((len(objects), size, size), dtype=torch.uint8)
    for mask, (y0, x0, y1, x1) in zip(masks, objects.astype(int).tolist(), strict=True):
      mask[y0:y1, x0:x1] = 1
    targets.append(
      {
        "boxes": torch.from_numpy(objects[:, XY].copy()),
        "labels": torch.from_numpy(labels),
        "masks": masks,
      }
    )

  def train() -> None:
    network.train()
    optimizer.zero_grad()
    sum(network(x, targets).values()).backward()
    optimizer.step()

  def infer() -> Any:
    network.eval()
    with torch.inference_mode():
      return network(x)

  # Without masks: of so many they would raise the process's peak of memory, which is measured.
  pool, network.roi_heads.mask_roi_pool = network.roi_heads.mask_roi_pool, None
  network.roi_heads.score_thresh = 0.0
  scores = torch.cat([found["scores"] for found in infer()]).sort(descending=True).values
  enough = len(image) * _FOUND
  network.roi_heads.mask_roi_pool = pool
  network.roi_heads.score_thresh = scores[enough - 1 : enough + 1].mean().item()
  file.with_suffix(".json").write_text(json.dumps(network.roi_heads.score_thresh))
  return sum(p.numel() for p in network.parameters()), train, infer


def ours(
  image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, file: pathlib.Path | None = None
) -> tuple[int, Side, Side]:
  """Number of parameters, training step and inference of jseg's network.

  Its weights and its least score are those of `theirs`, or the weights are new ones if None.
  """
  image = np.asarray(normalize(255 * image))
  variables = None
  if file is None:
    model = models.create("mask_rcnn", _K, norm="batch")
  else:
    least = json.loads(file.with_suffix(".json").read_text())
    loaded = weights.load(file, norm="batch", min_score=least)
    model, variables = loaded.model, loaded.variables
  valid = np.ones(classes.shape, bool)
  targets = Targets(
    boxes=boxes,
    frames=boxes,
    masks=np.full((*classes.shape, 56, 56), 255, np.uint8),
    classes=classes.astype(np.int32),
    valid=valid,
    crowd=~valid,
  )

  def loss(variables: Variables, key: Array, x: Array, targets: Targets) -> tuple[Array, Variables]:
    outputs, new = model.apply(
      variables, x, train=True, targets=targets, mutable=["batch_stats"], rngs={"sample": key}
    )
    means = [total / jnp.maximum(count, 1) for total, count in losses(outputs).values()]
    return sum(means, jnp.zeros(())), new

  return sides(model, loss, image, targets, variables)
