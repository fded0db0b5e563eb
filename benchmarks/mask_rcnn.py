"""Speed of Mask R-CNN and its parts against torchvision's.

  pip install -e ".[bench]"
  python benchmarks/mask_rcnn.py          # seconds

The same network (ResNet-50 with pyramid, batch norm, 91 classes) with the same number of proposals
and samples, on images with five objects each. A training step is forward, all five losses,
gradients, and SGD with momentum. See networks.py for how it is timed.
"""

import functools
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchvision
from absl import app, flags
from beside import Side, compare, compare_networks, header
from objects import XY, example, ours, random_boxes, theirs

from jseg.nn.detection import nms, roi_align
from jseg.types import Array

_SIZE = flags.DEFINE_integer("size", 256, "height and width of the images")
_BATCH = flags.DEFINE_integer("batch", 2, "images in a batch")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "times that each side runs")
_ONLY = flags.DEFINE_list("only", ["nms", "roi_align", "network"], "what to time")


def suppression(rng: np.random.Generator, size: int) -> tuple[Side, Side]:
  """NMS of 2000 boxes."""
  boxes, scores = random_boxes(rng, 2000, size), rng.random(2000).astype(np.float32)
  ours = jax.jit(functools.partial(nms, threshold=0.7, limit=1000))
  our_boxes, our_scores, valid = jnp.asarray(boxes), jnp.asarray(scores), jnp.ones(2000, bool)
  their_boxes, their_scores = torch.from_numpy(boxes[:, XY]), torch.from_numpy(scores)
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
  torch_boxes = torch.from_numpy(boxes[:, XY].copy())

  @jax.jit
  def ours(levels: Sequence[Array], boxes: Array) -> Sequence[Array]:
    return jax.grad(lambda x: roi_align(x, boxes, size=7, strides=strides).sum())(levels)

  our_levels, our_boxes = [jnp.asarray(m) for m in maps], jnp.asarray(boxes)
  return (
    lambda: pool(levels, [torch_boxes], [(size, size)]).sum().backward(),
    lambda: jax.block_until_ready(ours(our_levels, our_boxes)),
  )


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
    given = example(batch, size)
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder, "weights.pth")
      compare_networks("mask_rcnn", theirs(*given, file), ours(*given, file), _ROUNDS.value)


if __name__ == "__main__":
  app.run(main)
