"""Training metrics: averaged over a window, written to files, shown beside the progress bar."""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

import jax
import numpy as np
import optax
from ml_collections import ConfigDict
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar

from jseg import hosts, json_files, memory
from jseg.console import CONSOLE
from jseg.outputs import GO_ON, unwritable, write_text
from jseg.run import Files, Run
from jseg.tasks import Task
from jseg.types import Array, InputError, Metrics

IN_FLIGHT = 2
"""Steps that the host may be ahead of the device."""
_OWN = ("loss", "losses", "grad_norm")  # and `norms`; others are the task's counts
_STARVED = 0.25  # share of the time without input that is worth a word
_STARVED_STEPS = 50  # and the steps over which it is measured

LogFn = Callable[[int, Mapping[str, float]], None]
"""`(step, metrics by name)`."""


class TrainingLog:
  """What a training says of itself: files, console, progress bar, and the user's function.

  A context manager; use it around the loop.

  Says once where the devices wait for input, and what can be done.

  Args:
    run: run directory and configuration.
    task: task of the run.
    first: finished steps.
    schedule: learning rate by step.
    on_log: called with (step, training metrics) whenever they are logged.
    explain: `(step) -> text` of a step whose loss isn't finite, for the message.
  """

  def __init__(
    self,
    run: Run,
    task: Task,
    first: int,
    schedule: optax.Schedule,
    on_log: LogFn | None,
    explain: Callable[[int], str],
  ):
    self._config = run.config
    self._schedule, self._on_log = schedule, on_log
    self._window = MetricsAccumulator(task, run.config.data.batch_size, explain)
    self._starved = Starvation(run.config)
    self._writer = MetricWriter(run.files, first)
    self._first = first
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "TrainingLog":
    self._stack.enter_context(contextlib.closing(self._writer))
    self._stack.enter_context(contextlib.closing(self._window))
    self._bar = self._stack.enter_context(progress_bar())
    self._line = self._bar.add_task(
      "training", total=self._config.steps, completed=self._first, status="compiling"
    )
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._stack.__exit__(kind, error, trace)

  def fetching(self) -> contextlib.AbstractContextManager[None]:
    """Takes the time that a step's batch is waited for; the clock of a window starts with it."""
    return self._window.fetching()

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step that may still be running, and moves the progress bar."""
    self._window.add(step, metrics)
    self._bar.update(self._line, completed=step, status=self._window.status())

  def write_training(self, step: int) -> None:
    """Logs the means over the steps since the last call."""
    line = {**self._window.flush(), **memory.peaks(), "lr": float(self._schedule(step - 1))}
    self._writer.write(step, self._config.data.train_split, line)
    self._starved.watch(line)
    if self._on_log is not None:
      self._on_log(step, line)
    if not CONSOLE.is_interactive:
      CONSOLE.print(f"step {step}/{self._config.steps}  {self._window.status()}")

  def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs the metrics of the validation split."""
    self._writer.write(step, self._config.data.eval_split, metrics)

  def write_pictures(self, step: int, pictures: Mapping[str, pathlib.Path]) -> None:
    """Shows PNG files of the validation split in TensorBoard, by name; those that are there."""
    self._writer.write_pictures(step, self._config.data.eval_split, pictures)


class Starvation:
  """Tells once that the devices wait for input, with what can be done about it.

  Args:
    config: configuration of the run.
  """

  def __init__(self, config: ConfigDict):
    self._config = config
    self._seconds = self._waited = 0.0
    self._images = 0.0
    self._compiled = self._told = False

  def watch(self, line: Mapping[str, float]) -> None:
    """Takes the training metrics of a window; the first of a session has the compilation in it."""
    config = self._config
    if not self._compiled:
      self._compiled = True
      return
    self._seconds += line["seconds"]
    self._waited += line["seconds"] * line["waiting_for_input"]
    self._images += line["seconds"] * line["images_per_second"]
    if self._images < _STARVED_STEPS * config.data.batch_size:
      return
    share = self._waited / self._seconds
    if share > _STARVED and not self._told:
      self._told = True
      CONSOLE.print(self._message(share), style="yellow", soft_wrap=True, highlight=False)
    self._seconds = self._waited = self._images = 0.0

  def _message(self, share: float) -> str:
    threads, cores = self._config.data.threads, os.cpu_count() or 1
    more = f"raise --config.data.threads ({threads} of {cores} cores are used)"
    none = f"there are no more cores for --config.data.threads ({threads} of {cores})"
    size = " x ".join(map(str, self._config.data.size))
    return (
      f"! the devices waited {100 * share:.0f} % of the time for input: "
      f"{more if threads < cores else none}; prepare images that are no larger than "
      f"data.size ({size}); or lower data.size (docs/monitoring.md)"
    )


@dataclasses.dataclass(frozen=True)
class _Step:
  """A step that may still be running.

  Attributes:
    number: of the step, from 1.
    metrics: what it returns.
    fetched: when its batch was asked for, and when it came.
    before: when the step before it was ready; None if this is the first.
  """

  number: int
  metrics: Metrics
  fetched: tuple[float, float]
  before: concurrent.futures.Future[float] | None

  def idle(self) -> float:
    """Seconds in which the devices had nothing to do before the batch came."""
    asked, came = self.fetched
    return 0.0 if self.before is None else max(0.0, came - max(asked, self.before.result()))


class MetricsAccumulator:
  """Training metrics since the last line of the log.

  Args:
    task: the run's task, which computes metrics from counts.
    batch_size: images per step, for the speed.
    explain: `(step) -> text` of a step whose loss isn't finite, for the message.

  Raises:
    InputError: from any method, as soon as a loss is seen that isn't finite.
  """

  def __init__(self, task: Task, batch_size: int, explain: Callable[[int], str]):
    self._task, self._explain = task, explain
    self._batch_size = batch_size
    self._pending: deque[_Step] = deque()
    self._last: dict[str, float] = {}
    # The host runs ahead of the devices; only who waits for a step knows when it was ready.
    self._watch = concurrent.futures.ThreadPoolExecutor(1, "jseg-steps")
    self._ready: concurrent.futures.Future[float] | None = None
    self._fetched = (0.0, 0.0)
    self._reset()

  def _reset(self) -> None:
    self._steps: list[Metrics] = []
    self._counts: dict[str, np.ndarray] = {}
    self._skipped: int | None = None
    self._started: float | None = None
    self._idle = 0.0
    self._norms: dict[str, float] = {}

  @contextlib.contextmanager
  def fetching(self) -> Iterator[None]:
    """Takes the time that a step's batch is waited for.

    Starts the clock of a new window; not earlier, as evaluation lies between two windows.
    """
    asked = time.perf_counter()
    if self._started is None:
      self._started = asked
    yield
    self._fetched = asked, time.perf_counter()

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step that may still be running."""
    self._pending.append(_Step(step, metrics, self._fetched, self._ready))
    self._ready = self._watch.submit(_when_ready, metrics["loss"])
    while len(self._pending) > IN_FLIGHT:
      self._fetch()

  def close(self) -> None:
    """Waits for nothing any more."""
    self._watch.shutdown(wait=False, cancel_futures=True)

  def _fetch(self) -> None:
    step = self._pending.popleft()
    metrics = jax.device_get(step.metrics)
    self._idle += step.idle()
    if "skipped" in metrics:  # the loss is scaled
      self._skipped = (self._skipped or 0) + int(skipped := metrics.pop("skipped"))
      if skipped:
        return
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
      jax.block_until_ready([each.metrics for each in self._pending])  # nothing runs beside it
      raise InputError(
        f"the loss became {loss} at step {step.number}; training stops, earlier checkpoints are "
        "kept. A lower optim.lr, optim.clip_norm=1.0 or a longer optim.warmup_steps usually helps. "
        f"{self._explain(step.number)}"
      )
    for name, norm in _norms(metrics.pop("norms", {})).items():
      self._norms[name] = self._norms.get(name, 0.0) + norm
    self._steps.append({name: metrics.pop(name) for name in _OWN})
    for name, counts in metrics.items():
      self._counts[name] = self._counts.get(name, 0) + np.asarray(counts, np.int64)

  def _line(self) -> dict[str, float]:
    taken = len(self._steps) + (self._skipped or 0)
    if not taken or self._started is None:
      return self._last
    seconds = time.perf_counter() - self._started
    self._last = {
      **(self._means() if self._steps else {}),
      "images_per_second": self._batch_size * taken / seconds,
      "waiting_for_input": self._idle / seconds,
      "seconds": seconds,
      **({} if self._skipped is None else {"skipped_steps": float(self._skipped)}),
    }
    return self._last

  def _means(self) -> dict[str, float]:
    """The means over the window's steps, but for those that were skipped."""
    losses = [step["losses"] for step in self._steps]
    # A step's loss weighs as much as its largest loss has pixels.
    counts = [max(float(count) for _, count in each.values()) for each in losses]
    totals = [float(step["loss"]) for step in self._steps]
    parts = {
      name: _mean([each[name][0] for each in losses], [each[name][1] for each in losses])
      for name in losses[0]
    }
    return {
      "loss": _mean(totals, counts),
      **(parts if len(parts) > 1 else {}),
      **self._task.training_metrics(self._counts),
      "grad_norm": float(np.mean([step["grad_norm"] for step in self._steps])),
      **{name: total / len(self._steps) for name, total in self._norms.items()},
    }

  def flush(self) -> dict[str, float]:
    """Waits for all steps, returns the window's means and begins a new one."""
    while self._pending:
      self._fetch()
    line = self._line()
    self._reset()
    return line

  def status(self) -> str:
    """Returns one line for the progress bar."""
    line = self._line()
    if not line:
      return "compiling"
    metric = self._task.metric
    loss = f"loss {line['loss']:.4f}  " if "loss" in line else "every step skipped  "
    score = f"{self._task.title} {line[metric]:.3f}  " if metric in line else ""
    return f"{loss}{score}{line['images_per_second']:.1f} images/s"


def _when_ready(array: Array) -> float:
  """Waits for an array and returns when it was there, in seconds."""
  jax.block_until_ready(array)
  return time.perf_counter()


def _norms(parts: Mapping[str, np.ndarray]) -> dict[str, float]:
  """A step's norm of the update, and of the gradient and the update in each part."""
  if not parts:
    return {}
  line = {"update_norm": math.hypot(*(float(update) for _, update in parts.values()))}
  line |= {f"grad_norms/{name}": float(gradient) for name, (gradient, _) in parts.items()}
  return line | {f"update_norms/{name}": float(update) for name, (_, update) in parts.items()}


def _mean(means: Sequence[float], counts: Sequence[float]) -> float:
  """The mean over the window's pixels, not over its steps, of means with their counts."""
  weights = np.asarray(counts, np.float64)
  return float((np.asarray(means, np.float64) * weights).sum() / max(weights.sum(), 1.0))


class MetricWriter:
  """Writes metrics to `metrics.jsonl` and to TensorBoard events; process 0 only.

  Args:
    files: paths of the run.
    step: finished steps. Lines of later steps come from a run that was killed after its last
      checkpoint; they are taken out and will be written again.

  Raises:
    InputError: there are metrics that can't be read; or, from any method, they can't be written.
  """

  def __init__(self, files: Files, step: int):
    self._writes = hosts.is_first()
    if not self._writes:
      return
    self._path = files.metrics
    lines = json_files.read_metrics(files.metrics)
    write_text(
      files.metrics, "".join(json_files.line(line) for line in lines if line["step"] <= step)
    )
    self._events = Events(files.events, step + 1)

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes one line."""
    if not self._writes:
      return
    plain = {k: None if math.isnan(v) else v for k, v in values.items()}
    json_files.append(self._path, {"step": step, "split": split, **plain})
    self._events.write(step, {f"{split}/{key}": value for key, value in values.items()})

  def write_pictures(self, step: int, split: str, pictures: Mapping[str, pathlib.Path]) -> None:
    """Writes PNG files to TensorBoard, by name; those that are there."""
    if self._writes:
      there = {name: path for name, path in pictures.items() if path.is_file()}
      self._events.write_pictures(step, {f"{split}/{name}": path for name, path in there.items()})

  def close(self) -> None:
    """Lets go of the files."""
    if self._writes:
      self._events.close()


class Events:
  """A file of TensorBoard events, which is complete after each call.

  Args:
    folder: folder of such files.
    first: step from which on what files before say doesn't count.

  Raises:
    WriteError: from any method, it can't be written.
  """

  def __init__(self, folder: pathlib.Path, first: int):
    self._folder = folder
    with self._told():
      folder.mkdir(parents=True, exist_ok=True)
      # Not tensorboardX's SummaryWriter: it writes in a thread, minutes later, and waits for it
      # forever once the thread has met a full disk.
      self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
      start = SessionLog(status=SessionLog.START)
      self._file.write_event(Event(step=first, session_log=start, wall_time=time.time()))
      self._file.flush()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes values by tag."""
    with self._told():
      for tag, value in values.items():
        event = Event(step=step, summary=scalar(tag, value), wall_time=time.time())
        self._file.write_event(event)
      self._file.flush()

  def write_pictures(self, step: int, paths: Mapping[str, pathlib.Path]) -> None:
    """Writes PNG files by tag, as they are."""
    with self._told():
      for tag, path in paths.items():
        with Image.open(path) as picture:
          (width, height), channels = picture.size, len(picture.getbands())
        image = Summary.Image(
          height=height,
          width=width,
          colorspace=channels,
          encoded_image_string=path.read_bytes(),
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._file.write_event(Event(step=step, summary=summary, wall_time=time.time()))
      self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    with self._told():
      self._file.close()

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise unwritable(self._folder, error, GO_ON) from None


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
  """A bar with step, status and ETA."""
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[status]}"),
    TextColumn("ETA"),
    TimeRemainingColumn(),
  )
  with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_interactive) as bar:
    yield bar
