"""Batches of a run's data set, for training and for evaluation: the same in every task."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from jseg import data
from jseg.report import progress
from jseg.step import shard
from jseg.types import Batch


def training_batches(config: Any, dataset: data.Dataset, seed: int, **fields: Any) -> Any:
  """Endless training batches.

  Args:
    config: the run's configuration.
    dataset: its data set.
    seed: of their order.
    **fields: what the task needs in a batch; see `jseg.data.train_iterator`.
  """
  return data.train_iterator(
    dataset.source(config.data.train_split),
    size=tuple(config.data.size),
    batch_size=config.data.batch_size,
    seed=seed,
    channels=config.data.channels,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    threads=config.data.threads,
    **fields,
  )


def make_results(
  config: Any,
  dataset: data.Dataset,
  split: str,
  step: Callable[[Any, Batch], Any],
  label_size: tuple[int, ...] | None,
  **options: Any,
) -> Callable[[Any], Iterator[Any]]:
  """Makes `results(variables)`, what a step makes of each batch of a split.

  Every image is in it once, whatever the batch size and the number of devices: the last batch is
  filled up. Results come one batch behind, so that the host works while the device does.

  Args:
    config: the run's configuration.
    dataset: its data set.
    split: of the data set.
    step: `(variables, batch) -> results`, pmapped over the batch.
    label_size: canvas of the labels; None: batches have none (`jseg.data.eval_batches`).
    **options: others of `jseg.data.eval_batches`.
  """
  local, world = jax.local_device_count(), jax.device_count()
  batches = data.eval_batches(
    dataset.source(split),
    size=tuple(config.data.size),
    label_size=label_size,
    batch_size=-(-config.data.eval_batch_size // world) * world,
    channels=config.data.channels,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    threads=config.data.threads,
    **options,
  )
  names = ("image", "size", *(("index",) if label_size is None else ("label", "label_size")))

  def results(variables: Any) -> Iterator[Any]:
    pending = None
    for batch in progress(batches, f"evaluating {split}", len(batches)):
      current = step(variables, shard({name: batch[name] for name in names}, local))
      if pending is not None:
        yield pending
      pending = current
    if pending is not None:
      yield pending

  return results
