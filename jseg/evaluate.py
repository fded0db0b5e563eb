"""Measures of a whole split, at the images' original size."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jseg import config as configs
from jseg import data, models, tasks
from jseg.checkpoint import checkpoint_step, load_model, load_run
from jseg.crf import CrfParams
from jseg.crf.settings import to_dict
from jseg.metrics import BoundaryState, ConfusionState, host_confusion, none_if_nan, rand_score
from jseg.predict import Segmenter
from jseg.report import progress
from jseg.step import replicate
from jseg.tasks import Task
from jseg.types import InputError


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The measures of one checkpoint on one split.

  Attributes:
    split: its name.
    step: of the checkpoint.
    scores: the measures, `Scores` of a network of pixels.
    names: of the classes.
    task: of the run.
    extra: measures that were asked for besides: `boundary_miou`, `boundary_iou` by class, `rand`;
      and `crf`, the measures after the CRF and its `params`.
  """

  split: str
  step: int
  scores: Any
  names: Sequence[str]
  task: Task
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def evaluate_run(
  run: str | pathlib.Path,
  *,
  split: str | None = None,
  checkpoint: str | int = "best",
  root: str | None = None,
  batch_size: int | None = None,
  boundary: bool = False,
  rand: str | None = None,
  changes: Mapping[str, Any] | None = None,
  crf: CrfParams | None = None,
) -> Evaluation:
  """Evaluates a checkpoint and writes `evaluation/SPLIT.json`, and plots beside it.

  Args:
    run: the run directory.
    split: of the run's data set; its validation split if None.
    checkpoint: "best", "latest" or a step.
    root: where the data set's files are now, if they have moved.
    batch_size: over all devices; that of the configuration if None.
    boundary: whether to measure the IoU of the regions' boundaries too (`BoundaryState`).
    rand: the class whose connected parts are objects, to measure the foreground-restricted Rand
      score too (`rand_score`), the mean over the images that have any.
    crf: parameters of a dense CRF, to measure what it makes of the predictions too.
    changes: of the run's configuration by dotted key, such as {"model.output_stride": 8}; written
      into the JSON file.

  Raises:
    InputError: no such run, checkpoint, split or class; a change is impossible; the data set has
      other classes than the run's; or boundaries, objects or a CRF are asked of volumes or of a
      network of objects.
  """
  run = pathlib.Path(run)
  config, classes = load_run(run, changes)
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
  if rand is not None and rand not in classes.names:
    raise InputError(f"there is no class {rand!r}; choose from {', '.join(classes.names)}")
  if (boundary or rand or crf is not None) and models.task(config.model.name) == "instance":
    raise InputError(
      "boundary IoU, the Rand score and the CRF are for classes of pixels, and "
      f"{config.model.name} finds objects; leave them out"
    )
  if (boundary or rand or crf is not None) and dataset.ndim == 3:
    raise InputError(
      "boundary IoU, the Rand score and the CRF are for images; leave them out for volumes"
    )
  task = tasks.create(config, dataset)
  step = checkpoint_step(run, checkpoint)
  model, variables = load_model(run, step, changes)
  scores = task.make_evaluator(model, split)(replicate(variables))
  extra: dict[str, Any] = {"changes": dict(changes)} if changes else {}
  if boundary or rand or crf is not None:
    segmenter = Segmenter(model, variables, classes, config.data.size, config.data.channels)
    source = dataset.source(split)
    extra |= measure_regions(segmenter, source, boundary=boundary, rand=rand, crf=crf)
  save_evaluation(run, task, scores, split=split, step=step, extra=extra)
  return Evaluation(split, step, scores, classes.names, task, extra)


def measure_regions(
  segmenter: Segmenter,
  source: data.Examples,
  *,
  boundary: bool,
  rand: str | None,
  crf: CrfParams | None = None,
) -> dict[str, Any]:
  """Measures that need whole images: `boundary_miou`, `boundary_iou` by class, and `rand`.

  With a CRF there is `crf` besides: its `params`, and the same measures and those of `Scores` after
  it.
  """
  names = segmenter.classes.names
  before, after = _Regions(names, boundary, rand), _Regions(names, boundary, rand)
  state = ConfusionState.empty(len(names))
  for index in progress(range(len(source)), "whole images", len(source)):
    example = source[index]
    prediction, label = segmenter(example["image"]), example["label"]
    before.add(prediction.mask, label)
    if crf is not None:
      mask = prediction.refine(crf).mask
      after.add(mask, label)
      state = state.update(host_confusion(mask, label, len(names)))
  if crf is None:
    return before.compute()
  scores = state.compute().to_dict(names)
  return before.compute() | {"crf": {"params": to_dict(crf), **scores, **after.compute()}}


class _Regions:
  """Running measures of whole images."""

  def __init__(self, names: Sequence[str], boundary: bool, rand: str | None):
    self._names, self._rand = names, rand
    self._boundary = BoundaryState.empty(len(names)) if boundary else None
    self._scores: list[float] = []

  def add(self, mask: np.ndarray, label: np.ndarray) -> None:
    if self._boundary is not None:
      self._boundary = self._boundary.update(mask, label)
    if self._rand is not None:
      self._scores.append(rand_score(mask, label, self._names.index(self._rand)))

  def compute(self) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if self._boundary is not None:
      result = self._boundary.compute()
      by_class = dict(zip(self._names, map(none_if_nan, result.iou), strict=True))
      extra |= {"boundary_miou": none_if_nan(result.miou), "boundary_iou": by_class}
    if self._rand is not None:
      known = [score for score in self._scores if not math.isnan(score)]
      extra["rand"] = sum(known) / len(known) if known else None
    return extra


def save_evaluation(
  run: pathlib.Path,
  task: Task,
  scores: Any,
  *,
  split: str,
  step: int,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes `evaluation/SPLIT.json` of a run, and plots beside it."""
  folder = run / "evaluation"
  folder.mkdir(exist_ok=True)
  task.save_scores(scores, folder / split, {"split": split, "step": step}, extra or {})
