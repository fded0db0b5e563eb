"""Training from top to bottom."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jseg import config as configs
from jseg import data, tasks
from jseg.checkpoint import CONFIG_FILE, Checkpoints, load_model, load_run, save_run
from jseg.evaluate import save_evaluation
from jseg.imports import IMPORT_FILE
from jseg.report import CONSOLE, save_curves
from jseg.state import TrainState, create_train_state
from jseg.step import average_moments, replicate, shard
from jseg.tasks import Task
from jseg.types import Array, InputError
from jseg.weights import foreign_variables, read_tensors, transfer

METRICS_FILE = "metrics.jsonl"
INIT_FILE = "init.json"  # what became of every parameter that `init_from` had
_IN_FLIGHT = 2  # steps the host may be ahead of the device


def train(config: Any, workdir: str | pathlib.Path) -> Any:
  """Trains, evaluates and saves; goes on where the last checkpoint in `workdir` ends.

  Killed at any moment and started again with the same arguments, it ends with the same parameters
  and the same `metrics.jsonl` (timings aside) as if it had never been killed. On SIGTERM or Ctrl-C
  it saves and returns.

  Args:
    config: a configuration (see `jseg.config`).
    workdir: the run directory; made if it isn't there.

  Returns:
    The measures of the validation split after the last step (`Scores` of a network of pixels); None
    if it was stopped before.

  Raises:
    InputError: the configuration, the data or the directory can't be used, the loss is no longer
      finite, or a checkpoint can't be written. What was saved before is kept.
  """
  configs.validate(config)
  workdir = pathlib.Path(workdir).expanduser()
  devices, local = jax.device_count(), jax.local_device_count()
  if config.data.batch_size % devices:
    raise InputError(
      f"data.batch_size: {config.data.batch_size} must be a multiple of the {devices} devices; "
      f"use {-(-config.data.batch_size // devices) * devices}"
    )
  use_compilation_cache(config)

  # Data.
  dataset = configs.load_dataset(config)
  names = dataset.classes.names
  task = tasks.create(config, dataset)
  task.check_fit()
  open_run(workdir, config, dataset.classes)
  sizes = [len(dataset.source(s)) for s in (config.data.train_split, config.data.eval_split)]
  iterator = task.batches(config.seed)

  # Model and optimizer.
  model = configs.make_model(config, len(names))
  optimizer, schedule = configs.make_optimizer(config)
  key = jax.random.key(config.seed)
  init_key, step_key = jax.random.split(key)
  shape = (*config.data.size, config.data.channels)
  state = create_train_state(model, optimizer, init_key, shape, ema=config.ema > 0)
  evaluate = task.make_evaluator(model, config.data.eval_split)
  samples = task.make_samples(model, config.data.eval_split)

  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      contextlib.closing(Checkpoints(workdir, keep=config.keep, metric=task.measure))
    )
    if checkpoints.latest() is not None:
      state, position = checkpoints.restore(state)
      if position["fingerprint"] != dataset.fingerprint:
        raise InputError(
          f"the data set has changed since the run in {workdir} began; name another --workdir to "
          "train on what it is now, or put back what it was to resume"
        )
      iterator.set_state(position["iterator"])
      taken = pretrained(workdir) if config.init_from else []
    elif config.init_from:
      state, taken = initialise(state, config.init_from, workdir)
    else:
      taken = []
    first = int(state.step)
    if taken:
      optimizer, _ = configs.make_optimizer(config, taken)
    train_step = task.make_train_step(model, optimizer)
    moments_step = task.make_moments_step(model)
    state = replicate(state)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    CONSOLE.print(
      f"[bold]{config.model.name}[/bold], {parameters:,} parameters, on {config.data.name}: "
      f"{sizes[0]:,} training and {sizes[1]:,} validation images, "
      f"{len(names)} classes; {devices} {jax.devices()[0].platform} device(s)"
    )
    if first >= config.steps:
      CONSOLE.print(f"already trained for {first} steps; to train anew, name another --workdir")
      return evaluate(state.variables())
    CONSOLE.print(f"{'resuming at step ' + str(first) if first else 'starting'} in {workdir}")
    writer = stack.enter_context(contextlib.closing(MetricWriter(workdir, first)))
    stopped = stack.enter_context(stop_signal())
    bar = stack.enter_context(progress_bar())

    # Train.
    scores = None
    rows: Sequence[Any] = ()
    window = Window(task, config.data.batch_size)
    progress = bar.add_task("training", total=config.steps, completed=first, status="compiling")
    for step in range(first + 1, config.steps + 1):
      window.begin()
      batch = next(iterator)
      state, metrics = train_step(state, shard(batch, local), step_key)
      window.add(step, metrics)
      bar.update(progress, completed=step, status=window.status())

      last = step == config.steps
      stop = (stopped.is_set() or checkpoints.preempted(step)) and not last
      evaluating = step % config.eval_every == 0 or last
      saving = step % config.checkpoint_every == 0 or evaluating or stop
      # A window never spans a checkpoint: a resumed run starts with an empty one.
      if step % config.log_every == 0 or saving:
        line = window.flush()
        writer.write(step, config.data.train_split, {**line, "lr": float(schedule(step - 1))})
        if not CONSOLE.is_interactive:
          CONSOLE.print(f"step {step}/{config.steps}  {window.status()}")
      if evaluating:
        started = time.perf_counter()
        if config.precise_bn_batches and state.batch_stats:
          # The same batches every time, so that a resumed run has the same statistics.
          again = task.batches(config.seed + 1)
          stats = recompute_statistics(moments_step, state, again, step_key, config)
          state = dataclasses.replace(state, batch_stats=stats)
        scores = evaluate(state.variables())
        line = task.log_line(scores)
        seconds = time.perf_counter() - started
        writer.write(step, config.data.eval_split, {**line, "seconds": seconds})
        CONSOLE.print(f"step {step}: validation {task.title} {line[task.measure]:.4f}")
        if jax.process_index() == 0:
          save_evaluation(workdir, task, scores, split=config.data.eval_split, step=step)
          save_curves(workdir / METRICS_FILE, workdir / "curves.png", task.measure, task.title)
          # One device does it: elsewhere the copies stay idle.
          rows = samples(jax.tree.map(lambda x: x.addressable_data(0), state.variables()))
          draw_samples(workdir, task, rows, step)
      if saving:
        position = {"iterator": iterator.get_state(), "fingerprint": dataset.fingerprint}
        checkpoints.save(state, position, line[task.measure] if evaluating else None)
      if stop:
        checkpoints.wait()
        CONSOLE.print(f"stopped; saved at step {step}. The same command goes on from there")
        return None
    checkpoints.wait()
    best = checkpoints.best()

  assert scores is not None, "the last step evaluates"
  if rows and CONSOLE.is_terminal and CONSOLE.color_system in ("256", "truecolor"):
    CONSOLE.print("image, truth, prediction:")
    CONSOLE.print(task.show_samples(rows[:3], min(CONSOLE.width, 120)))
  CONSOLE.print(task.table(scores, f"{config.data.eval_split}, step {config.steps}"))
  CONSOLE.print(f"checkpoints: step {config.steps} is the latest, step {best} the best")
  CONSOLE.print(f"pictures: {workdir / 'samples'}, curves: {workdir / 'curves.png'}")
  return scores


def initialise(
  state: TrainState, path: str, workdir: pathlib.Path
) -> tuple[TrainState, Sequence[str]]:
  """Takes parameters from another run or from a file of weights, and says what became of each.

  The same is written to `init.json`, where a resumed run finds it.

  Returns:
    (the state, names of the parameters that were taken).

  Raises:
    InputError: it can't be read, or nothing in it fits.
  """
  if pathlib.Path(path).expanduser().is_dir():
    source, what = load_model(path)[1], "a run"
    unused: list[str] = []
  else:
    source, unused, what = foreign_variables(read_tensors(path), path)
  variables, report = transfer(
    {"params": state.params, "batch_stats": state.batch_stats}, source, path
  )
  report = dataclasses.replace(report, unused=[*report.unused, *unused])
  CONSOLE.print(f"initialised from {path} ({what}): {report}", highlight=False)
  if jax.process_index() == 0:
    (workdir / INIT_FILE).write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
  params = variables["params"]
  ema = jax.tree.map(jnp.copy, params) if state.ema else state.ema
  return dataclasses.replace(state, ema=ema, **variables), report.taken


def pretrained(workdir: pathlib.Path) -> Sequence[str]:
  """Names of the parameters that `initialise` took when the run began.

  Raises:
    InputError: the run's record of it is gone.
  """
  try:
    return json.loads((workdir / INIT_FILE).read_text())["taken"]
  except (OSError, ValueError, KeyError) as error:
    raise InputError(
      f"{workdir / INIT_FILE}, which tells new parameters from others, can't be read ({error}); "
      "start anew in another --workdir"
    ) from None


def recompute_statistics(
  step: Any, state: TrainState, batches: Any, key: Array, config: Any
) -> Any:
  """Running statistics of the norms over the first `precise_bn_batches` training batches."""
  local = jax.local_device_count()
  # Keys of steps that no run reaches.
  keys = [jax.random.fold_in(key, 2**31 - 1 - i) for i in range(config.precise_bn_batches)]
  moments = [step(state, shard(next(batches), local), key) for key in keys]
  return {**state.batch_stats, **average_moments(moments)}


def use_compilation_cache(config: Any) -> None:
  """Keeps compiled programs for the next start, unless JAX has been told where to already."""
  if config.compilation_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = pathlib.Path(config.compilation_cache).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def open_run(workdir: pathlib.Path, config: Any, classes: data.ClassInfo) -> None:
  """Makes the run directory, or checks that the run in it is this one.

  Raises:
    InputError: another run is there, or it can't be written.
  """
  if (workdir / IMPORT_FILE).exists():
    raise InputError(
      f"{workdir} holds imported weights and no training; to train from them, name another "
      f"--workdir and add --config.init_from={workdir}"
    )
  if (workdir / CONFIG_FILE).exists():
    old, old_classes = load_run(workdir)
    changed = configs.differences(old, config)
    if old_classes.names != classes.names:
      changed.append(f"classes: were {old_classes.names}, are {classes.names}")
    if changed:
      raise InputError(
        f"{workdir} holds a run with another configuration ({'; '.join(changed)}); "
        "name another --workdir, or start with the old values to resume it"
      )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      save_run(workdir, config, classes)
  except OSError as error:
    raise InputError(
      f"{workdir} can't be written ({error.strerror}); name another --workdir"
    ) from None


class Window:
  """Training metrics since the last line of the log.

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
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
      raise InputError(
        f"the loss became {loss} at step {step}; training stops, earlier checkpoints are kept. "
        "A lower optim.lr, optim.clip_norm=1.0 or a longer optim.warmup_steps usually helps"
      )
    own = {name: metrics.pop(name) for name in ("loss", "terms", "grad_norm", "valid")}
    self._steps.append(own)
    for name, counts in metrics.items():
      self._counts[name] = self._counts.get(name, 0) + counts.astype(np.int64)

  def _line(self) -> dict[str, float]:
    if not self._steps or self._started is None:
      return self._last
    seconds = time.perf_counter() - self._started
    terms = [step["terms"] for step in self._steps]
    self._last = {
      "loss": _mean([(step["loss"], step["valid"]) for step in self._steps]),
      **({name: _mean([t[name] for t in terms]) for name in terms[0]} if len(terms[0]) > 1 else {}),
      **self._task.training_measures(self._counts),
      "grad_norm": float(np.mean([step["grad_norm"] for step in self._steps])),
      "images_per_second": self._batch_size * len(self._steps) / seconds,
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
    """One line for the progress bar."""
    line = self._line()
    if not line:
      return "compiling"
    score = (
      f"{self._task.title} {line[self._task.measure]:.3f}  " if self._task.measure in line else ""
    )
    return f"loss {line['loss']:.4f}  {score}{line['images_per_second']:.1f} images/s"


def _mean(pairs: Sequence[tuple[Any, Any]]) -> float:
  """Of means with their counts: the mean over the window's pixels, not over its steps."""
  means, counts = np.asarray(pairs, np.float64).T
  return float((means * counts).sum() / max(counts.sum(), 1.0))


class MetricWriter:
  """Writes measures to `metrics.jsonl` and to TensorBoard events; process 0 only.

  Args:
    workdir: the run directory.
    step: finished steps. Lines of later steps come from a run that was killed after its last
      checkpoint; they are taken out and will be written again.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    path = workdir / METRICS_FILE
    keep = [line for line in _lines(path) if json.loads(line)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(keep))
    temporary.replace(path)
    self._file = path.open("a")
    self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, split: str, values: dict[str, Any]) -> None:
    """Writes one line."""
    if not self._writes:
      return
    plain = {k: None if math.isnan(v) else v for k, v in values.items()}
    self._file.write(json.dumps({"step": step, "split": split, **plain}) + "\n")
    self._file.flush()
    for key, value in values.items():
      self._events.add_scalar(f"{split}/{key}", value, step)

  def close(self) -> None:
    """Writes what is still held back."""
    if self._writes:
      self._file.close()
      self._events.close()


def _lines(path: pathlib.Path) -> list[str]:
  # A line without its end was being written when the run was killed.
  text = path.read_text() if path.exists() else ""
  return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def draw_samples(workdir: pathlib.Path, task: Task, rows: Sequence[Any], step: int) -> None:
  """Writes `samples/STEP.png`."""
  if rows:
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    task.save_samples(rows, folder / f"{step:07d}.png", f"step {step}")


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
  """An event that SIGTERM or Ctrl-C sets, so that the loop ends after a whole step."""
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event  # only the main thread may handle signals
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  previous = {number: signal.signal(number, lambda *_: event.set()) for number in numbers}
  try:
    yield event
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
  """A bar with step, loss, mIoU, images/s and ETA."""
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
