"""Batches of a run's data set, for training and for evaluation: the same in every task."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grain
import jax
from ml_collections import ConfigDict

from jseg import data
from jseg.arithmetic import cdiv
from jseg.console import progress
from jseg.step import shard
from jseg.types import Batch, Variables

_Result = TypeVar("_Result")


def training_batches(
  config: ConfigDict,
  dataset: data.Dataset,
  seed: int,
  foreground: float | None = None,
  **fields: Any,
) -> grain.DatasetIterator:
  """Returns endless training batches.

  Args:
    config: configuration of the run.
    dataset: data set of the run.
    seed: seed of the example order.
    foreground: as for `jseg.data.train_iterator`.
    **fields: arguments of `jseg.data.train_iterator` that only the task knows.
  """
  return data.train_iterator(
    dataset.source(config.data.train_split, half=foreground is not None),
    size=tuple(config.data.size),
    foreground=foreground,
    batch_size=config.data.batch_size,
    seed=seed,
    channels=config.data.channels,
    scaled=bool(config.data.low),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    threads=config.data.threads,
    **fields,
  )


def make_results(
  config: ConfigDict,
  dataset: data.Dataset,
  split: str,
  step: Callable[[Variables, Batch], _Result],
  label_size: tuple[int, ...] | None,
  **options: Any,
) -> Callable[[Variables], Iterator[_Result]]:
  """Makes `results(variables)`, which yields the step's result for each batch of a split.

  Each image is in it once, whatever the batch size and the number of devices: the last batch is
  filled up. Results lag one batch, so that host and device overlap.

  Args:
    config: configuration of the run.
    dataset: data set of the run.
    split: split of the data set.
    step: `(variables, batch) -> result`, mapped over the devices.
    label_size: canvas of the labels; None where batches have none (`jseg.data.eval_batches`).
    **options: further arguments of `jseg.data.eval_batches`.
  """
  local, world = jax.local_device_count(), jax.device_count()
  batches = data.eval_batches(
    dataset.source(split),
    size=tuple(config.data.size),
    label_size=label_size,
    batch_size=cdiv(config.data.eval_batch_size, world) * world,
    channels=config.data.channels,
    scaled=bool(config.data.low),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    threads=config.data.threads,
    **options,
  )
  labels = [] if label_size is None else ["label", "label_size"]
  names = ["image", "size", "index", *labels]

  def results(variables: Variables) -> Iterator[_Result]:
    pending: _Result | None = None
    for batch in progress(batches, f"evaluating {split}", len(batches)):
      current = step(variables, shard({name: batch[name] for name in names}, local))
      if pending is not None:
        yield pending
      pending = current
    if pending is not None:
      yield pending

  return results
