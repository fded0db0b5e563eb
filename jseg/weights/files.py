"""Files of weights, recognised by the names in them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jseg.backbones import vgg
from jseg.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from jseg.types import InputError
from jseg.weights.convert import Layer, convert

# Positions of VGG16's convolutions in torchvision's `features`.
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
_VGG16_NAMES = [f"conv{b}_{i}" for b, n in enumerate(vgg.LAYERS, 1) for i in range(1, n + 1)]
_CLASSIFIER = {
  "classifier.0": Layer("backbone/fc6", "dense", (7, 7)),
  "classifier.3": Layer("backbone/fc7", "dense"),
}
# The convolutions alone are of the original Caffe network: RGB in 0..255, less this mean.
_CAFFE_MEAN = (0.48235294, 0.45882353, 0.40784314)


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a .safetensors file by name.

  Raises:
    InputError: it isn't there, is of another kind, or is damaged.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise InputError(f"there is no file {path}; give a run directory or a .safetensors file")
  if path.suffix != ".safetensors":
    raise InputError(f"{path} is no .safetensors file; save the weights as one")
  try:
    return load_file(path)
  except (SafetensorError, OSError, ValueError) as error:
    raise InputError(f"{path} is damaged or no .safetensors file ({error})") from None


def foreign_variables(
  tensors: Mapping[str, np.ndarray], path: Any = "the file"
) -> tuple[dict[str, Any], list[str], str]:
  """The variables that foreign tensors hold, under this library's names.

  Args:
    tensors: by their foreign names.
    path: of the file, for messages.

  Returns:
    (variables, names that were not used, what the file was recognised as).

  Raises:
    InputError: no known network has such names.
  """
  convolutions = {name for name, t in tensors.items() if t.ndim == 4}
  for positions, with_norm in ((_VGG16, False), (_VGG16_BN, True)):
    if convolutions == {f"features.{i}.weight" for i in positions}:
      layers = {
        f"features.{i}": Layer(f"backbone/{name}")
        for i, name in zip(positions, _VGG16_NAMES, strict=True)
      }
      if with_norm:
        layers |= {
          f"features.{i + 1}": Layer(f"backbone/{name.replace('conv', 'norm')}", "norm")
          for i, name in zip(positions, _VGG16_NAMES, strict=True)
        }
      # torchvision's own file of the convolutions alone holds a classifier of NaN.
      classifier = np.isfinite(tensors.get("classifier.0.weight", np.nan)).all()
      variables, unused = convert(tensors, layers | _CLASSIFIER if classifier else layers)
      what = f"torchvision's vgg16{'_bn' if with_norm else ''}"
      if not classifier:
        _fold_preprocessing(variables["params"]["backbone"]["conv1_1"], _CAFFE_MEAN, 1 / 255)
        what += " without classifier, for images in 0..255 less the mean"
      return variables, unused, what
  known = ", ".join(sorted(tensors)[:4])
  raise InputError(
    f"{path}: no known network has these tensors ({known}, ...); known are torchvision's vgg16 and "
    "vgg16_bn"
  )


def _fold_preprocessing(conv: dict[str, np.ndarray], mean: Any, std: Any) -> None:
  """Makes a first convolution, for images of another mean and deviation, one for ours."""
  ours_mean, ours_std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
  theirs_mean = np.broadcast_to(mean, 3)
  offset = (ours_mean - theirs_mean) / std
  kernel = conv["kernel"].astype(np.float64)
  conv["bias"] = (conv["bias"] + np.einsum("hwcf,c->f", kernel, offset)).astype(np.float32)
  conv["kernel"] = (kernel * (ours_std / std)[:, None]).astype(np.float32)
