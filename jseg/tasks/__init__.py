"""Tasks: the data, losses, metrics and pictures of one kind of network.

To add one: a folder here, and a line in the table below.
"""

from ml_collections import ConfigDict

from jseg.data import ClassInfo
from jseg.lookup import lookup
from jseg.models import Network
from jseg.tasks.base import (
  Prediction,
  Predictor,
  Scores,
  Task,
  refuse_options,
)

__all__ = [
  "Prediction",
  "Predictor",
  "Scores",
  "Task",
  "create",
  "get",
  "refuse_options",
]

# name: "module:class".
_TASKS = {
  "semantic": "jseg.tasks.semantic:SemanticTask",
  "multilabel": "jseg.tasks.multilabel:MultilabelTask",
  "instance": "jseg.tasks.instance:InstanceTask",
}


def get(name: str) -> type[Task]:
  """Returns the class of a task: one of ours by name, or "package.module:Name"."""
  return lookup("task", name, _TASKS)


def create(config: ConfigDict, model: Network, classes: ClassInfo) -> Task:
  """Returns the task of a run's network; where classes may overlap, the one that decides each."""
  overlapping = model.task == "semantic" and classes.combinations is not None
  task = get("multilabel" if overlapping else model.task)
  return task(config, model, classes)  # type: ignore[call-arg]  # a protocol has no init
