"""What a foreign file is, and which of our networks it fits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jseg.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from jseg.weights.convert import Layer


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What images went through, if not through `jseg.data.normalize`.

  Attributes:
    mean: subtracted from images in [0, 1], in the order R G B.
    std: they were then divided by.
    bgr: whether the channels came in the order B G R.
  """

  mean: tuple[float, float, float]
  std: float
  bgr: bool = False


# Images in 0..255 less the mean of ImageNet that networks in Caffe were trained with.
CAFFE_BGR = Preprocessing(
  (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255), 1 / 255, True
)


@dataclasses.dataclass(frozen=True)
class Foreign:
  """A foreign network that was recognised by its tensors.

  Attributes:
    what: it is.
    networks: those of ours that it fits, with the arguments they need. A whole network fits one.
    layers: where its layers go.
    num_classes: of its scores; None for a classifier of images, which gives a backbone alone.
    preprocessing: of its images; None if it is ours.
    first: path of its first convolution.
    first_norm: path of the norm that follows, if the convolution has no bias.
    note: what else the user should know.
  """

  what: str
  networks: Mapping[str, Mapping[str, Any]]
  layers: Mapping[str, Layer]
  num_classes: int | None = None
  preprocessing: Preprocessing | None = None
  first: str = "backbone/conv1"
  first_norm: str = "backbone/norm1"
  note: str = ""


def layer_names(tensors: Mapping[str, np.ndarray]) -> list[str]:
  """Names of the layers that tensors belong to, in order."""
  return list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))


def by_path(path: str) -> Layer:
  """A convolution or a norm, as its own name says."""
  return Layer(path, "norm" if "norm" in path else "conv")


def scores_of(tensors: Mapping[str, np.ndarray], layer: str) -> int:
  """Number of classes that a layer scores."""
  return len(tensors[f"{layer}.weight"])


def fold_preprocessing(variables: Mapping[str, Any], foreign: Foreign) -> None:
  """Makes the first convolution, for images of another preprocessing, one for ours; in place.

  Inside the image the result is the same. Where the kernel reaches into the padding it isn't quite:
  zeros there are ImageNet's mean colour for us and `preprocessing.mean` for them. Caffe's mean
  differs from ours by one of 255 grey levels at most, GoogLeNet's by up to 24.
  """
  theirs = foreign.preprocessing
  conv = _module(variables["params"], foreign.first)
  if theirs is None or "kernel" not in conv:
    return
  kernel = conv["kernel"].astype(np.float64)
  if theirs.bgr:
    kernel = kernel[:, :, ::-1]
  offset = (np.array(IMAGENET_MEAN) - np.array(theirs.mean)) / theirs.std
  shift = np.einsum("hwcf,c->f", kernel, offset)
  conv["kernel"] = (kernel * (np.array(IMAGENET_STD) / theirs.std)[:, None]).astype(np.float32)
  if "bias" in conv:
    conv["bias"] = (conv["bias"] + shift).astype(np.float32)
  else:
    stats = _module(variables["batch_stats"], foreign.first_norm)
    stats["mean"] = (stats["mean"] - shift).astype(np.float32)


def _module(tree: Any, path: str) -> Any:
  for part in path.split("/"):
    tree = tree.get(part, {})
  return tree
