"""Speed of jseg's networks against torchvision's.

  pip install -e ".[bench]"
  python benchmarks/networks.py           # a training step and inference, seconds

The same networks, with the same number of weights. A training step is forward, loss of both heads,
gradients, and SGD with momentum. Both sides run in turns in one process with the same number of
threads, and the best time of each counts. jseg's first call, which compiles, is told apart.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch
import torchvision
from absl import app, flags
from beside import Side, compare_networks, header, sides

from jseg import models

_NETWORKS = flags.DEFINE_list(
  "networks", ["fcn_resnet50", "deeplabv3_resnet50"], "torchvision's names"
)
_SIZE = flags.DEFINE_integer("size", 129, "height and width of the images")
_BATCH = flags.DEFINE_integer("batch", 2, "images in a batch")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each side runs")

_K = 21
_OURS: dict[str, tuple[str, dict[str, Any]]] = {
  "fcn_resnet50": ("fcn_resnet", {"backbone": "resnet50", "aux": True}),
  "deeplabv3_resnet50": (
    "deeplab_v3",
    {
      "backbone": "resnet50",
      "aux": True,
      "head": "torchvision",
      "output_stride": 8,
      "multi_grid": (1,),
      "keep_first_rate": True,
    },
  ),
}


def theirs(name: str, image: np.ndarray, label: np.ndarray) -> tuple[int, Side, Side]:
  """Number of parameters, a training step and inference, of torchvision's network."""
  network = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
  optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
  # The memory layout that PyTorch's convolutions are fastest with on CPUs.
  network = network.to(memory_format=torch.channels_last)
  x = torch.from_numpy(image.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
  y = torch.from_numpy(label)

  def train() -> None:
    network.train()
    optimizer.zero_grad()
    outputs = network(x)
    loss = torch.nn.functional.cross_entropy
    (loss(outputs["out"], y) + 0.5 * loss(outputs["aux"], y)).backward()
    optimizer.step()

  def infer() -> Any:
    network.eval()
    with torch.inference_mode():
      return network(x)["out"]

  return sum(p.numel() for p in network.parameters()), train, infer


def ours(name: str, image: np.ndarray, label: np.ndarray) -> tuple[int, Side, Side]:
  """The same of jseg's."""
  registered, knobs = _OURS[name]
  model = models.create(registered, _K, **knobs)

  def loss(variables: Any, key: jax.Array, x: Any, y: Any) -> tuple[jax.Array, Any]:
    outputs, new = model.apply(
      variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )
    ce = optax.softmax_cross_entropy_with_integer_labels
    return ce(outputs.logits, y).mean() + 0.5 * ce(outputs.aux["aux"], y).mean(), new

  return sides(model, loss, image, label)


def main(argv: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  del argv
  rng = np.random.default_rng(0)
  shape = (_BATCH.value, _SIZE.value, _SIZE.value)
  image = rng.normal(size=(*shape, 3)).astype(np.float32)
  label = rng.integers(0, _K, shape)
  print(
    f"{shape[0]} images of {shape[1]} x {shape[2]}; torch has {torch.get_num_threads()} threads"
  )
  header()
  for name in _NETWORKS.value:
    both = theirs(name, image, label), ours(name, image, label)
    compare_networks(name, *both, _ROUNDS.value)


if __name__ == "__main__":
  app.run(main)
