"""Speed of jseg's networks against torchvision's.

  pip install -e ".[bench]"
  python benchmarks/networks.py           # a training step and inference, seconds

The same networks, with the same number of weights. A training step is forward, loss of both heads,
gradients, and SGD with momentum. Both sides run in turns in one process with the same number of
threads, and the best time of each counts. jseg's first call, which compiles, is told apart.
"""

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

_NETWORKS = flags.DEFINE_list(
  "networks", ["fcn_resnet50", "deeplabv3_resnet50"], "torchvision's names"
)
_SIZE = flags.DEFINE_integer("size", 129, "height and width of the images")
_BATCH = flags.DEFINE_integer("batch", 2, "images in a batch")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each side runs")

_K = 21
_OURS: dict[str, tuple[str, dict[str, Any]]] = {
  "fcn_resnet50": ("fcn_resnet", {"depth": 50, "aux": True}),
  "deeplabv3_resnet50": (
    "deeplab_v3",
    {
      "depth": 50,
      "aux": True,
      "head": "torchvision",
      "output_stride": 8,
      "multi_grid": (1,),
      "lag": True,
    },
  ),
}

Side = Callable[[], Any]


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
  variables = jax.jit(model.init)(jax.random.key(0), image[:1])
  optimizer = optax.sgd(0.01, momentum=0.9)

  @jax.jit
  def step(state: Any, x: jax.Array, y: jax.Array) -> Any:
    params, stats, opt_state, key = state
    key, dropout = jax.random.split(key)

    def loss(params: Any) -> tuple[jax.Array, Any]:
      outputs, new = model.apply(
        {"params": params, "batch_stats": stats},
        x,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": dropout},
      )
      ce = optax.softmax_cross_entropy_with_integer_labels
      return ce(outputs.logits, y).mean() + 0.5 * ce(outputs.aux["aux"], y).mean(), new

    grads, new = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), new["batch_stats"], opt_state, key

  @jax.jit
  def forward(variables: Any, x: jax.Array) -> Any:
    outputs: Any = model.apply(variables, x, train=False)
    return outputs.logits

  x, y = jnp.asarray(image), jnp.asarray(label)
  params, stats = variables["params"], variables["batch_stats"]
  state = (params, stats, optimizer.init(params), jax.random.key(1))

  def train() -> None:
    nonlocal state
    state = jax.block_until_ready(step(state, x, y))

  def infer() -> Any:
    return jax.block_until_ready(forward(variables, x))

  return sum(a.size for a in jax.tree.leaves(params)), train, infer


def seconds(side: Side) -> float:
  """Of one call."""
  start = time.perf_counter()
  side()
  return time.perf_counter() - start


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
  print(f"{'':20}{'':16}{'torchvision':>12}{'jseg':>8}{'ratio':>7}{'first call':>12}")
  for name in _NETWORKS.value:
    theirs_, ours_ = theirs(name, image, label), ours(name, image, label)
    assert theirs_[0] == ours_[0], "the networks must have the same number of parameters"
    for i, part in enumerate(("training step", "inference"), 1):
      first = seconds(ours_[i])
      seconds(theirs_[i])
      rounds = [(seconds(theirs_[i]), seconds(ours_[i])) for _ in range(_ROUNDS.value)]
      a, b = np.min(rounds, 0)
      print(f"{name:20}{part:16}{a:10.3f} s{b:6.3f} s{a / b:7.2f}{first:10.1f} s", flush=True)


if __name__ == "__main__":
  app.run(main)
