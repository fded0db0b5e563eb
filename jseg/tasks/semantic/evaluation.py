"""Counting a split: by batches over all devices, or image by image as they are predicted."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from jseg import hosts, metrics
from jseg.allocator import give_back_memory
from jseg.console import progress
from jseg.data import Dataset
from jseg.data.files.stored import LARGE
from jseg.data.records import Decoded
from jseg.metrics import (
  Calibration,
  ConfusionState,
  SemanticScores,
  host_binned,
  host_confusion,
  outcomes,
)
from jseg.tasks.semantic.forward import Binned
from jseg.tasks.semantic.predict import SemanticPredictor
from jseg.types import Array, Json, Variables


def count_batches(
  batches: Iterable[tuple[Array, Array, Binned]], num_images: int, num_classes: int
) -> SemanticScores:
  """The metrics of a split, of what the evaluation step has counted in all processes.

  Args:
    batches: results of `jseg.tasks.semantic.forward.make_eval_step`.
    num_images: number of images in the split.
    num_classes: k.
  """
  counter = _Counter(num_images, num_classes)
  for index, matrices, bins in map(jax.device_get, batches):
    for place in np.flatnonzero(index >= 0):
      binned = None if bins is None else [part[place] for part in bins]
      counter.add(int(index[place]), matrices[place], binned)
  return counter.compute()


def count_images(
  predict: SemanticPredictor, variables: Variables, dataset: Dataset, split: str
) -> SemanticScores:
  """The metrics of what the predictor makes of a split; the processes share the images.

  In memory are the images whose windows share batches, or a large one, and of what is predicted a
  row of windows; of large TIFFs, no more than that.

  Args:
    predict: predictor; with `confident`, calibration is measured too.
    variables: parameters and statistics of the network.
    dataset: data set of the run.
    split: split of the data set.
  """
  k = len(dataset.classes.names)
  counter = _Counter(len(dataset.source(split)), k)
  for index, label, mask, confidence in decided_rows(predict, variables, dataset, split):
    bins = None if confidence is None else host_binned(confidence, mask, label)
    counter.add(index, host_confusion(mask, label, k), bins)
  counter.gather()
  return counter.compute()


def decided_rows(
  predict: SemanticPredictor, variables: Variables, dataset: Dataset, split: str
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]:
  """Rows of this process's share of a split, as they are decided.

  Args:
    predict: predictor.
    variables: parameters and statistics of the network.
    dataset: data set of the run.
    split: split of the data set.

  Yields:
    (index of an image, labels of some of its rows, what is predicted of them, how sure that is).
  """
  source = dataset.source(split)
  indices = range(jax.process_index(), len(source), jax.process_count())
  shown = progress(indices, f"evaluating {split}", len(indices))
  for group in _groups(((index, source.open(index)) for index in shown), predict.together):
    images = [example["image"] for _, example in group]
    for (index, example), rows in zip(group, predict.rows(variables, images), strict=True):
      for part, mask, confidence in rows:
        yield index, example["label"][part], mask, confidence


def _groups(
  examples: Iterable[tuple[int, Decoded]], most: int
) -> Iterator[list[tuple[int, Decoded]]]:
  """Examples whose windows share batches; a large one is alone, for the sake of memory."""
  group: list[tuple[int, Decoded]] = []
  for index, example in examples:
    large = example["image"].size > LARGE
    if group and (large or len(group) == most):
      yield group
      group = []
    if large:
      give_back_memory()
      yield [(index, example)]
    else:
      group.append((index, example))
  if group:
    yield group


def count_whole_images(
  predict: SemanticPredictor,
  variables: Variables,
  dataset: Dataset,
  split: str,
  specs: Sequence[str],
) -> tuple[SemanticScores, Json]:
  """The metrics of a split and those that need whole images, in one pass of process 0.

  Args:
    predict: predictor, with `confident`.
    variables: parameters and statistics of the network.
    dataset: data set of the run.
    split: split of the data set.
    specs: names of the further metrics, as `jseg.metrics.create` takes them.

  Returns:
    The metrics, in every process; and, in process 0, the further metrics by name. Where the
    protocol has a CRF there is `without_crf` besides: all metrics of what the CRF was given.
  """
  names, source = dataset.classes.names, dataset.source(split)
  measured, without = (_ImageMetrics(specs, names, dataset.ndim) for _ in range(2))
  spacings = dataset.spacings(split) if specs and dataset.ndim == 3 else None
  counter, before = (_Counter(len(source), len(names)) for _ in range(2))

  def measure() -> None:
    for index in progress(range(len(source)), f"evaluating {split}", len(source)):
      example = source[index]
      label = example["label"]
      prediction = predict.before_crf(variables, example["image"])
      if predict.crf is not None:
        without.update(prediction.mask, label)
        before.add(index, host_confusion(prediction.mask, label, len(names)))
        prediction = prediction.refine(predict.crf)
      measured.update(prediction.mask, label, *([] if spacings is None else [spacings[index]]))
      bins = host_binned(prediction.confidence, prediction.mask, label)
      counter.add(index, host_confusion(prediction.mask, label, len(names)), bins)

  hosts.on_first(measure)
  extra: Json = {}
  if hosts.is_first():
    extra = measured.compute()
    if predict.crf is not None:
      extra["without_crf"] = {**before.compute().to_dict(names), **without.compute()}
  counter.gather()
  return counter.compute(), extra


class _Counter:
  """Counts the images of a split.

  Args:
    num_images: number of images in the split.
    num_classes: k.
  """

  def __init__(self, num_images: int, num_classes: int):
    self._state = ConfusionState.empty(num_classes)
    self._images = np.zeros((num_images, 3, num_classes), np.int64)
    self._calibration = Calibration.empty()

  def add(self, index: int, matrix: np.ndarray, bins: Sequence[np.ndarray] | None = None) -> None:
    """Adds an image or a part of one.

    Args:
      index: the image's position in the split.
      matrix: confusion matrix.
      bins: pixels by confidence, of `binned` or `host_binned`.
    """
    self._state = self._state.update(matrix)
    self._images[index] += outcomes(matrix)
    if bins is not None:
      self._calibration = self._calibration.update(bins)

  def gather(self) -> None:
    """Adds what the other processes have counted, none of them what this one has."""
    self._state = ConfusionState(hosts.add_up(self._state.matrix))
    self._images = hosts.add_up(self._images)
    self._calibration = Calibration(*map(hosts.add_up, dataclasses.astuple(self._calibration)))

  def compute(self) -> SemanticScores:
    """Returns the metrics."""
    measured = self._calibration if self._calibration.pixels.any() else None
    scores = self._state.compute()
    return dataclasses.replace(scores, counts=self._images, calibration=measured)


class _ImageMetrics:
  """The metrics of a list of specifications, over whole images or volumes."""

  def __init__(self, specs: Sequence[str], names: Sequence[str], ndim: int):
    self._names = names
    self._states = [metrics.create(spec, names, ndim) for spec in specs]

  def update(self, mask: np.ndarray, label: np.ndarray, *spacing: Sequence[float]) -> None:
    self._states = [state.update(mask, label, *spacing) for state in self._states]

  def compute(self) -> Json:
    result: Json = {}
    for state in self._states:
      result |= state.compute(self._names)
    return result
