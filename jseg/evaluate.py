"""Measures of a whole split, at the images' original size."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from jseg import config as configs
from jseg import data
from jseg.checkpoint import checkpoint_step, load_model, load_run
from jseg.metrics import ConfusionState, Scores
from jseg.report import progress, save_confusion_plot
from jseg.step import make_eval_step, replicate, shard
from jseg.types import InputError


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The measures of one checkpoint on one split.

  Attributes:
    split: its name.
    step: of the checkpoint.
    scores: the measures.
    names: of the classes.
  """

  split: str
  step: int
  scores: Scores
  names: Sequence[str]


def make_evaluator(
  model: nn.Module, dataset: data.Dataset, split: str, config: Any
) -> Callable[[Any], Scores]:
  """Makes `evaluate(variables) -> Scores` over one split.

  Every image counts once, whatever the batch size and the number of devices: the last batch is
  filled up with images without a label.

  Args:
    model: the network.
    dataset: with the split.
    split: its name.
    config: of the run.
  """
  source = dataset.source(split)
  num_classes = len(dataset.classes.names)
  local, world = jax.local_device_count(), jax.device_count()
  batches = data.eval_batches(
    source,
    size=tuple(config.data.size),
    label_size=dataset.max_size(split),
    batch_size=-(-config.data.eval_batch_size // world) * world,
    channels=config.data.channels,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    threads=config.data.threads,
  )
  step = make_eval_step(model, data.prepare)

  def evaluate(variables: Any) -> Scores:
    state = ConfusionState.empty(num_classes)
    pending = None
    for batch in progress(batches, f"evaluating {split}", len(batches)):
      arrays = {k: batch[k] for k in ("image", "size", "label", "label_size")}
      counts = step(variables, shard(arrays, local))
      # One batch behind, so that the host decodes while the device counts.
      if pending is not None:
        state = state.update(pending)
      pending = counts
    return (state if pending is None else state.update(pending)).compute()

  return evaluate


def evaluate_run(
  run: str | pathlib.Path,
  *,
  split: str | None = None,
  checkpoint: str | int = "best",
  root: str | None = None,
  batch_size: int | None = None,
) -> Evaluation:
  """Evaluates a checkpoint and writes `evaluation/SPLIT.json` and the confusion matrix as a plot.

  Args:
    run: the run directory.
    split: of the run's data set; its validation split if None.
    checkpoint: "best", "latest" or a step.
    root: where the data set's files are now, if they have moved.
    batch_size: over all devices; that of the configuration if None.

  Raises:
    InputError: no such run, checkpoint or split; or the data set has other classes than the run's.
  """
  run = pathlib.Path(run)
  config, classes = load_run(run)
  if root is not None:
    config.data.root = root
  if batch_size is not None:
    config.data.eval_batch_size = batch_size
  configs.validate(config)
  split = split or config.data.eval_split
  dataset = configs.load_dataset(config)
  if dataset.classes.names != classes.names:
    raise InputError(
      f"{run} was trained on the classes {', '.join(classes.names)}, but {config.data.name} "
      f"has {', '.join(dataset.classes.names)}; evaluate on a set with the same classes"
    )
  step = checkpoint_step(run, checkpoint)
  model, variables = load_model(run, step)
  scores = make_evaluator(model, dataset, split, config)(replicate(variables))
  save_evaluation(run, scores, classes.names, split=split, step=step)
  return Evaluation(split, step, scores, classes.names)


def save_evaluation(
  run: pathlib.Path, scores: Scores, names: Sequence[str], *, split: str, step: int
) -> None:
  """Writes `evaluation/SPLIT.json` and the plot `evaluation/SPLIT_confusion.png` of a run."""
  folder = run / "evaluation"
  folder.mkdir(exist_ok=True)
  result = {"split": split, "step": step, "resolution": "original", **scores.to_dict(names)}
  (folder / f"{split}.json").write_text(json.dumps(result, indent=2) + "\n")
  save_confusion_plot(scores, names, folder / f"{split}_confusion.png")
