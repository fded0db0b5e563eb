"""Speed of Mask R-CNN and its parts against torchvision's.

  pip install -e ".[bench]"
  python benchmarks/mask_rcnn.py          # seconds

The same network (ResNet-50 with pyramid, batch norm, 91 classes) with the same number of proposals
and samples, on images with five objects each. A training step is forward, all five losses,
gradients, and SGD with momentum. See networks.py for how it is timed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchvision
from absl import app, flags
from beside import Side, compare, compare_networks, header, sides

from jseg import models
from jseg.losses import detection_losses as losses
from jseg.nn.detection import nms, roi_align
from jseg.types import Array, Targets, Variables

_SIZE = flags.DEFINE_integer("size", 256, "height and width of the images")
_BATCH = flags.DEFINE_integer("batch", 2, "images in a batch")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "times that each side runs")
_ONLY = flags.DEFINE_list("only", ["nms", "roi_align", "network"], "what to time")

_K = 91
_XY = [1, 0, 3, 2]  # torchvision's boxes are (x0 y0 x1 y1)


def random_boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
  """float32 [count 4], (y0 x0 y1 x1) within an image."""
  low = rng.uniform(0, 0.7 * size, (count, 2))
  return np.concatenate([low, low + rng.uniform(8, 0.3 * size, (count, 2))], 1).astype(np.float32)


def suppression(rng: np.random.Generator, size: int) -> tuple[Side, Side]:
  """NMS of 2000 boxes."""
  boxes, scores = random_boxes(rng, 2000, size), rng.random(2000).astype(np.float32)
  ours = jax.jit(functools.partial(nms, threshold=0.7, limit=1000))
  our_boxes, our_scores, valid = jnp.asarray(boxes), jnp.asarray(scores), jnp.ones(2000, bool)
  their_boxes, their_scores = torch.from_numpy(boxes[:, _XY]), torch.from_numpy(scores)
  return (
    lambda: torchvision.ops.nms(their_boxes, their_scores, 0.7),
    lambda: jax.block_until_ready(ours(our_boxes, our_scores, valid)),
  )


def alignment(rng: np.random.Generator, size: int) -> tuple[Side, Side]:
  """RoIAlign of 512 regions of one image's pyramid, and the gradient of its sum."""
  strides = (4, 8, 16, 32)
  maps = [rng.normal(size=(size // s, size // s, 256)).astype(np.float32) for s in strides]
  boxes = random_boxes(rng, 512, size)
  levels = {
    str(i): torch.from_numpy(m.transpose(2, 0, 1)[None].copy()).requires_grad_()
    for i, m in enumerate(maps)
  }
  pool = torchvision.ops.MultiScaleRoIAlign(list(levels), 7, 2)
  torch_boxes = torch.from_numpy(boxes[:, _XY].copy())

  @jax.jit
  def ours(levels: Sequence[Array], boxes: Array) -> Sequence[Array]:
    return jax.grad(lambda x: roi_align(x, boxes, size=7, strides=strides).sum())(levels)

  our_levels, our_boxes = [jnp.asarray(m) for m in maps], jnp.asarray(boxes)
  return (
    lambda: pool(levels, [torch_boxes], [(size, size)]).sum().backward(),
    lambda: jax.block_until_ready(ours(our_levels, our_boxes)),
  )


def theirs(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> tuple[int, Side, Side]:
  """Number of parameters, training step and inference of torchvision's network."""
  size = image.shape[1]
  network = torchvision.models.get_model(
    "maskrcnn_resnet50_fpn",
    weights=None,
    weights_backbone=None,
    min_size=size,
    max_size=size,
  )
  optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
  x = list(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
  targets = []
  for objects, labels in zip(boxes, classes, strict=True):
    masks = torch.zeros((len(objects), size, size), dtype=torch.uint8)
    for mask, (y0, x0, y1, x1) in zip(masks, objects.astype(int).tolist(), strict=True):
      mask[y0:y1, x0:x1] = 1
    targets.append(
      {
        "boxes": torch.from_numpy(objects[:, _XY].copy()),
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

  return sum(p.numel() for p in network.parameters()), train, infer


def ours(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> tuple[int, Side, Side]:
  """Number of parameters, training step and inference of jseg's network."""
  model = models.create("mask_rcnn", _K, norm="batch")
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

  return sides(model, loss, image, targets)


def main(argv: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  del argv
  rng = np.random.default_rng(0)
  batch, size = _BATCH.value, _SIZE.value
  print(f"{batch} images of {size} x {size}; torch has {torch.get_num_threads()} threads")
  header()
  if "nms" in _ONLY.value:
    compare("nms", *suppression(rng, size), _ROUNDS.value)
  if "roi_align" in _ONLY.value:
    compare("roi_align", *alignment(rng, size), _ROUNDS.value)
  if "network" in _ONLY.value:
    image = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
    boxes = random_boxes(rng, 5 * batch, size).reshape(batch, 5, 4)
    classes = rng.integers(1, _K, (batch, 5))
    compare_networks(
      "mask_rcnn",
      theirs(image, boxes, classes),
      ours(image, boxes, classes),
      _ROUNDS.value,
    )


if __name__ == "__main__":
  app.run(main)
