"""Image in, prediction out: a trained network behind one call."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jseg import tasks
from jseg.data import ClassInfo
from jseg.models import Network
from jseg.run import Run
from jseg.types import Variables


class Segmenter:
  """A trained network that predicts single images of any size: `segmenter(image)`.

  Attributes:
    task: the run's task, which knows what a prediction is.
    variables: parameters and statistics of the network.
    classes: names and colors of the classes.

  Args:
    task: the run's task.
    variables: parameters and statistics of the network.
    **options: options of the task, as for `from_run`.

  Raises:
    InputError: the task has no such option, or its value is impossible.
  """

  def __init__(self, task: tasks.Task, variables: Variables, **options: Any):
    tasks.refuse_options(task.config.model.name, options, task.predict_options)
    known = {name: options[name] for name in task.predict_options if name in options}
    self.task = task
    self.variables = variables
    self._predict = task.predictor(**known)

  @property
  def classes(self) -> ClassInfo:
    """Names and colors of the classes."""
    return self.task.classes

  @classmethod
  def from_run(
    cls,
    run: str | pathlib.Path | Run,
    checkpoint: str | int = "best",
    changes: Mapping[str, Any] | None = None,
    *,
    model: Network | None = None,
    **options: Any,
  ) -> "Segmenter":
    """Loads the network of a run directory.

    Args:
      run: the run directory.
      checkpoint: "best", "latest" or a step.
      changes: configuration values by dotted key that are to differ, such as
        {"model.output_stride": 8}.
      model: the network, where the run was started with one made in Python.
      **options: options of the task; networks of classes have `tile`, `margin` and `crf` (see
        `jseg.tasks.semantic.predict.SemanticPredictor`).

    Raises:
      InputError: nothing was trained there, the checkpoint is of another network, or the network
        has no such option.
    """
    opened = Run.open(run, changes, model=model)
    return cls(opened.task, opened.restore(checkpoint)[1], **options)

  def __call__(self, image: np.ndarray) -> Any:
    """Predicts one image.

    Args:
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (gray); a volume float32 [d h w c] as
        `jseg.data.read_volume` gives it.

    Returns:
      `SemanticPrediction` or `InstancePrediction`, by the run's task.

    Raises:
      InputError: it is of another type or shape.
    """
    return self._predict(self.variables, image)
