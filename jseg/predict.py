"""Image in, prediction out: a trained network behind one call, for one image or a collection."""

import dataclasses
import errno
import pathlib
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType

from jseg import tasks
from jseg.collection import Inputs, find_inputs, plan_outputs
from jseg.console import progress
from jseg.crf import CrfParams, params_to_dict
from jseg.data import ClassInfo, FileError, pixel_limit
from jseg.models import Network
from jseg.outputs import GO_ON, WriteError, try_folder, unwritable
from jseg.parameters import digest
from jseg.record import Entry, Record
from jseg.run import Run
from jseg.types import InputError, Variables

_PARTIAL = ".jseg-partial"  # hidden: not an input, and not a result


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
    protocol: str | None = None,
    model: Network | None = None,
    **options: Any,
  ) -> "Segmenter":
    """Loads the network of a run directory.

    Args:
      run: the run directory.
      checkpoint: "best", "latest", a step, or "average:N" of the last N (`Run.restore`).
      changes: configuration values by dotted key that are to differ, such as
        {"model.output_stride": 8}.
      protocol: how the network looks at an image, a key of
        `jseg.tasks.semantic.inference.PROTOCOLS`; the configuration's if None.
      model: the network, where the run was started with one made in Python.
      **options: options of the task; networks of classes have `crf` (see
        `jseg.tasks.semantic.predict.SemanticPredictor`).

    Raises:
      InputError: nothing was trained there, the checkpoint is of another network, or the network
        has no such option.
    """
    opened = Run.open(run, changes, protocol=protocol, model=model)
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


@dataclasses.dataclass(frozen=True)
class Predicted:
  """What became of a collection of files.

  Attributes:
    inputs: the files, and what was left out.
    done: names of the files that were predicted.
    before: names of the files whose results were there already.
    failed: why others failed, by name; by path where a file couldn't even be looked at.
    table: sum of all results in the folder.
  """

  inputs: Inputs
  done: list[str]
  before: list[str]
  failed: dict[str, str]
  table: RenderableType


def predict_files(
  run: str | pathlib.Path | Run,
  paths: Sequence[str | pathlib.Path],
  out: str | pathlib.Path,
  *,
  checkpoint: str | int = "best",
  changes: Mapping[str, Any] | None = None,
  protocol: str | None = None,
  overwrite: bool = False,
  **options: Any,
) -> Predicted:
  """Predicts files and writes the results to a folder, whole or not at all.

  Called again, it predicts only what is missing, has changed or failed before. A file that fails
  doesn't keep the others from being predicted. What the results are of is recorded in the folder's
  `predict.jsonl`.

  Args:
    run: the run directory.
    paths: files, and folders with files.
    out: folder to write to; made if it isn't there.
    checkpoint: "best", "latest", a step, or "average:N" of the last N (`Run.restore`).
    changes: configuration values by dotted key that are to differ, such as
      {"model.output_stride": 8}.
    protocol: how the network looks at an image, a key of
      `jseg.tasks.semantic.inference.PROTOCOLS`; the configuration's if None.
    overwrite: predicts all files again, and replaces whatever bears the name of a result.
    **options: options of the task, as for `Segmenter.from_run`.

  Raises:
    InputError: before anything is computed: a result would meet an input, another result or a file
      that isn't one; the folder holds results of other settings, or can't be written. And as soon
      as results can't be written.
  """
  out, opened = pathlib.Path(out), Run.open(run, changes, protocol=protocol)
  task = opened.task
  inputs = find_inputs([pathlib.Path(path) for path in paths], task.suffixes)
  plan = plan_outputs(inputs.files, task.outputs, out)
  files = {*task.folder_outputs, *(name for names in plan.values() for name in names)}
  record = Record.read(out)
  if not overwrite:
    record.refuse_strangers(files)
  step, variables = opened.restore(checkpoint)
  segmenter = Segmenter(task, variables, **options)
  settings = {
    "step": step,
    "weights": digest(variables),
    **_plain({"protocol": protocol, **(changes or {})}),
    **_plain(options),
  }
  failed = dict(inputs.broken)
  todo = record.missing(inputs.files, settings, failed, overwrite=overwrite)
  try_folder(out, "name another --out")
  try:
    record.begin({"run": str(opened.path.absolute()), **settings}, files)
    for name in progress(todo, "predicting", len(todo)):
      file = inputs.files[name]
      try:
        record.add(name, Entry(todo[name], plan[name], _predict_file(segmenter, name, file, out)))
      except Exception as error:
        if (reason := _reason(file, error)) is None:
          raise
        failed[name] = reason
        record.add_failure(name, reason)
    table = task.report(record.results(), out)
  except OSError as error:
    raise unwritable(out, error, GO_ON) from None
  finally:
    shutil.rmtree(out / _PARTIAL, ignore_errors=True)
  done = [name for name in todo if name not in failed]
  before = [name for name in inputs.files if name not in todo and name not in failed]
  return Predicted(inputs, done, before, failed, table)


def _predict_file(segmenter: Segmenter, name: str, file: pathlib.Path, out: pathlib.Path) -> Any:
  """Predicts one file, puts its results in place, and returns what the report needs of it."""
  with pixel_limit(segmenter.task.config.data.max_pixels):
    image = segmenter.task.read(file)
  prediction = segmenter(image)
  folder, _, leaf = name.rpartition("/")
  saved = prediction.save(out / _PARTIAL, leaf, like=file)
  (out / folder).mkdir(parents=True, exist_ok=True)
  for path in saved:
    path.replace(out / folder / path.name)
  suffix = unicodedata.normalize("NFC", file.name).removeprefix(leaf)
  return segmenter.task.result(prediction, name + suffix)


def _reason(file: pathlib.Path, error: Exception) -> str | None:
  """Why a file failed, or None where the reason isn't the file."""
  text = str(error)
  if isinstance(error, WriteError):
    return None
  if isinstance(error, FileError):
    return text
  if isinstance(error, InputError):
    return f"{file}: {text}"
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return f"{file}: there is not enough memory for it; cut or shrink it"
  if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
    return f"{file}: a result can't have its name ({error.strerror}); rename it"
  return None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  """Settings that aren't off, as plain values."""
  given = {key: value for key, value in values.items() if value is not None and value is not False}
  return {
    key: params_to_dict(value) if isinstance(value, CrfParams) else str(value)
    for key, value in given.items()
  }
