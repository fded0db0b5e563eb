"""From a file to a network of ours that computes what the file's own does."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jseg import models
from jseg.types import InputError
from jseg.weights import (
  classifiers,
  drsleep,
  kazuto_deeplab,
  mask_rcnn,
  pytorch_fcn,
  semseg,
  torchvision,
)
from jseg.weights.convert import convert
from jseg.weights.files import read_tensors
from jseg.weights.foreign import Foreign, fold_preprocessing
from jseg.weights.transfer import Transfer, transfer

# Classifiers last: RefineNet has all that a ResNet has, and more.
_CLASSES = 21
_FAMILIES = (torchvision, mask_rcnn, pytorch_fcn, kazuto_deeplab, semseg, drsleep, classifiers)
KNOWN = (
  "ImageNet classifiers of torchvision and timm (alexnet, vgg16, vgg16_bn, googlenet, resnet18 to "
  "152), torchvision's fcn_resnet, deeplabv3_resnet, maskrcnn_resnet_fpn and "
  "keypointrcnn_resnet_fpn, wkentaro/pytorch-fcn, "
  "kazuto1011/deeplab-pytorch (V2, V3), hszhao/semseg's PSPNet, DrSleep/refinenet-pytorch"
)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network with weights that were trained elsewhere.

  Attributes:
    what: the file was recognised as.
    name: of the network, as in `jseg.models.names()`.
    knobs: its arguments that differ from the defaults.
    num_classes: that it scores.
    model: the network: `model.apply(variables, jseg.data.normalize(image)[None])`.
    variables: its parameters and statistics.
    report: what became of every tensor.
    note: what the file doesn't tell.
  """

  what: str
  name: str
  knobs: dict[str, Any]
  num_classes: int
  model: Any
  variables: dict[str, Any]
  report: Transfer
  note: str = ""


def recognise(tensors: Mapping[str, np.ndarray], path: Any = "the file") -> Foreign:
  """What tensors are, by their names and shapes.

  Args:
    tensors: by their foreign names.
    path: of the file, for messages.

  Raises:
    InputError: no known network has such names.
  """
  for family in _FAMILIES:
    if foreign := family.recognise(tensors):
      return foreign
  some = ", ".join(sorted(tensors)[:4])
  raise InputError(f"{path}: no known network has these tensors ({some}, ...); known are {KNOWN}")


def foreign_variables(
  tensors: Mapping[str, np.ndarray], path: Any = "the file"
) -> tuple[dict[str, Any], list[str], str]:
  """The variables that foreign tensors hold, under this library's names, for our preprocessing.

  Args:
    tensors: by their foreign names.
    path: of the file, for messages.

  Returns:
    (variables, names that were not used, what the file was recognised as).

  Raises:
    InputError: no known network has such names.
  """
  foreign = recognise(tensors, path)
  variables, unused = convert(tensors, foreign.layers)
  fold_preprocessing(variables, foreign)
  return variables, unused, foreign.what


def load(
  path: str | Path, model: str | None = None, num_classes: int | None = None, **knobs: Any
) -> Loaded:
  """Reads a .safetensors, .pth or .pt file; nothing in it is executed.

  Args:
    path: of the file.
    model: the network to make; needed for a classifier of ImageNet, which fits several. What the
      classifier doesn't have, the head, is newly initialised.
    num_classes: of that head, VOC's 21 if None; whole networks know theirs.
    **knobs: arguments of the network that the file can't tell.

  Raises:
    InputError: it can't be read, is of no known network or not of `model`, or lacks a part of a
      whole network.
  """
  tensors = read_tensors(path)
  foreign = recognise(tensors, path)
  whole = foreign.num_classes is not None
  fitting = ", ".join(foreign.networks)
  if model is None and not whole:
    raise InputError(
      f"{path} is {foreign.what}, a classifier of images; name the network that is to have it "
      f"as its backbone (--model): {fitting}"
    )
  name = model or next(iter(foreign.networks))
  if name not in foreign.networks:
    raise InputError(f"model {name}: {path} is {foreign.what}, which fits {fitting}")
  if whole and num_classes not in (None, foreign.num_classes):
    raise InputError(
      f"{path} scores {foreign.num_classes} classes, not {num_classes}; import it as it is, then "
      "train another number of classes with --config.init_from"
    )
  classes = foreign.num_classes or num_classes or _CLASSES
  knobs = {**foreign.networks[name], **knobs}
  network = models.create(name, classes, **knobs)
  variables, unused = convert(tensors, foreign.layers)
  fold_preprocessing(variables, foreign)
  template = _init(network, whole)
  result, report = transfer(template, variables, path)
  report = dataclasses.replace(report, unused=[*report.unused, *unused])
  if whole and (report.kept or report.reshaped):
    raise InputError(
      f"{path} looks like {foreign.what} but isn't quite that: {report.differences()}. Its weights "
      "may still start a training, with --config.init_from"
    )
  return Loaded(foreign.what, name, knobs, classes, network, result, report, foreign.note)


def _init(network: nn.Module, shapes_only: bool) -> Any:
  image = jnp.zeros((1, 64, 64, 3))
  if shapes_only:
    return jax.eval_shape(network.init, jax.random.key(0), image)
  # As in `jseg.state`: full optimisation would take longer than the program runs.
  options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
  return jax.jit(network.init, compiler_options=options)(jax.random.key(0), image)
