"""Speed of Mask R-CNN and its parts against torchvision's.

  pip install -e ".[bench]"
  python benchmarks/mask_rcnn.py          # seconds

The same network (ResNet-50 with pyramid, batch norm, 91 classes) with the same number of proposals
and samples, on images with five objects each. A training step is forward, all five losses,
gradients, and SGD with momentum. See networks.py for how it is timed.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchvision
from absl import app, flags

from jseg import models
from jseg.nn import nms, roi_align
from jseg.tasks.instance import losses
from jseg.types import Targets

_SIZE = flags.DEFINE_integer("size", 256, "height and width of the images")
_BATCH = flags.DEFINE_integer("batch", 2, "images in a batch")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "times that each side runs")
_ONLY = flags.DEFINE_list("only", ["nms", "roi_align", "network"], "what to time")

_K = 91
_XY = [1, 0, 3, 2]  # torchvision's boxes are (x0 y0 x1 y1)

Side = Callable[[], Any]


def random_boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
  """float32 [count 4], (y0 x0 y1 x1) within an image."""
  low = rng.uniform(0, 0.7 * size, (count, 2))
  return np.concatenate([low, low + rng.uniform(8, 0.3 * size, (count, 2))], 1).astype(np.float32)


def suppression(rng: np.random.Generator, size: int) -> tuple[Side, Side]:
  """NMS of 2000 boxes."""
  boxes, scores = random_boxes(rng, 2000, size), rng.random(2000).astype(np.float32)
  ours = jax.jit(functools.partial(nms, threshold=0.7, most=1000))
  a = (jnp.asarray(boxes), jnp.asarray(scores), jnp.ones(2000, bool))
  b = (torch.from_numpy(boxes[:, _XY]), torch.from_numpy(scores), 0.7)
  return lambda: torchvision.ops.nms(*b), lambda: jax.block_until_ready(ours(*a))


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
  def ours(levels: Any, boxes: jax.Array) -> Any:
    return jax.grad(lambda x: roi_align(x, boxes, size=7, strides=strides).sum())(levels)

  a = ([jnp.asarray(m) for m in maps], jnp.asarray(boxes))
  return (
    lambda: pool(levels, [torch_boxes], [(size, size)]).sum().backward(),
    lambda: jax.block_until_ready(ours(*a)),
  )


def theirs(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> tuple[int, Side, Side]:
  """Number of parameters, a training step and inference, of torchvision's network."""
  size = image.shape[1]
  network = torchvision.models.get_model(
    *("maskrcnn_resnet50_fpn",), weights=None, weights_backbone=None, min_size=size, max_size=size
  )
  optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
  x = list(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
  targets = []
  for mine, labels in zip(boxes, classes, strict=True):
    masks = torch.zeros((len(mine), size, size), dtype=torch.uint8)
    for mask, (y0, x0, y1, x1) in zip(masks, mine.astype(int).tolist(), strict=True):
      mask[y0:y1, x0:x1] = 1
    targets.append(
      {
        "boxes": torch.from_numpy(mine[:, _XY].copy()),
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
  """The same of jseg's."""
  model = models.create("mask_rcnn", _K, norm="batch")
  variables = jax.jit(model.init)(jax.random.key(0), image[:1])
  optimizer = optax.sgd(0.01, momentum=0.9)
  there = np.ones(classes.shape, bool)
  targets = Targets(
    *(boxes, boxes, np.full((*classes.shape, 56, 56), 255, np.uint8)),
    *(classes.astype(np.int32), there, ~there),
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, x: jax.Array, targets: Targets) -> Any:
    params, stats, opt_state, key = state
    key, draw = jax.random.split(key)

    def loss(params: Any) -> tuple[jax.Array, Any]:
      outputs, new = model.apply(
        {"params": params, "batch_stats": stats},
        x,
        train=True,
        targets=targets,
        mutable=["batch_stats"],
        rngs={"sample": draw},
      )
      terms = losses(outputs).values()
      return sum((total / jnp.maximum(n, 1) for total, n in terms), jnp.zeros(())), new

    grads, new = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), new["batch_stats"], opt_state, key

  forward = jax.jit(model.apply)
  x, targets = jax.device_put((image, targets))
  params, stats = jax.tree.map(jnp.copy, (variables["params"], variables["batch_stats"]))
  state = (params, stats, optimizer.init(params), jax.random.key(1))

  def train() -> None:
    nonlocal state
    state = jax.block_until_ready(step(state, x, targets))

  def infer() -> Any:
    return jax.block_until_ready(forward(variables, x))

  return sum(a.size for a in jax.tree.leaves(params)), train, infer


def seconds(side: Side) -> float:
  """Of one call."""
  start = time.perf_counter()
  side()
  return time.perf_counter() - start


def compare(name: str, theirs: Side, ours: Side) -> None:
  """Prints the best times of both, and our first."""
  first = seconds(ours)
  seconds(theirs)
  rounds = [(seconds(theirs), seconds(ours)) for _ in range(_ROUNDS.value)]
  a, b = np.min(rounds, 0)
  print(f"{name:16}{a:10.3f} s{b:6.3f} s{a / b:7.2f}{first:10.1f} s", flush=True)


def main(argv: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  del argv
  rng = np.random.default_rng(0)
  batch, size = _BATCH.value, _SIZE.value
  print(f"{batch} images of {size} x {size}; torch has {torch.get_num_threads()} threads")
  print(f"{'':16}{'torchvision':>12}{'jseg':>8}{'ratio':>7}{'first call':>12}")
  if "nms" in _ONLY.value:
    compare("nms", *suppression(rng, size))
  if "roi_align" in _ONLY.value:
    compare("roi_align", *alignment(rng, size))
  if "network" in _ONLY.value:
    image = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
    boxes = random_boxes(rng, 5 * batch, size).reshape(batch, 5, 4)
    classes = rng.integers(1, _K, (batch, 5))
    theirs_, ours_ = theirs(image, boxes, classes), ours(image, boxes, classes)
    assert theirs_[0] == ours_[0], "the networks must have the same number of parameters"
    compare("training step", theirs_[1], ours_[1])
    compare("inference", theirs_[2], ours_[2])


if __name__ == "__main__":
  app.run(main)
