"""Image in, prediction out: a trained network behind one call, for one image or a collection."""

import contextlib
import dataclasses
import errno
import itertools
import os
import pathlib
import shutil
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.console import RenderableType

from jseg import tasks
from jseg.allocator import give_back_memory
from jseg.collection import Inputs, find_inputs, plan_outputs
from jseg.console import progress
from jseg.data import ClassInfo, FileError, pixel_limit
from jseg.data.files.rows import StoredImage
from jseg.data.files.stored import LARGE
from jseg.models import Network
from jseg.outputs import GO_ON, WriteError, try_folder, unwritable
from jseg.parameters import digest
from jseg.record import Entry, Record
from jseg.run import Run
from jseg.types import Arguments, InputError, Json, Variables

_PARTIAL = ".jseg-partial"  # hidden: not an input, and not a result
_THREADS = max(2, min(8, os.cpu_count() or 1))  # that read images ahead and write results


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
    changes: Mapping[str, object] | None = None,
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
        `jseg.tasks.inference.PROTOCOLS`; the configuration's if None.
      model: the network, where the run was started with one made in Python.
      **options: options of the task; networks of classes have `confident` and `keep_scores` (see
        `jseg.tasks.semantic.predict.SemanticPredictor`).

    Raises:
      InputError: nothing was trained there, the checkpoint is of another network, or the network
        has no such option.
    """
    opened = Run.open(run, changes, protocol=protocol, model=model)
    return cls(opened.task, opened.restore(checkpoint)[1], **options)

  def __call__(self, image: np.ndarray | StoredImage) -> Any:
    """Predicts one image.

    Args:
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (gray); a volume float32 [d h w c] as
        `jseg.data.read_volume` gives it; or what `task.read` gives of a file.

    Returns:
      `SemanticPrediction` or `InstancePrediction`, by the run's task.

    Raises:
      InputError: it is of another type or shape.
    """
    return self._predict(self.variables, image)

  @property
  def together(self) -> int:
    """Images that `batch` is given at the most; 1 where there is no use in several."""
    return self._predict.together

  def batch(
    self, images: Sequence[np.ndarray | StoredImage], filled: int = 1
  ) -> Sequence[Callable[[], Any]]:
    """Shows the network several images at once, over all local devices.

    Args:
      images: each as for the call; one or more, and `together` at the most.
      filled: images that the batch is filled up to, so that one program serves all batches.

    Returns:
      What makes the prediction of each image, at its own size; threads may call it.

    Raises:
      InputError: one of them is of another type or shape.
    """
    return self._predict.batch(self.variables, images, filled)


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
  changes: Mapping[str, object] | None = None,
  protocol: str | None = None,
  overwrite: bool = False,
  write: Sequence[str] = (),
  source_ids: bool = False,
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
      `jseg.tasks.inference.PROTOCOLS`; the configuration's if None.
    overwrite: predicts all files again, and replaces whatever bears the name of a result.
    write: what is written of each file, names of the task's `kinds`; empty: all but "confidence".
    source_ids: whether masks hold the mask values of the data set, such as Cityscapes' label ids,
      and not class numbers; masks of volumes always do.
    **options: options of the task, as for `Segmenter.from_run`.

  Raises:
    InputError: before anything is computed: a result would meet an input, another result or a file
      that isn't one; the folder holds results of other settings, or can't be written. And as soon
      as results can't be written.
  """
  out, opened = pathlib.Path(out), Run.open(run, changes, protocol=protocol)
  task = opened.task
  saving = _check_saving(task, write, source_ids)
  inputs = find_inputs([pathlib.Path(path) for path in paths], task.suffixes)
  plan = plan_outputs(inputs.files, lambda name: task.outputs(name, write), out)
  files = {*task.folder_outputs, *(name for names in plan.values() for name in names)}
  record = Record.read(out)
  if not overwrite:
    record.refuse_strangers(files)
  step, variables = opened.restore(checkpoint)
  if "confidence" in write:
    options["confident"] = True
  segmenter = Segmenter(task, variables, **options)
  asked = {"protocol": protocol, **(changes or {}), **options}
  if opened.config.get("inference", {}).get("crf"):  # a search may have found others
    asked["crf"] = opened.config.inference.crf_params.to_dict()
  asked |= {**saving, "write": " ".join(write) or None}
  settings: Json = {"step": step, "weights": digest(variables), **_plain(asked)}
  failed = dict(inputs.broken)
  todo = record.missing(inputs.files, settings, failed, overwrite=overwrite)
  try_folder(out, "name another --out")
  try:
    record.begin({"run": str(opened.path.absolute()), **settings}, files)
    with _overlapped(
      segmenter, {name: inputs.files[name] for name in todo}, out, saving
    ) as results:
      shown = progress(results, "predicting", len(todo))
      failed |= _add_results(record, shown, todo, plan, inputs.files)
    table = task.report(record.results(), out)
  except OSError as error:
    raise unwritable(out, error, GO_ON) from None
  finally:
    shutil.rmtree(out / _PARTIAL, ignore_errors=True)
  done = [name for name in todo if name not in failed]
  before = [name for name in inputs.files if name not in todo and name not in failed]
  return Predicted(inputs, done, before, failed, table)


def _add_results(
  record: Record,
  results: Iterable[tuple[str, Future[object]]],
  sources: Mapping[str, Json],
  outputs: Mapping[str, Sequence[str]],
  files: Mapping[str, pathlib.Path],
) -> dict[str, str]:
  """Adds results to a record as they come, and returns why files failed, by name."""
  failed = {}
  for name, future in results:
    try:
      record.add(name, Entry(sources[name], outputs[name], future.result()))
    except Exception as error:
      if (reason := _reason(files[name], error)) is None:
        raise
      failed[name] = reason
      record.add_failure(name, reason)
  return failed


def _check_saving(task: tasks.Task, write: Sequence[str], source_ids: bool) -> Arguments:
  """Arguments of `save` of a prediction. Raises InputError if the task has no such."""
  if unknown := [kind for kind in write if kind not in task.kinds]:
    raise InputError(f"write: {unknown[0]!r} is unknown; choose from {', '.join(task.kinds)}")
  if len(set(write)) < len(write):
    raise InputError(f"write: {', '.join(write)} names one twice; name each once")
  if source_ids and task.folder_outputs:
    raise InputError(
      f"source_ids: pixels of {task.config.model.name} hold numbers of objects; the data set's own "
      f"ids of their classes are in {task.folder_outputs[0]}"
    )
  return {"write": tuple(write), "source_ids": source_ids}


@contextlib.contextmanager
def _overlapped(
  segmenter: Segmenter,
  files: Mapping[str, pathlib.Path],
  out: pathlib.Path,
  saving: Arguments,
) -> Iterator[Iterator[tuple[str, Future[object]]]]:
  """Predicts files one after another, while threads read the next and write the last ones.

  It gives (name, what the report needs of it or why it failed) in the order of the files, as soon
  as the results of each are in place. When it ends, nothing is being written any more.

  Args:
    segmenter: predicts an image.
    files: files by name.
    out: folder to write to.
    saving: further arguments of `save` of a prediction.
  """
  pool = ThreadPoolExecutor(_THREADS)
  together = min(segmenter.together, len(files))
  unread = iter(files.items())
  reads: deque[tuple[str, pathlib.Path, Future[np.ndarray | StoredImage]]] = deque()
  writes: deque[tuple[str, Future[Any]]] = deque()

  def read_ahead(most: int) -> None:
    for name, file in itertools.islice(unread, max(0, most - len(reads))):
      reads.append((name, file, pool.submit(_read, segmenter.task, file)))

  def make(images: Sequence[np.ndarray | StoredImage]) -> Sequence[Callable[[], tasks.Prediction]]:
    """What makes the prediction of each image, or raises why there is none."""
    if together > 1 and images:
      try:
        return segmenter.batch(images, together)
      except Exception as error:
        if not isinstance(error, InputError) and not _is_of_memory(error):
          raise
        # One image isn't to keep the others from being predicted: each goes by itself.
    return [_outcome(segmenter, image) for image in images]

  def results() -> Iterator[tuple[str, Future[Any]]]:
    read_ahead(1)
    while reads:
      # Nothing of another image is held beside a large one, as the next may be.
      large = _is_large(reads[0][-1])
      group = [reads.popleft()]
      if not large:
        read_ahead(together - 1)
        while reads and len(group) < together and not _is_large(reads[0][-1]):
          group.append(reads.popleft())
        read_ahead(max(together, _THREADS))
      made = iter(make([read.result() for *_, read in group if not read.exception()]))
      for name, file, read in group:
        done: Future[Any] = read  # why it couldn't be read
        if not read.exception():
          done = pool.submit(_write, segmenter.task, next(made), name, file, out, saving=saving)
        writes.append((name, done))
      while len(writes) > (0 if large else max(together, _THREADS)):
        yield writes.popleft()
      read_ahead(1)
    yield from writes

  try:
    yield results()
  finally:
    pool.shutdown(cancel_futures=True)


def _outcome(
  segmenter: Segmenter, image: np.ndarray | StoredImage
) -> Callable[[], tasks.Prediction]:
  """Predicts an image, and gives back the prediction, or raises why there is none, when called."""
  outcome: Future[tasks.Prediction] = Future()
  try:
    outcome.set_result(segmenter(image))
  except Exception as error:  # as one of its own, in its turn
    outcome.set_exception(error)
  return outcome.result


def _is_large(read: Future[np.ndarray | StoredImage]) -> bool:
  """Whether an image is a large one, once it has been read."""
  return not read.exception() and read.result().size > LARGE


def _read(task: tasks.Task, file: pathlib.Path) -> np.ndarray | StoredImage:
  with pixel_limit(task.config.data.max_pixels):
    image = task.read(file)
  if image.size > LARGE:
    give_back_memory()  # decoders took more than the image does
  return image


def _write(
  task: tasks.Task,
  make: Callable[[], tasks.Prediction],
  name: str,
  file: pathlib.Path,
  out: pathlib.Path,
  *,
  saving: Arguments,
) -> object:
  """Makes the prediction of one file and puts it in place; returns what the report needs of it."""
  prediction = make()
  folder, _, leaf = name.rpartition("/")
  partial = out / _PARTIAL / str(threading.get_ident())
  saved = prediction.save(partial, leaf, like=file, **saving)
  (out / folder).mkdir(parents=True, exist_ok=True)
  for path in saved:
    path.replace(out / folder / path.name)
  suffix = unicodedata.normalize("NFC", file.name).removeprefix(leaf)
  return task.result(prediction, name + suffix)


def _reason(file: pathlib.Path, error: Exception) -> str | None:
  """Why a file failed, or None where the reason isn't the file."""
  text = str(error)
  if isinstance(error, WriteError):
    return None
  if isinstance(error, FileError):
    return text
  if isinstance(error, InputError):
    return f"{file}: {text}"
  if _is_of_memory(error):
    return f"{file}: there is not enough memory for it; cut or shrink it"
  if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
    return f"{file}: a result can't have its name ({error.strerror}); rename it"
  return None


def _is_of_memory(error: Exception) -> bool:
  """Whether there wasn't enough memory, on the host or on a device."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _plain(values: Mapping[str, object]) -> dict[str, object]:
  """Settings that aren't off, as plain values."""
  return {k: str(value) for k, value in values.items() if value is not None and value is not False}
