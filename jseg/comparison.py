"""Runs side by side: their size and speed, their scores, and how sure a difference is."""

import csv
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jseg import json_files
from jseg.metrics.images import LEVEL, class_iou, paired_intervals
from jseg.models import Network
from jseg.run import Run
from jseg.tasks.inference import Inference
from jseg.types import Arguments, InputError, Json

_KEYS = {"semantic": "iou", "instance": "ap"}  # of a class, by task
_KINDS = ("tp", "fp", "fn")


@dataclasses.dataclass(frozen=True)
class Entry:
  """A run as it is compared.

  Attributes:
    path: the run directory, as it was given.
    name: what it is called in tables: the path without the folder that all runs lie in.
    network: name of the network.
    task: name of the network's task.
    metric: key of the task's metric.
    title: name of that metric.
    classes: names of the classes.
    parameters: how many numbers are trained.
    flops: operations for one image on the canvas, as XLA counts them; None where it can't.
    size: the canvas.
    images_per_second: median over the log of the training; None where it has none.
    lines: the log.
    best: highest value of the metric in the log; None where it has none.
    best_step: step of that value.
    scores: what `evaluation/SPLIT.json` holds; empty where it isn't there.
    by_class: score of each class in it, IoU or AP as a fraction, NaN where the class is absent.
    images: names of the images, and int64 [n 3 k]: true positives, false positives and false
      negatives of each class in each; None where they aren't known.
  """

  path: str
  name: str
  network: str
  task: str
  metric: str
  title: str
  classes: Sequence[str]
  parameters: int
  flops: float | None
  size: Sequence[int]
  images_per_second: float | None
  lines: Sequence[json_files.MetricsLine]
  best: float | None
  best_step: int | None
  scores: Arguments
  by_class: Mapping[str, float]
  images: tuple[Sequence[str], np.ndarray] | None

  @property
  def score(self) -> float | None:
    """The metric in the evaluation; None where there is none."""
    return self.scores.get(self.metric)


@dataclasses.dataclass(frozen=True)
class Difference:
  """How a run's scores differ from those of the first one; NaN where either has none.

  Attributes:
    mean: difference of the metric, as a fraction.
    by_class: difference of each class that both have.
    intervals: (low, high) by class, and of the metric under ""; the bootstrap over the images of
      the split. Empty where the images aren't known.
  """

  mean: float
  by_class: Mapping[str, float]
  intervals: Mapping[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Several runs, the first of which the others are compared with.

  Attributes:
    split: name of the split.
    entries: the runs.
    differences: of each run but the first, in their order.
    notes: what doesn't go together, or is missing, with what can be done.
  """

  split: str
  entries: Sequence[Entry]
  differences: Sequence[Difference]
  notes: Sequence[str]

  def to_dict(self) -> Json:
    """Returns plain values for JSON; None where there is no number."""
    entries = []
    for entry in self.entries:
      values = dataclasses.asdict(dataclasses.replace(entry, lines=(), images=None))
      del values["lines"], values["images"]
      entries.append(values)
    differences = [dataclasses.asdict(each) for each in self.differences]
    about = {"split": self.split, "level": LEVEL, "notes": list(self.notes)}
    every = {**about, "runs": entries, "differences": differences}
    return {key: _plain(value) for key, value in every.items()}


def compare(runs: Sequence[str | pathlib.Path], split: str | None = None) -> Comparison:
  """Compares runs; nothing is evaluated, what their directories hold is read.

  Args:
    runs: run directories, at least two.
    split: split whose evaluations are compared; the first run's validation split if None.

  Raises:
    InputError: there are fewer than two, one isn't a run, or is named twice, or one of its files is
      damaged.
  """
  if len(runs) < 2:
    raise InputError("give two runs or more to compare")
  if len({pathlib.Path(run).expanduser().resolve() for run in runs}) < len(runs):
    raise InputError("a run is named twice; give each once")
  opened = [Run.open(run) for run in runs]
  split = split or opened[0].config.data.eval_split
  names = _short([str(run.path) for run in opened])
  entries = [_entry(run, name, split) for run, name in zip(opened, names, strict=True)]
  notes = [note for entry in entries for note in _missing(entry, split)]
  differences = []
  for other in entries[1:]:
    notes += _unlike(entries[0], other)
    differences.append(_difference(entries[0], other, notes))
  return Comparison(split, entries, differences, list(dict.fromkeys(notes)))


def _short(paths: Sequence[str]) -> list[str]:
  """The paths without the folder that all lie in."""
  try:
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common or ".") for path in paths]
  except ValueError:  # absolute ones and others, or of several drives
    return list(paths)


def _entry(run: Run, name: str, split: str) -> Entry:
  model, task = run.model, run.task
  path = run.files.scores(split)
  scores = json_files.read(path, _again(str(run.path), split)) if path.is_file() else {}
  lines = json_files.read_metrics(run.files.metrics)
  reached = [
    (line[task.metric], line["step"])
    for line in lines
    if line["split"] == run.config.data.eval_split and line.get(task.metric) is not None
  ]
  best, best_step = max(reached, key=lambda each: each[0], default=(None, None))
  speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
  shape = (*run.config.data.size, run.config.data.channels)
  parameters, flops = count(model, shape)
  return Entry(
    path=str(run.path),
    name=name,
    network=run.config.model.name,
    task=type(model).task,
    metric=task.metric,
    title=task.title,
    classes=run.classes.names,
    parameters=parameters,
    flops=flops,
    size=tuple(run.config.data.size),
    images_per_second=float(np.median(speeds)) if speeds else None,
    lines=lines,
    best=best,
    best_step=best_step,
    scores=scores,
    by_class=_by_class(scores, _KEYS[type(model).task], path, _again(str(run.path), split)),
    images=_images(run, split),
  )


def _again(path: str, split: str) -> str:
  return f"measure it: jseg evaluate {path} --split {split}"


def count(model: Network, shape: Sequence[int]) -> tuple[int, float | None]:
  """Counts the parameters of a network, and the operations of one image in evaluation.

  Nothing is compiled or run. Operations are XLA's, a multiplication and an addition being two; what
  is in a loop counts once.

  Args:
    model: the network.
    shape: (height, width, channels), or (depth, height, width, channels).

  Returns:
    (numbers that are trained, operations; None where XLA doesn't count).
  """
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  # A network of objects is told what the image covers.
  apply = functools.partial(model.apply, train=False)
  if type(model).task == "instance":
    apply = functools.partial(apply, size=jnp.array([shape[:2]], jnp.int32))
  lowered = jax.jit(apply).lower(variables, image)
  analysis: object = lowered.cost_analysis()
  return parameters, analysis.get("flops") if isinstance(analysis, dict) else None


def _by_class(scores: Arguments, key: str, path: pathlib.Path, remedy: str) -> dict[str, float]:
  try:
    found = {name: each[key] for name, each in scores.get("per_class", {}).items()}
    return {name: math.nan if value is None else float(value) for name, value in found.items()}
  except (AttributeError, KeyError, TypeError, ValueError):
    raise InputError(f"{path} is damaged ('per_class' has no {key}); {remedy}") from None


def _images(run: Run, split: str) -> tuple[Sequence[str], np.ndarray] | None:
  """Names of the images of a split and their counts, int64 [n 3 k], as `evaluate` wrote them."""
  path = run.files.image_scores(split)
  if not path.is_file():
    return None
  k = len(run.classes.names)
  try:
    with path.open(encoding="utf-8", newline="") as file:
      rows = list(csv.DictReader(file))
    counts = [[[int(row[f"{kind}_{i}"]) for i in range(k)] for kind in _KINDS] for row in rows]
    names = [row["name"] for row in rows]
  except KeyError:
    return None  # of a task that counts no pixels
  except (OSError, ValueError, TypeError, csv.Error) as error:
    raise InputError(f"{path} is damaged ({error}); {_again(str(run.path), split)}") from None
  return names, np.array(counts, np.int64).reshape(-1, 3, k)


def _missing(entry: Entry, split: str) -> list[str]:
  """What a run lacks."""
  if not entry.scores:
    return [f"{entry.name} has no evaluation of {split}; {_again(entry.path, split)}"]
  step = entry.scores.get("step")
  if entry.best_step is not None and step != entry.best_step:
    return [
      f"{entry.name}: the evaluation of {split} is of step {step}, but the best in the log is step "
      f"{entry.best_step}; {_again(entry.path, split)}"
    ]
  return []


def _unlike(first: Entry, other: Entry) -> list[str]:
  """What two runs don't have in common, so that their scores don't tell which is better."""
  pair, notes = f"{first.name} and {other.name}", []
  if first.task != other.task:
    return [f"{pair} are of different tasks ({first.task}, {other.task}): no score is compared"]
  if first.classes != other.classes:
    own = [name for name in first.classes if name not in other.classes]
    new = [name for name in other.classes if name not in first.classes]
    what = f"only in the first: {', '.join(own) or 'none'}; only in the second: "
    notes.append(f"{pair} have different classes ({what}{', '.join(new) or 'none'})")
  if first.scores and other.scores:
    for key in ("inference", "changes"):
      ours, theirs = (_settings(entry.scores, key) for entry in (first, other))
      if ours != theirs:
        notes.append(f"{pair} were evaluated with different settings ({key}: {ours}, {theirs})")
  return notes


def _settings(scores: Arguments, key: str) -> object:
  """What an evaluation says of a setting; of the protocol, keys that it is older than as well."""
  found = scores.get(key)
  if key != "inference" or not isinstance(found, Mapping):
    return found
  return _plain({**dataclasses.asdict(Inference()), **found})


def _difference(first: Entry, other: Entry, notes: list[str]) -> Difference:
  if first.task != other.task:
    return Difference(math.nan, {}, {})
  means = [_number(entry.score) for entry in (first, other)]
  by_class = {
    name: other.by_class[name] - value
    for name, value in first.by_class.items()
    if name in other.by_class
  }
  intervals = {}
  if first.scores and other.scores:
    problem = _unpaired(first, other)
    if problem:
      notes.append(f"{first.name} and {other.name}: no intervals, as {problem}")
    elif first.images is not None and other.images is not None:
      order = np.argsort(first.images[0]), np.argsort(other.images[0])
      found = paired_intervals(first.images[1][order[0]], other.images[1][order[1]])
      intervals = dict(zip((*first.classes, ""), found, strict=True))
  return Difference(means[1] - means[0], by_class, intervals)


def _number(value: object) -> float:
  return float(value) if isinstance(value, int | float) else math.nan


def _unpaired(first: Entry, other: Entry) -> str:
  """Why the images of two evaluations can't be paired; "" if they can."""
  for entry in (first, other):
    if entry.task != "semantic":
      return "AP isn't made of counts of single images"
    if entry.images is None:
      return f"{entry.name} has no counts of single images; evaluate it with this version"
    iou = class_iou(entry.images[1].sum(0))
    told = [entry.by_class.get(name, math.nan) for name in entry.classes]
    if not np.allclose(iou, told, atol=1e-4, equal_nan=True):
      return f"the images of {entry.name} are of another evaluation; evaluate it again"
  if first.classes != other.classes:
    return "the classes differ"
  names = [entry.images[0] if entry.images else () for entry in (first, other)]
  if sorted(names[0]) != sorted(names[1]):
    both = set(names[0]) & set(names[1])
    return f"they were evaluated on different images ({len(both)} of {len(names[0])} are in both)"
  if len(set(names[0])) < len(names[0]):
    return "some images bear the same name"
  return ""


def _plain(value: object) -> object:
  if isinstance(value, Mapping):
    return {key: _plain(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(each) for each in value]
  return None if isinstance(value, float) and math.isnan(value) else value
