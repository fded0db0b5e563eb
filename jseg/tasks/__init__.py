"""Tasks: what a kind of network is trained on, measured by and shown as.

The loop and the evaluation are the same for all; whatever differs is asked of the task.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import optax
from rich.console import RenderableType

from jseg import data, models
from jseg.step import TrainStep
from jseg.tasks.instance import InstanceTask
from jseg.tasks.semantic import SemanticTask

_TASKS: dict[str, Callable[[Any, data.Dataset], "Task"]] = {
  "semantic": SemanticTask,
  "instance": InstanceTask,
}


class Task(Protocol):
  """One run's task, made of its configuration and its data set.

  Scores are the measures of a split and samples pictures of it, both in the task's own types.

  Attributes:
    measure: name of the measure by which the best checkpoint is kept, the higher the better.
    title: the same for people.
  """

  measure: ClassVar[str]
  title: ClassVar[str]

  def check_fit(self) -> None:
    """Raises InputError if the data set can't train the configured network."""

  def batches(self, seed: int) -> Any:
    """Endless training batches, with `get_state` and `set_state`."""

  def make_train_step(self, model: nn.Module, optimizer: optax.GradientTransformation) -> TrainStep:
    """The training step."""

  def make_moments_step(self, model: nn.Module) -> Callable[..., Any]:
    """What each norm sees in a training batch, for `average_moments`."""

  def training_measures(self, counts: Mapping[str, Any]) -> dict[str, float]:
    """What the log says of training batches, from the sums of the step's measures."""

  def make_evaluator(self, model: nn.Module, split: str) -> Callable[[Any], Any]:
    """Makes `evaluate(variables) -> scores` over one split."""

  def log_line(self, scores: Any) -> dict[str, float]:
    """What the log says of scores; holds `measure`."""

  def save_scores(
    self, scores: Any, path: pathlib.Path, about: Mapping[str, Any], extra: Mapping[str, Any]
  ) -> None:
    """Writes PATH.json, which holds `about`, the scores and `extra`, and plots beside it."""

  def table(self, scores: Any, title: str) -> RenderableType:
    """Scores for people."""

  def make_samples(self, model: nn.Module, split: str) -> Callable[[Any], Sequence[Any]]:
    """Makes `samples(variables)`, of one device, over a few images of a split."""

  def save_samples(self, rows: Sequence[Any], path: pathlib.Path, title: str) -> None:
    """Draws samples as a PNG."""

  def show_samples(self, rows: Sequence[Any], width: int) -> RenderableType:
    """Draws samples for a terminal."""


def create(config: Any, dataset: data.Dataset) -> Task:
  """The task of a configuration's network, on a data set."""
  return _TASKS[models.task(config.model.name)](config, dataset)
