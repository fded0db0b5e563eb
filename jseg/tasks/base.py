"""What a task is: the data, losses, metrics and pictures of one kind of network.

The trainer, the evaluation and the commands are the same for all tasks; whatever differs is asked
of the task. A task is one folder here, and one line in the table of `jseg/tasks/__init__.py`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import grain
import numpy as np
from ml_collections import ConfigDict
from rich.console import RenderableType

from jseg.data import ClassInfo, Dataset, FileError, read_scientific, scale
from jseg.data.files.rows import StoredImage
from jseg.data.files.stored import open_scientific
from jseg.data.records import Decoded
from jseg.metrics import ImageScores
from jseg.models import Network
from jseg.step import Counts, Forward, LossFn
from jseg.types import Array, InputError, Json, Tree, Variables


class Unseen:
  """Stands for a network in its training pass, and gives back the images that it is shown.

  Args:
    network: the network that it stands for.
  """

  def __init__(self, network: Network):
    self._network = network

  def training_labels(self, label: Array) -> Array:
    """As the network's."""
    return self._network.training_labels(label)

  def apply(self, variables: Variables, image: Array, **_: object) -> tuple[Array, Variables]:
    """Returns (image, no updates)."""
    del variables
    return image, {}


class Scores(Protocol):
  """The metrics of one split."""

  @property
  def primary(self) -> float:
    """The metric that selects the best checkpoint; higher is better."""

  @property
  def images(self) -> ImageScores | None:
    """Numbers of each image; None where they aren't known."""

  def summary(self) -> dict[str, float]:
    """Metrics by name for the log; holds the task's `metric`."""

  def to_dict(self, names: Sequence[str]) -> Json:
    """Plain values for JSON, given the names of the classes."""

  def table(self, names: Sequence[str], title: str) -> RenderableType:
    """A table for the terminal, given the names of the classes."""


class Prediction(Protocol):
  """What a network found in one image or volume."""

  def overlay(self) -> np.ndarray:
    """Returns the image with the prediction drawn over it, uint8 [h w 3]."""

  def save(
    self,
    out: str | pathlib.Path,
    stem: str,
    like: str | pathlib.Path | None = None,
    *,
    write: Sequence[str] = (),
    source_ids: bool = False,
  ) -> list[pathlib.Path]:
    """Writes files named after `stem` to the folder `out` and returns their paths."""


@dataclasses.dataclass(frozen=True)
class Serving:
  """A network as one function of a batch of images, preprocessing included.

  Attributes:
    function: `(variables, image [b h w c]) -> logits float32 [b h w k]`.
    dtype: dtype of `image`.
    channels: c.
  """

  function: Callable[[Variables, Array], Array]
  dtype: str
  channels: int


class Predictor(Protocol):
  """Predicts images of any size, as `Task.read` gives them."""

  @property
  def together(self) -> int:
    """Images that `batch` is given at the most; 1 where there is no use in several."""

  def __call__(self, variables: Variables, image: Any) -> Prediction:
    """Predicts one image."""

  def batch(
    self, variables: Variables, images: Sequence[Any], filled: int = 1
  ) -> Sequence[Callable[[], Prediction]]:
    """Shows several images to the network at once, over all local devices.

    Args:
      variables: parameters and statistics of the network.
      images: each as for the call; one or more, and `together` at the most.
      filled: images that the batch is filled up to, so that one program serves all batches.

    Returns:
      What makes the prediction of each image, at its own size; threads may call it.

    Raises:
      InputError: one of them is of another type or shape.
    """


class Task(Protocol):
  """The task of one run, made of its configuration, network and classes.

  Attributes:
    config: configuration of the run.
    classes: names and colors of the classes.
    metric: key of the metric that selects the best checkpoint; higher is better.
    metric_names: keys of all metrics of `Scores.summary`, of which a run may choose another.
    title: name of that metric in tables and plots.
    image_title: name of what single images are compared by.
    predict_options: names of the keyword arguments of `predictor`.
    evaluate_options: names of the keyword arguments of `measure`.
    suffixes: file name endings of the images it predicts.
    folder_outputs: names of the files that are written for a whole folder of predictions.
    kinds: what can be written of a prediction, by name.
  """

  metric: ClassVar[str]
  metric_names: ClassVar[tuple[str, ...]]
  title: ClassVar[str]
  image_title: ClassVar[str]
  predict_options: ClassVar[tuple[str, ...]]
  evaluate_options: ClassVar[tuple[str, ...]]
  folder_outputs: ClassVar[tuple[str, ...]]
  kinds: ClassVar[tuple[str, ...]]

  @property
  def config(self) -> ConfigDict:
    """Configuration of the run."""

  @property
  def classes(self) -> ClassInfo:
    """Names and colors of the classes."""

  @property
  def suffixes(self) -> Collection[str]:
    """File name endings of what it predicts."""

  @staticmethod
  def defaults(network: type[Network]) -> dict[str, dict[str, object]]:
    """Returns the configuration's keys that the task adds, by section."""

  @staticmethod
  def check_config(config: ConfigDict, network: type[Network]) -> None:
    """Raises InputError for impossible values of the task's keys."""

  @staticmethod
  def wrap(network: Network, config: ConfigDict) -> Network:
    """Returns the network with what the configuration adds behind it."""

  def check_data(self, dataset: Dataset) -> None:
    """Raises InputError if the data set can't train the network."""

  def batches(self, dataset: Dataset, seed: int) -> grain.DatasetIterator:
    """Returns endless training batches, with `get_state` and `set_state`."""

  def forward(self, *, without_network: bool = False) -> Forward:
    """Returns the network's pass over a training batch, augmentation included.

    Without the network, the outputs are the augmented images that it would get.
    """

  def losses(self, dataset: Dataset) -> LossFn:
    """Returns the losses of a training batch by name."""

  def loss_weights(self) -> Mapping[str, float]:
    """Returns the weight of each loss by name; 1 where not given."""

  def counts(self, outputs: Tree, targets: Tree) -> Counts:
    """Returns what training metrics are computed from, as integers that add up."""

  def training_metrics(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns metrics of training batches by name, from sums of `counts`."""

  def evaluator(self, dataset: Dataset, split: str) -> Callable[[Variables], Scores]:
    """Returns `evaluate(variables)` over one split, at the images' own size."""

  def measure(
    self, variables: Variables, dataset: Dataset, split: str, **options: Any
  ) -> tuple[Scores, Json]:
    """Returns all metrics of a split, and in process 0 those of `options` as plain values."""

  def save_plots(self, scores: Any, path: pathlib.Path) -> None:
    """Writes plots of an evaluation to files whose names begin with `path`."""

  def read(self, path: pathlib.Path) -> np.ndarray | StoredImage:
    """Reads one image or volume to predict."""

  def predictor(self, **options: Any) -> Predictor:
    """Returns the function that predicts single images."""

  def serving(self) -> "Serving":
    """Returns the network as one function of a batch, to be exported.

    Raises:
      InputError: networks of this task can't be exported.
    """

  @staticmethod
  def foreign_data(num_classes: int) -> dict[str, object]:
    """Returns keys of `data` for a run that is made of foreign weights."""

  def outputs(self, stem: str, write: Sequence[str] = ()) -> list[str]:
    """Returns the names of the files that a prediction's `save` writes, in the order of `write`."""

  def result(self, prediction: Any, file: str) -> object:
    """Returns what `report` needs of one prediction, as plain values, given its file's name."""

  def report(self, results: Mapping[str, Any], out: pathlib.Path) -> RenderableType:
    """Writes what belongs to a whole folder, given all its results by name; returns a table."""

  def pictures(
    self, prediction: Any, example: Decoded
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image, truth and prediction of one example as pictures, uint8 [h w 3]."""

  def target_pictures(self, images: np.ndarray, targets: Tree) -> list[np.ndarray]:
    """Returns augmented images with their targets drawn over them, uint8 [h w 3] each."""

  def legend(self) -> Sequence[tuple[str, Sequence[int]]]:
    """Returns name and color of each class in `pictures`; empty where colors mean nothing."""


def refuse_options(network: str, given: Mapping[str, object], known: Collection[str]) -> None:
  """Refuses options that a task doesn't have.

  Args:
    network: name of the network, for the message.
    given: options by name; None, False and empty values count as not given.
    known: names of the options that the task has.

  Raises:
    InputError: an option is given that isn't known.
  """
  for name, value in given.items():
    if name not in known and value not in (None, False, "", ()):
      rest = f"it takes {', '.join(known)}" if known else "it takes none"
      raise InputError(f"{name}: {network} has no such option; {rest}")


def check_channels(keys: ConfigDict, ndim: int) -> None:
  """Raises InputError if the number of channels can't be.

  Args:
    keys: the section `data` of a configuration.
    ndim: 2 for a network of images, 3 for one of volumes.
  """
  many = ndim == 3 or keys.scaling or keys.low
  if keys.channels < 1 or (not many and keys.channels not in (1, 3)):
    raise InputError(
      f"data.channels: {keys.channels} must be 3 (RGB) or 1 (gray); scientific images have others: "
      'give data.name "scientific" and data.scaling, such as "16bit"'
    )


def read_scaled(
  keys: ConfigDict, path: pathlib.Path, *, by_rows: bool = False
) -> np.ndarray | StoredImage:
  """Reads a scientific image for a run, in the run's own scaling: float32 [h w c] in 0..255.

  Args:
    keys: the section `data` of the run's configuration.
    path: the file.
    by_rows: of a large TIFF, rows are read when they are asked for.

  Raises:
    InputError: it can't be read, or has other channels than the run.
  """
  read = open_scientific if by_rows else read_scientific
  image = read(path, channels_first=bool(keys.options.get("channels_first", False)))
  if image.shape[-1] != keys.channels:
    raise FileError(
      "layout",
      path,
      f"has {image.shape[-1]} channel(s), and the run is of {keys.channels}",
      "Give the channels of the training images, in the same order",
    )
  convert = functools.partial(scale, low=keys.low, high=keys.high)
  return image.map(convert) if isinstance(image, StoredImage) else convert(image)


def check_size(key: str, size: Sequence[object], ndim: int) -> None:
  """Raises InputError if the value of a configuration key is not `ndim` positive integers."""
  if len(size) != ndim or not all(isinstance(n, int) and n > 0 for n in size):
    axes = "(height, width)" if ndim == 2 else "(depth, height, width)"
    raise InputError(f"{key}: {size} must be {ndim} whole numbers above 0, {axes}")
