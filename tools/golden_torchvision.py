"""Writes tests/golden/{alexnet,vgg16,vgg16_bn,googlenet}.npz: feature maps by torchvision.

  pip install torch torchvision
  python tools/golden_torchvision.py

Weights and images come from tests/golden/formula.py. Of every feature map a regular grid is kept,
so that files stay small.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"

formula = SimpleNamespace(**runpy.run_path(str(GOLDEN / "formula.py")))

# Network -> height and width, arguments, and the module that ends each map. AlexNet and VGG drop
# rows that do not fill a pooling window, Caffe does not: at these sizes every window is full.
NETWORKS: dict[str, tuple[tuple[int, int], dict[str, bool], dict[str, str]]] = {
  "alexnet": (
    (97, 129),
    {},
    {"pool1": "features.2", "pool2": "features.5", "pool5": "features.12"},
  ),
  "vgg16": (
    (96, 128),
    {"init_weights": False},
    {f"pool{i}": f"features.{n}" for i, n in enumerate((4, 9, 16, 23, 30), 1)},
  ),
  "vgg16_bn": (
    (96, 128),
    {"init_weights": False},
    {f"pool{i}": f"features.{n}" for i, n in enumerate((6, 13, 23, 33, 43), 1)},
  ),
  "googlenet": (
    (97, 117),
    {"init_weights": False, "aux_logits": False},
    {f"pool{i}": f"maxpool{i}" for i in range(1, 5)} | {"inception5b": "inception5b"},
  ),
}
CLASSIFIER = ("classifier.", "fc.")  # what follows the features
MAX_CHANNELS, MAX_PIXELS = 32, 80  # kept of a map


def fill(model: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
  """Sets all parameters and running statistics before the classifier; returns names and shapes."""
  entries = []
  for name, tensor in model.state_dict().items():
    if not name.startswith(CLASSIFIER) and not name.endswith("num_batches_tracked"):
      shape = tuple(tensor.shape)
      tensor.copy_(torch.from_numpy(formula.weight(name, shape)))
      entries.append((name, shape))
  return entries


def grid_steps(shape: tuple[int, ...]) -> tuple[int, int]:
  """Steps between the channels and between the rows (and columns) to keep of [1 c h w]."""
  _, channels, height, width = shape
  step = 1
  while -(-height // step) * -(-width // step) > MAX_PIXELS:
    step += 1
  return -(-channels // MAX_CHANNELS), step


def keeper(maps: dict[str, np.ndarray], name: str) -> Callable[..., None]:
  """A hook that puts a module's output into `maps`."""
  return lambda module, inputs, output: maps.update({name: output.numpy().copy()})


@torch.no_grad()
def main() -> None:
  """Computes and writes the files."""
  for network, (size, arguments, modules) in NETWORKS.items():
    model = torchvision.models.get_model(network, weights=None, **arguments).eval()
    entries = fill(model)
    maps: dict[str, np.ndarray] = {}

    for name, module in modules.items():
      model.get_submodule(module).register_forward_hook(keeper(maps, name))
    shape = (1, 3, *size)
    model(torch.from_numpy(formula.image("image", shape)))

    features = [p for n, p in model.named_parameters() if not n.startswith(CLASSIFIER)]
    steps = {name: grid_steps(x.shape) for name, x in maps.items()}
    meta = {
      "reference": "pytorch/vision",
      "commit": torchvision.version.git_version,
      "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
      "class": f"torchvision.models.{network}",
      "arguments": arguments,
      "state_dict": entries,
      "parameters": sum(p.numel() for p in features),
      "input": {"name": "image", "shape": shape},
      "steps": steps,
      "shapes": {name: x.shape for name, x in maps.items()},
    }
    kept: dict[str, Any] = {"meta": np.array(json.dumps(meta))}
    for name, x in maps.items():
      print(f"{network} {name} {x.shape}: std {x.std():.3g}, finite {np.isfinite(x).all()}")
      channels, pixels = steps[name]
      kept[name] = x[:, ::channels, ::pixels, ::pixels]
    np.savez_compressed(GOLDEN / f"{network}.npz", **kept)


if __name__ == "__main__":
  main()
