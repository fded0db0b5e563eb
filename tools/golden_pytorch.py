"""Writes the files in tests/golden that come from torchvision and timm: feature maps, class scores.

And two small checkpoints in the formats of `torch.save`, for the tests of their reader.

  pip install torch torchvision timm
  python tools/golden_pytorch.py

Weights and images come from tests/golden/formula.py. Of every map a regular grid is kept, so that
files stay small.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from golden_fill import GOLDEN, fill, formula


@dataclasses.dataclass(frozen=True)
class Network:
  """A network, its input, and what to keep of it.

  Attributes:
    name: its name in torchvision; of timm's, the name of its file.
    size: height and width of the image in pixels.
    maps: name of each map to keep -> the module that puts it out.
    arguments: of its constructor.
    unused: what the names of layers without a part in the maps begin with.
    scale: regular expression -> factor of the weights in whose names it is found.
    timm: whether it is timm's network.
  """

  name: str
  size: tuple[int, int]
  maps: dict[str, str]
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
  unused: tuple[str, ...] = ()
  scale: dict[str, float] = dataclasses.field(default_factory=dict)
  timm: bool = False

  def make(self) -> torch.nn.Module:
    """The network with random weights."""
    if self.timm:
      return timm.models.vgg.VGG(**self.arguments)
    return torchvision.models.get_model(self.name, weights=None, **self.arguments)


RESNET_MAPS = {f"layer{i}": f"layer{i}" for i in range(1, 5)}
# The branch of a residual block is made weaker than its input, so that the sums over all blocks
# don't outgrow the later norms' shifts.
BASIC = {r"\.bn2\.weight$": 0.25}
BOTTLENECK = {r"\.bn3\.weight$": 0.25}

SEGMENTATION: dict[str, Any] = {
  "size": (33, 297),  # 5 x 38 features: wider than the largest atrous rate, 36
  "maps": {"scores": "classifier", "aux_scores": "aux_classifier"},
  "arguments": {"num_classes": 21, "aux_loss": True, "weights_backbone": None},
  "scale": BOTTLENECK,
}

# By file. AlexNet and VGG drop rows that do not fill a pooling window, Caffe does not: at these
# sizes every window is full.
NETWORKS = {
  "alexnet": Network(
    "alexnet",
    (97, 129),
    {"pool1": "features.2", "pool2": "features.5", "pool5": "features.12"},
    unused=("classifier.",),
  ),
  "vgg16": Network(
    "vgg16",
    (96, 128),
    {f"pool{i}": f"features.{n}" for i, n in enumerate((4, 9, 16, 23, 30), 1)},
    {"init_weights": False},
    unused=("classifier.",),
  ),
  "vgg16_bn": Network(
    "vgg16_bn",
    (96, 128),
    {f"pool{i}": f"features.{n}" for i, n in enumerate((6, 13, 23, 33, 43), 1)},
    {"init_weights": False},
    unused=("classifier.",),
  ),
  # As wide in and as high as the dense layers want: one element is left.
  "alexnet_fc": Network("alexnet", (224, 224), {"fc7": "classifier.5"}, unused=("classifier.6",)),
  "vgg16_timm": Network(
    "vgg16",
    (224, 224),
    {"pool5": "features", "fc7": "pre_logits"},
    {"cfg": [8, 8, "M", 16, 16, "M", *[32, 32, 32, "M"], *[64, 64, 64, "M"] * 2]},
    unused=("head.",),
    timm=True,
  ),
  "googlenet": Network(
    "googlenet",
    (97, 117),
    {f"pool{i}": f"maxpool{i}" for i in range(1, 5)} | {"inception5b": "inception5b"},
    {"init_weights": False, "aux_logits": False},
    unused=("fc.",),
  ),
  "resnet18": Network("resnet18", (97, 129), RESNET_MAPS, unused=("fc.",), scale=BASIC),
  "resnet50": Network("resnet50", (97, 129), RESNET_MAPS, unused=("fc.",), scale=BOTTLENECK),
  "resnet50_dilated": Network(
    "resnet50",
    (97, 129),
    RESNET_MAPS,
    {"replace_stride_with_dilation": [False, True, True]},
    unused=("fc.",),
    scale=BOTTLENECK,
  ),
  "fcn_resnet50": Network("fcn_resnet50", **SEGMENTATION),
  "deeplab_v3_resnet50": Network("deeplabv3_resnet50", **SEGMENTATION),
}
MAX_CHANNELS, MAX_PIXELS = 32, 80  # kept of a map


def grid_steps(shape: tuple[int, ...]) -> tuple[int, int]:
  """Steps between the channels and between the rows (and columns) to keep of [1 c h w]."""
  channels, height, width = shape[1:]
  step = 1
  while -(-height // step) * -(-width // step) > MAX_PIXELS:
    step += 1
  return -(-channels // MAX_CHANNELS), step


def keeper(maps: dict[str, np.ndarray], name: str) -> Callable[..., None]:
  """A hook that puts a module's output into `maps`."""

  def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
    x = output.numpy().copy()
    maps[name] = x if x.ndim == 4 else x[:, :, None, None]

  return keep


def save_checkpoints() -> None:
  """What trainers save: weights of several types under DataParallel's names, and more."""
  kernel = torch.arange(54, dtype=torch.float32).reshape(2, 3, 3, 3) / 8
  weights = {
    "kernel": kernel,
    "transposed": torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
    "part": kernel[1, :, ::2],
    "parameter": torch.nn.Parameter(torch.tensor([1.5, -2.0])),
    "half": torch.tensor([0.1, 65504.0]).half(),
    "bfloat16": torch.tensor([0.1, 1e30]).bfloat16(),
    "steps": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
  }
  checkpoint = {
    "epoch": 3,
    "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()},
    "best": np.float64(0.5),
    "args": argparse.Namespace(lr=0.1),
  }
  for name, is_zip in (("checkpoint", True), ("checkpoint_legacy", False)):
    torch.save(checkpoint, GOLDEN / f"{name}.pth", _use_new_zipfile_serialization=is_zip)


@torch.no_grad()
def main() -> None:
  """Computes and writes the files."""
  save_checkpoints()
  for file, network in NETWORKS.items():
    model = network.make().eval()
    entries = fill(model, network.scale, network.unused)
    maps: dict[str, np.ndarray] = {}

    for name, module in network.maps.items():
      model.get_submodule(module).register_forward_hook(keeper(maps, name))
    shape = (1, 3, *network.size)
    output = model(torch.from_numpy(formula.image("image", shape)))
    if isinstance(output, dict):  # of segmentation networks: scores at the image's size
      maps |= {"logits": output["out"].numpy(), "aux_logits": output["aux"].numpy()}

    used = [p for n, p in model.named_parameters() if not n.startswith(network.unused)]
    steps = {name: grid_steps(x.shape) for name, x in maps.items()}
    meta = {
      "reference": "huggingface/pytorch-image-models" if network.timm else "pytorch/vision",
      "commit": timm.__version__ if network.timm else torchvision.version.git_version,
      "versions": {m.__name__: m.__version__ for m in (torch, torchvision, timm)},
      "class": f"{type(model).__module__}.{network.name}",
      "arguments": network.arguments,
      "state_dict": entries,
      "scale": network.scale,
      "parameters": sum(p.numel() for p in used),
      "input": {"name": "image", "shape": shape},
      "steps": steps,
      "shapes": {name: x.shape for name, x in maps.items()},
    }
    kept: dict[str, Any] = {"meta": np.array(json.dumps(meta))}
    for name, x in maps.items():
      print(f"{file} {name} {x.shape}: std {x.std():.3g}, finite {np.isfinite(x).all()}")
      channels, pixels = steps[name]
      kept[name] = x[:, ::channels, ::pixels, ::pixels]
    np.savez_compressed(GOLDEN / f"{file}.npz", **kept)


if __name__ == "__main__":
  main()
