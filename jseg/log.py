"""Training metrics: averaged over a window, written to files, shown beside the progress bar."""

import contextlib
import math
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jseg import hosts, json_files
from jseg.console import CONSOLE
from jseg.outputs import GO_ON, unwritable, write_text
from jseg.run import Files, Run
from jseg.tasks import Task
from jseg.types import InputError

_IN_FLIGHT = 2  # steps the host may be ahead of the device
_OWN = ("loss", "losses", "grad_norm")  # metrics of every step; all others are the task's counts


LogFn = Callable[[int, Mapping[str, float]], None]
"""`(step, metrics by name)`."""


class TrainingLog:
  """What a training says of itself: files, console, progress bar, and the user's function.

  A context manager; use it around the loop.

  Args:
    run: run directory and configuration.
    task: task of the run.
    first: finished steps.
    schedule: learning rate by step.
    on_log: called with (step, training metrics) whenever they are logged.
  """

  def __init__(
    self, run: Run, task: Task, first: int, schedule: optax.Schedule, on_log: LogFn | None
  ):
    self._config = run.config
    self._schedule, self._on_log = schedule, on_log
    self._window = MetricsAccumulator(task, run.config.data.batch_size)
    self._writer = MetricWriter(run.files, first)
    self._first = first
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "TrainingLog":
    self._stack.enter_context(contextlib.closing(self._writer))
    self._bar = self._stack.enter_context(progress_bar())
    self._line = self._bar.add_task(
      "training", total=self._config.steps, completed=self._first, status="compiling"
    )
    return self

  def __exit__(self, *error: Any) -> None:
    self._stack.__exit__(*error)

  def begin(self) -> None:
    """Starts the clock before a step."""
    self._window.begin()

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of a step that may still be running, and moves the progress bar."""
    self._window.add(step, metrics)
    self._bar.update(self._line, completed=step, status=self._window.status())

  def write_training(self, step: int) -> None:
    """Logs the means over the steps since the last call."""
    line = {**self._window.flush(), "lr": float(self._schedule(step - 1))}
    self._writer.write(step, self._config.data.train_split, line)
    if self._on_log is not None:
      self._on_log(step, line)
    if not CONSOLE.is_interactive:
      CONSOLE.print(f"step {step}/{self._config.steps}  {self._window.status()}")

  def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs the metrics of the validation split."""
    self._writer.write(step, self._config.data.eval_split, metrics)


class MetricsAccumulator:
  """Training metrics since the last line of the log.

  Args:
    task: the run's task, which computes metrics from counts.
    batch_size: images per step, for the speed.

  Raises:
    InputError: from any method, as soon as a loss is seen that isn't finite.
  """

  def __init__(self, task: Task, batch_size: int):
    self._task = task
    self._batch_size = batch_size
    self._pending: deque[tuple[int, dict[str, Any]]] = deque()
    self._last: dict[str, float] = {}
    self._reset()

  def _reset(self) -> None:
    self._steps: list[dict[str, Any]] = []
    self._counts: dict[str, np.ndarray] = {}
    self._skipped: int | None = None
    self._started: float | None = None

  def begin(self) -> None:
    """Starts the clock of a new window; not earlier, as evaluation lies between two windows."""
    if self._started is None:
      self._started = time.perf_counter()

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of a step that may still be running."""
    self._pending.append((step, metrics))
    while len(self._pending) > _IN_FLIGHT:
      self._fetch()

  def _fetch(self) -> None:
    step, metrics = self._pending.popleft()
    metrics = jax.device_get(metrics)
    if "skipped" in metrics:  # the loss is scaled
      self._skipped = (self._skipped or 0) + int(skipped := metrics.pop("skipped"))
      if skipped:
        return
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
      raise InputError(
        f"the loss became {loss} at step {step}; training stops, earlier checkpoints are kept. "
        "A lower optim.lr, optim.clip_norm=1.0 or a longer optim.warmup_steps usually helps"
      )
    self._steps.append({name: metrics.pop(name) for name in _OWN})
    for name, counts in metrics.items():
      self._counts[name] = self._counts.get(name, 0) + np.asarray(counts, np.int64)

  def _line(self) -> dict[str, float]:
    if not self._steps or self._started is None:
      return self._last
    seconds = time.perf_counter() - self._started
    losses = [step["losses"] for step in self._steps]
    # A step's loss weighs as much as its largest loss has pixels.
    counts = [max(float(count) for _, count in each.values()) for each in losses]
    totals = [float(step["loss"]) for step in self._steps]
    parts = {
      name: _mean([each[name][0] for each in losses], [each[name][1] for each in losses])
      for name in losses[0]
    }
    self._last = {
      "loss": _mean(totals, counts),
      **(parts if len(parts) > 1 else {}),
      **self._task.training_metrics(self._counts),
      "grad_norm": float(np.mean([step["grad_norm"] for step in self._steps])),
      "images_per_second": self._batch_size * (len(self._steps) + (self._skipped or 0)) / seconds,
      **({} if self._skipped is None else {"skipped_steps": float(self._skipped)}),
    }
    return self._last

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
    score = f"{self._task.title} {line[metric]:.3f}  " if metric in line else ""
    return f"loss {line['loss']:.4f}  {score}{line['images_per_second']:.1f} images/s"


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
