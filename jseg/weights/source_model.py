"""A network that was trained elsewhere, and which of ours it fits."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jseg.images import IMAGENET_MEAN, IMAGENET_STD
from jseg.types import Arguments, InputError, Variables
from jseg.weights.convert import LayerTarget


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Preprocessing of a source's images, where it isn't this library's.

  Attributes:
    mean: mean that is subtracted from images in [0, 1], in the order R G B.
    std: number that they are then divided by.
    bgr: whether the channels come in the order B G R.
  """

  mean: tuple[float, float, float]
  std: float
  bgr: bool = False


# Images in 0..255 less the mean of ImageNet that networks in Caffe were trained with.
CAFFE_BGR = Preprocessing(
  (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255), 1 / 255, True
)


@dataclasses.dataclass(frozen=True)
class SourceModel:
  """A network that was recognized by the names and shapes of its tensors.

  Attributes:
    description: source and name of the network, for people.
    networks: our networks that it fits, with the arguments they need. A whole network fits one.
    layers: destination of each of its layers.
    num_classes: number of classes that it scores; None for a classifier of images, which gives a
      backbone alone.
    preprocessing: preprocessing of its images; None if it is ours.
    first: path of its first convolution.
    first_norm: path of the norm that follows, if the convolution has no bias.
    note: further things that the user should know.
  """

  description: str
  networks: Mapping[str, Arguments]
  layers: Mapping[str, LayerTarget]
  num_classes: int | None = None
  preprocessing: Preprocessing | None = None
  first: str = "backbone/conv1"
  first_norm: str = "backbone/norm1"
  note: str = ""


def fold_preprocessing(variables: Variables, source: SourceModel) -> Variables:
  """Makes the first convolution, for images of another preprocessing, one for ours.

  Inside the image the result is the same. Where the kernel reaches into the padding it isn't quite:
  zeros there are ImageNet's mean color for us and `preprocessing.mean` for them. Caffe's mean
  differs from ours by at most one of 255 gray levels, GoogLeNet's by up to 24.

  Args:
    variables: {"params", "batch_stats"} as the source has them; left as they are.
    source: the network that they are from.

  Returns:
    The variables for our preprocessing.

  Raises:
    InputError: the first convolution isn't one of color images, or has nothing that is added to
      its outputs.
  """
  theirs = source.preprocessing
  conv = _module(variables["params"], source.first)
  if theirs is None or "kernel" not in conv:
    return dict(variables)
  kernel = conv["kernel"].astype(np.float64)
  if kernel.ndim != 4 or kernel.shape[2] != 3:
    raise InputError(
      f"{source.first}: a kernel [height width channels outputs] of shape {kernel.shape}, where "
      f"{source.description} begins with 3 channels"
    )
  if theirs.bgr:
    kernel = kernel[:, :, ::-1]
  offset = (np.array(IMAGENET_MEAN) - np.array(theirs.mean)) / theirs.std
  shift = np.einsum("hwcf,c->f", kernel, offset)
  kernel = (kernel * (np.array(IMAGENET_STD) / theirs.std)[:, None]).astype(np.float32)
  params, stats = variables["params"], variables["batch_stats"]
  norm = _module(stats, source.first_norm)
  added = conv.get("bias", norm.get("mean"))
  if np.shape(added) != shift.shape:
    raise InputError(
      f"{source.first}: {source.description} adds a number to each of its {len(shift)} outputs, "
      "and the file doesn't have them; it isn't complete, so get it again"
    )
  if "bias" in conv:
    bias = (added + shift).astype(np.float32)
    params = _replaced(params, source.first, kernel=kernel, bias=bias)
  else:
    mean = (added - shift).astype(np.float32)
    params = _replaced(params, source.first, kernel=kernel)
    stats = _replaced(stats, source.first_norm, mean=mean)
  return {**variables, "params": params, "batch_stats": stats}


def _module(tree: Variables, path: str) -> Variables:
  for part in path.split("/"):
    tree = tree.get(part, {})
  return tree


def _replaced(tree: Variables, path: str, **leaves: np.ndarray) -> Variables:
  """Returns a copy of a tree in which the module at `path` has other leaves."""
  if not path:
    return {**tree, **leaves}
  part, _, rest = path.partition("/")
  return {**tree, part: _replaced(tree[part], rest, **leaves)}
