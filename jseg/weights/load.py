"""From a file to a network of ours that computes what the file's own does."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jseg import models
from jseg.nn.initializers import initialize
from jseg.types import Arguments, InputError, Variables
from jseg.weights.channels import image_kernels
from jseg.weights.convert import convert
from jseg.weights.find import find_network
from jseg.weights.source_model import SourceModel, fold_preprocessing
from jseg.weights.transfer import Transfer, transfer

_SIDE = 64  # pixels of an image that shapes are found with
_NEW_CLASSES = 21  # of a new head behind a classifier of images, as many as VOC has


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network with weights that were trained elsewhere.

  Attributes:
    description: what the file was recognized as.
    name: name of the network, as in `jseg.models.names()`.
    arguments: arguments of the network that differ from the defaults.
    num_classes: number of classes that it scores.
    model: the network: `model.apply(variables, normalize(image)[None])`.
    variables: parameters and statistics of the network.
    report: what became of every tensor.
    note: things that the file doesn't tell.
  """

  description: str
  name: str
  arguments: Arguments
  num_classes: int
  model: models.Network
  variables: Variables
  report: Transfer
  note: str = ""


def source_variables(
  tensors: Mapping[str, np.ndarray], source: SourceModel, path: str | Path = "the file"
) -> tuple[Variables, list[str]]:
  """Converts a source's tensors to this library's names, for this library's preprocessing.

  Args:
    tensors: tensors by the source's names.
    source: what network they are of; see `recognize`.
    path: path of the file, for messages.

  Returns:
    (variables, names of tensors that were not used).

  Raises:
    InputError: a tensor has not the dimensions of its layer, or holds what isn't a number.
  """
  try:
    variables, unused = convert(tensors, source.layers)
    return fold_preprocessing(variables, source), unused
  except InputError as error:
    raise InputError(f"{path}: {error}") from None


def load(
  path: str | Path,
  model: str | None = None,
  num_classes: int | None = None,
  channels: int = 3,
  **arguments: Any,
) -> Loaded:
  """Reads a .safetensors, .pth or .pt file; nothing in it is executed.

  Args:
    path: path of the file.
    model: name of the network to make; needed for a classifier of ImageNet, which fits several. The
      head, which a classifier doesn't have, is newly initialized.
    num_classes: number of classes of that head, VOC's 21 if None; whole networks know theirs.
    channels: channels of the images that the network is to take; its first kernel is made for them
      (`jseg.weights.adapt_kernel`).
    **arguments: arguments of the network that the file can't tell.

  Raises:
    InputError: the file can't be read, is of no known network or not of `model`, or lacks a part of
      a whole network.
  """
  found = find_network(path)
  source = found.source
  name = _network_name(source, path, model, num_classes)
  whole = source.num_classes is not None
  classes = source.num_classes or num_classes or _NEW_CLASSES
  arguments = {**source.networks[name], **arguments}
  network = models.create(name, classes, **arguments)
  variables, unused = source_variables(found.tensors, source, path)
  shape = (_SIDE, _SIDE, channels)
  read_image = functools.partial(image_kernels, network, shape)
  result, report = transfer(_init(network, whole, shape), variables, path, read_image)
  report = dataclasses.replace(report, unused=[*report.unused, *unused, *found.left])
  if whole and (report.kept or report.reshaped):
    raise InputError(
      f"{path} looks like {source.description} but isn't quite that: {report.differences()}. Its "
      "weights may still start a training, with --config.init_from"
    )
  return Loaded(
    description=source.description,
    name=name,
    arguments=arguments,
    num_classes=classes,
    model=network,
    variables=result,
    report=report,
    note=source.note,
  )


def _network_name(
  source: SourceModel, path: str | Path, model: str | None, num_classes: int | None
) -> str:
  """Returns the network that is to have the weights, where the user's wishes go with the file."""
  fitting = ", ".join(source.networks)
  if model is None and source.num_classes is None:
    raise InputError(
      f"{path} is {source.description}, a classifier of images; name the network that is to have "
      f"it as its backbone (--model): {fitting}"
    )
  name = model or next(iter(source.networks))
  if name not in source.networks:
    raise InputError(f"model {name}: {path} is {source.description}, which fits {fitting}")
  if source.num_classes is not None and num_classes not in (None, source.num_classes):
    raise InputError(
      f"{path} scores {source.num_classes} classes, not {num_classes}; import it as it is, then "
      "train another number of classes with --config.init_from"
    )
  return name


def _init(network: nn.Module, shapes_only: bool, shape: tuple[int, ...]) -> Variables:
  make = functools.partial(initialize, network, image_shape=shape)
  return jax.eval_shape(make, jax.random.key(0)) if shapes_only else make(jax.random.key(0))
