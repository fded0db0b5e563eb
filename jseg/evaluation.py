"""Metrics of a whole split, at the images' original size."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import RenderableType

from jseg import hosts, remote, tasks
from jseg.console import ERRORS, progress
from jseg.data import Dataset, Examples
from jseg.metrics import create as create_metric
from jseg.metrics import percent
from jseg.models import Network
from jseg.outputs import WriteError, try_file
from jseg.report import save_samples
from jseg.report.figure import plain
from jseg.run import Run
from jseg.scaling import as_scaled
from jseg.step import meet
from jseg.types import InputError, Json, Variables

WORST = 8
"""Images that are drawn unless another number is asked for."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The metrics of one checkpoint on one split.

  Attributes:
    split: name of the split.
    step: step of the checkpoint.
    scores: metrics: `SemanticScores` or `InstanceScores`, by the run's task.
    names: names of the classes.
    extra: whole-image metrics that were asked for, as plain values by name; and where the protocol
      has a CRF `without_crf`, the metrics of what it was given.
    written: whether they are in the run directory; not of one that is read-only.
  """

  split: str
  step: int
  scores: tasks.Scores
  names: Sequence[str]
  extra: Json = dataclasses.field(default_factory=dict)
  written: bool = True

  def table(self, title: str) -> RenderableType:
    """Returns the metrics as a table for the terminal."""
    return self.scores.table(self.names, title)


@hosts.lost_processes()
def evaluate(
  run: str | pathlib.Path | Run,
  *,
  split: str | None = None,
  checkpoint: str | int = "best",
  root: str | None = None,
  batch_size: int | None = None,
  protocol: str | None = None,
  metrics: Sequence[str] = (),
  changes: Mapping[str, object] | None = None,
  model: Network | None = None,
  dataset: Dataset | None = None,
  worst: int = WORST,
) -> Evaluation:
  """Evaluates a checkpoint and writes `evaluation/SPLIT.json`, and tables and plots beside it.

  Each image has a line in `SPLIT_images.csv`, and the worst ones are drawn in `SPLIT_worst.png`.

  Several processes (`jseg.hosts.connect`) share the images; process 0 measures what needs whole
  images (`metrics`, the protocol's CRF), and writes. Where the run is read-only, that is told, and
  nothing is written. A run that is being trained can be evaluated too.

  Args:
    run: the run directory.
    split: split of the run's data set; its validation split if None.
    checkpoint: "best", "latest", a step, or "average:N" of the last N (`Run.restore`).
    root: where the data set's files are now, if they have moved.
    batch_size: images per batch over all devices; that of the configuration if None.
    protocol: how the network looks at an image, a key of
      `jseg.tasks.inference.PROTOCOLS`; the configuration's if None.
    metrics: names of further metrics that need whole images, as `jseg.metrics.create` takes them:
      "boundary", "rand=CLASS", of volumes "surface=MM", or your own as "package.module:Name".
    changes: configuration values by dotted key that are to differ, such as
      {"model.output_stride": 8}; written into the JSON file.
    model: the network, where the run was started with one made in Python.
    dataset: the data set, where the run was started with one made in Python.
    worst: number of images to draw, those with the lowest score; they are predicted once more.

  Raises:
    InputError: no such run, checkpoint, split, class or metric; a change is impossible; the data
      set has other classes than the run's; the run's task has no such option; or the metrics can't
      be written, which is tried first.
  """
  if worst < 0:
    raise InputError(f"worst: {worst} must be a number of images, at least 0")
  hosts.agree({"split": split, "checkpoint": checkpoint, "changes": changes, "protocol": protocol})
  meet()
  settings = dict(changes or {})
  if batch_size is not None:
    settings["data.eval_batch_size"] = batch_size
  opened = Run.open(run, settings, protocol=protocol, model=model)
  task = opened.task
  options = {"metrics": tuple(metrics)}
  tasks.refuse_options(opened.config.model.name, options, task.evaluate_options)
  dataset = _dataset(opened, dataset, root)
  split = split or opened.config.data.eval_split
  _check_metrics(metrics, dataset, split)
  writable: list[bool] = []  # of process 0 alone
  hosts.on_first(lambda: writable.append(_is_writable(opened, split)))
  step, variables = opened.restore(checkpoint)
  known = {name: options[name] for name in task.evaluate_options}
  scores, measured = task.measure(variables, dataset, split, **known)
  extra = {**_settings(opened, checkpoint, changes), **measured}
  source = dataset.source(split)

  def save() -> None:
    if writable[0]:
      opened.save_evaluation(scores, dataset, split, step, extra)
      if pictures := _worst(task, scores, variables, source, worst):
        rows, captions = zip(*pictures, strict=True)
        title = f"{split}, step {step}: the worst of {len(source)} images"
        save_samples(rows, task.legend(), opened.files.worst(split), title, captions)
      remote.keep(opened.path)

  hosts.on_first(save)
  return Evaluation(split, step, scores, opened.classes.names, extra, written=any(writable))


def _dataset(run: Run, given: Dataset | None, root: str | None) -> Dataset:
  """The data set that was given, in the run's own scaling, or the run's."""
  if given is None:
    return run.dataset(root)
  run.check_classes(given)
  return as_scaled(run.config, given)


def _check_metrics(metrics: Sequence[str], dataset: Dataset, split: str) -> None:
  """Raises InputError for impossible metrics, before any work."""
  if len(set(metrics)) < len(metrics):
    raise InputError(f"metrics: {', '.join(metrics)} names one twice; name each once")
  for spec in metrics:
    create_metric(spec, dataset.classes.names, dataset.ndim)
  if metrics and dataset.ndim == 3:
    dataset.spacings(split)


def _settings(run: Run, checkpoint: str | int, changes: Mapping[str, object] | None) -> Json:
  """What the metrics depend on, for their file: where it isn't as usual."""
  found: Json = {"changes": dict(changes)} if changes else {}
  if str(checkpoint).startswith("average:"):
    found["checkpoint"] = checkpoint
  if "inference" in run.config:
    found["inference"] = run.config.inference.to_dict()
  return found


def _worst(
  task: tasks.Task, scores: tasks.Scores, variables: Variables, source: Examples, count: int
) -> list[tuple[Sequence[np.ndarray], str]]:
  """Pictures of the images with the lowest score (image, truth, prediction), and captions."""
  worst = [] if scores.images is None else scores.images.worst(count)
  predict = task.predictor()
  drawn: list[tuple[Sequence[np.ndarray], str]] = []
  for index, score in progress(worst, "worst images", len(worst)):
    example = source.open(index)
    rows = task.pictures(predict(variables, example["image"]), example)
    drawn.append((rows, f"{plain(example['name'])}: {task.image_title} {percent(score)}"))
  return drawn


def _is_writable(run: Run, split: str) -> bool:
  """Whether the metrics of a split can be written; where the run is read-only, that is told.

  Raises:
    InputError: they can't be written for another reason.
  """
  try:
    try_file(run.files.scores(split), "make it writable, or evaluate a copy of the run")
  except WriteError as error:
    if not error.read_only:
      raise
    ERRORS.print(f"! the metrics are not written: {error}", style="yellow", soft_wrap=True)
    return False
  return True
