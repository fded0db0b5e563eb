"""Measures of a whole split, at the images' original size."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jseg import config as configs
from jseg import data, models, tasks
from jseg.checkpoint import checkpoint_step, load_model, load_run
from jseg.metrics import BoundaryState, none_if_nan, rand_score
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
    extra: measures that were asked for besides: `boundary_miou`, `boundary_iou` by class, `rand`.
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
    changes: of the run's configuration by dotted key, such as {"model.output_stride": 8}; written
      into the JSON file.

  Raises:
    InputError: no such run, checkpoint, split or class; a change is impossible; the data set has
      other classes than the run's; or boundaries or objects are asked of volumes or of a network of
      objects.
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
  if (boundary or rand) and models.task(config.model.name) == "instance":
    raise InputError(
      f"boundary IoU and the Rand score are for classes of pixels, and {config.model.name} finds "
      "objects; leave them out"
    )
  if (boundary or rand) and dataset.ndim == 3:
    raise InputError("boundary IoU and the Rand score are for images; leave them out for volumes")
  task = tasks.create(config, dataset)
  step = checkpoint_step(run, checkpoint)
  model, variables = load_model(run, step, changes)
  scores = task.make_evaluator(model, split)(replicate(variables))
  extra: dict[str, Any] = {"changes": dict(changes)} if changes else {}
  if boundary or rand:
    segmenter = Segmenter(model, variables, classes, config.data.size, config.data.channels)
    extra |= measure_regions(segmenter, dataset.source(split), boundary=boundary, rand=rand)
  save_evaluation(run, task, scores, split=split, step=step, extra=extra)
  return Evaluation(split, step, scores, classes.names, task, extra)


def measure_regions(
  segmenter: Segmenter, source: data.Examples, *, boundary: bool, rand: str | None
) -> dict[str, Any]:
  """Measures that look at whole regions: `boundary_miou`, `boundary_iou` by class, and `rand`."""
  names = segmenter.classes.names
  state = BoundaryState.empty(len(names))
  scores = []
  for index in progress(range(len(source)), "regions", len(source)):
    example = source[index]
    mask, label = segmenter(example["image"]).mask, example["label"]
    if boundary:
      state = state.update(mask, label)
    if rand is not None:
      scores.append(rand_score(mask, label, names.index(rand)))
  extra: dict[str, Any] = {}
  if boundary:
    result = state.compute()
    by_class = dict(zip(names, map(none_if_nan, result.iou), strict=True))
    extra |= {"boundary_miou": none_if_nan(result.miou), "boundary_iou": by_class}
  if rand is not None:
    known = [score for score in scores if not math.isnan(score)]
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
