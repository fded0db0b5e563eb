"""Training from top to bottom."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.text import Text

from jseg import compilation_cache, hosts, json_files, tasks
from jseg import config as configs
from jseg.arithmetic import cdiv, evenly_spaced
from jseg.checkpoint import Checkpoints
from jseg.config_values import at_least
from jseg.console import CONSOLE
from jseg.data import Dataset, Source
from jseg.groups import describe_groups, read_groups
from jseg.install import versions
from jseg.length import Progress, about_other_length, in_steps
from jseg.log import IN_FLIGHT, LogFn, TrainingLog
from jseg.memory import compile_step, out_of_memory
from jseg.models import Network
from jseg.nn.norm import average_moments
from jseg.optim import frozen_names
from jseg.outputs import is_remote, try_folder
from jseg.profile import Trace
from jseg.remote import working_copy
from jseg.report import save_curves, save_samples, terminal_pictures
from jseg.run import Files, Run, held
from jseg.scaling import about_scaling, as_scaled, fit_scaling
from jseg.sessions import Session
from jseg.state import TrainState, create_train_state, parameter_order, run_keys
from jseg.step import (
  LossFn,
  TrainStep,
  make_moments_step,
  make_train_step,
  meet,
  replicate,
  shard,
)
from jseg.suspects import Suspects
from jseg.types import Array, InputError, Variables
from jseg.weights import find_network, image_kernels, source_variables, transfer
from jseg.weights.class_order import match_classes, reorder_classes

Pictures = Sequence[Sequence[np.ndarray]]
"""Rows of image, truth and prediction, each uint8 [h w 3]."""


def train(
  config: ConfigDict,
  workdir: str | pathlib.Path,
  *,
  model: Network | None = None,
  dataset: Dataset | Source | None = None,
  optimizer: optax.GradientTransformation | None = None,
  losses: LossFn | None = None,
  on_log: LogFn | None = None,
  on_evaluate: LogFn | None = None,
  profile: int = 0,
) -> tasks.Scores | None:
  """Trains, evaluates and saves; goes on where the last checkpoint in `workdir` ends.

  Killed at any moment and started again with the same arguments, it ends with the same parameters
  and the same `metrics.jsonl` (times and memory aside) as if it had never been killed. On SIGTERM
  or Ctrl-C it saves and returns.

  What is given in Python takes the place of what the configuration says of it, and is recorded in
  the run's `config.json` under `given`. Give it again to resume; `evaluate`, `Run.open` and
  `Segmenter.from_run` take `model` too, where it can't be imported by name.

  Args:
    config: a configuration (`jseg.config.default`).
    workdir: the run directory; made if it isn't there. It may be in an object store, as
      "gs://BUCKET/NAME" (`jseg.remote`).
    model: your own network; start the configuration from `jseg.config.default(model)`.
    dataset: your own data set, or a source that it is prepared from (`jseg.data.load`).
    optimizer: your own optax transformation, which has its own rate and decay; `config.optim`'s
      learning rate is then only logged, while its clipping, factors of the rate, groups and frozen
      parts apply.
    losses: your own losses, `(outputs, targets) -> {name: (sum, count)}`, sums over one device's
      part of the batch; they are divided by the counts of the global batch and added up.
    on_log: called with (step, training metrics) whenever they are logged.
    on_evaluate: called with (step, validation metrics) after each evaluation.
    profile: steps to trace, soon after the first, into the run's `profile` folder; 0 is none.

  Returns:
    The metrics of the validation split after the last step; None if it was stopped before.

  Raises:
    InputError: the configuration, the data or the directory can't be used, the loss is no longer
      finite, or a checkpoint can't be written. What was saved before is kept.
  """
  config = configs.record(config, model=model, dataset=dataset, optimizer=optimizer, losses=losses)
  check(config, model, profile)
  use_compilation_cache(config)
  config, dataset, task = prepare(config, model, dataset)
  batches = task.batches(dataset, config.seed)
  init_key, key = run_keys(config.seed)

  with contextlib.ExitStack() as stack:
    if is_remote(workdir):
      hosts.refuse("a run in an object store")
    workdir = stack.enter_context(working_copy(workdir))
    hosts.on_first(lambda: stack.enter_context(held(workdir)))
    before = _planned_steps(workdir, config, model)
    run = Run.start(workdir, config, dataset.classes, model)
    checkpoints = stack.enter_context(contextlib.closing(run.checkpoints(read_only=False)))
    job = Job(run, task, dataset, batches, checkpoints, key)
    start = restore(job, _optimizer_maker(run, optimizer), init_key)
    announce(run, dataset, start.state)
    if start.first >= config.steps or start.progress.is_over(config.patience):
      CONSOLE.print(_already_trained(run, start))
      return task.evaluator(dataset, config.data.eval_split)(start.state.variables())
    announce_start(run, start, before)

    train_step = make_step(job, start, losses)
    suspects = Suspects(run, task, dataset.source(config.data.train_split), key, IN_FLIGHT + 1)
    schedule = configs.make_optimizer(config)[1]
    log = TrainingLog(run, task, start.first, schedule, on_log, suspects.explain)
    validate = Validation(job, stack.enter_context(log), on_evaluate)
    last = train_steps(job, start, train_step, suspects, log, validate, profile)
    if last is None:
      return None
    best = checkpoints.best() if hosts.is_first() else last

  validate.show()
  CONSOLE.print(f"checkpoints: step {last} is the latest, step {best} the best")
  CONSOLE.print(f"pictures: {run.path / 'samples'}, curves: {run.files.curves}")
  return validate.scores


@dataclasses.dataclass(frozen=True)
class Job:
  """What is trained, on what, and where it is kept.

  Attributes:
    run: the run.
    task: task of the run.
    dataset: data set of the run.
    batches: the training batches, an iterator that knows its position.
    checkpoints: checkpoints of the run.
    key: random key of the steps.
  """

  run: Run
  task: tasks.Task
  dataset: Dataset
  batches: grain.DatasetIterator
  checkpoints: Checkpoints
  key: Array


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a session begins.

  Attributes:
    state: a new state, or the latest checkpoint's, on all devices.
    first: number of finished steps.
    progress: progress of the metric that selects the best checkpoint.
    optimizer: the optimizer, which knows what parameters are pretrained.
  """

  state: TrainState
  first: int
  progress: Progress
  optimizer: optax.GradientTransformation


def check(config: ConfigDict, model: Network | None, profile: int) -> None:
  """Checks what can be checked before the data are read, in all processes.

  Args:
    config: the configuration.
    model: the network, where it was given in Python.
    profile: number of steps to trace.

  Raises:
    InputError: processes or devices don't go with the configuration, or a value is impossible.
  """
  hosts.agree(alike(config))
  meet()
  configs.validate(config, model)
  at_least({"profile": profile}, 0)
  check_devices(config)


def prepare(
  config: ConfigDict, model: Network | None, given: Dataset | Source | None
) -> tuple[ConfigDict, Dataset, tasks.Task]:
  """Reads or prepares the data, and makes the task.

  Args:
    config: a valid configuration.
    model: the network, where it was given in Python.
    given: the data set or source, where it was given in Python.

  Returns:
    (the configuration with what depends on the data: scaling and number of steps, the data set,
    the task).

  Raises:
    InputError: the data can't be read, don't go with the network, or differ between processes.
  """
  config, dataset = fit_scaling(config, _as_dataset(given, config))
  config = in_steps(config, len(dataset.source(config.data.train_split)))
  network = model or configs.make_model(config, len(dataset.classes.names))
  task = tasks.create(config, network, dataset.classes)
  task.check_data(dataset)
  hosts.agree({"the data set's fingerprint": dataset.fingerprint})
  return config, dataset, task


def make_step(job: Job, start: Start, losses: LossFn | None) -> TrainStep:
  """Makes the training step.

  Args:
    job: what is trained.
    start: where it begins.
    losses: losses that were given in Python; those of the configuration if None.
  """
  config = job.run.config
  return make_train_step(
    start.optimizer,
    job.task.forward(),
    losses or job.task.losses(job.dataset),
    job.task.counts,
    weights={} if losses else job.task.loss_weights(),
    ema=config.ema,
    freeze=frozen_names(start.state.params, config.optim.freeze, config.optim.groups),
    accumulate=config.accumulate,
    norms=config.log_norms,
  )


def train_steps(
  job: Job,
  start: Start,
  train_step: TrainStep,
  suspects: Suspects,
  log: TrainingLog,
  validate: "Validation",
  profile: int,
) -> int | None:
  """Trains up to the last step, or until it is told to stop; evaluates and saves on the way.

  Args:
    job: what is trained.
    start: where it begins.
    train_step: the training step.
    suspects: keeps the last batches.
    log: the log.
    validate: evaluates a state.
    profile: number of steps to trace.

  Returns:
    The last step; None if it was stopped before.
  """
  run, config, checkpoints = job.run, job.run.config, job.checkpoints
  state, progress = start.state, start.progress
  with contextlib.ExitStack() as stack:
    stopped = stack.enter_context(stop_signal())
    stack.enter_context(hosts.lost_processes())
    stack.enter_context(out_of_memory(config))
    if hosts.stopped_before(start.first):
      CONSOLE.print(f"stopped at step {start.first}. The same command goes on from there")
      return None
    session = stack.enter_context(Session(run, job.dataset.fingerprint, start.first))
    trace = stack.enter_context(Trace(run.files.profile, start.first, profile))
    advance = Stepper(job, start.first, train_step, suspects, log, session, trace)
    for step in range(start.first + 1, config.steps + 1):
      state = advance(state, step)
      last = step == config.steps
      stopping = (stopped.is_set() or checkpoints.preempted(step)) and not last
      evaluating = step % config.eval_every == 0 or last
      saving = step % config.checkpoint_every == 0 or evaluating or stopping
      # A window never spans a checkpoint: a resumed run starts with an empty one.
      if step % config.log_every == 0 or saving:
        log.write_training(step)
      score = None
      if evaluating:
        with session.timing("evaluate"):
          state, score = validate(state, step)
        progress = progress.after(score)
      if saving:
        save(job, session, state, step, progress, score)
      if stopping:
        checkpoints.wait()
        session.end("stopped")
        CONSOLE.print(f"stopped; saved at step {step}. The same command goes on from there")
        return None
      if progress.is_over(config.patience) and not last:
        CONSOLE.print(f"stopped early: {_without_best(progress, run)}")
        session.end("stopped early")
        break
    with session.timing("save"):
      checkpoints.wait()
  return step


class Stepper:
  """Takes training steps one after another: fetches a batch, computes, and logs.

  Args:
    job: what is trained.
    first: number of finished steps.
    train_step: the training step; compiled, and its memory told, before it is first taken.
    suspects: keeps the last batches.
    log: the log.
    session: the session, which takes the time of compiling.
    trace: the trace.
  """

  def __init__(
    self,
    job: Job,
    first: int,
    train_step: TrainStep,
    suspects: Suspects,
    log: TrainingLog,
    session: Session,
    trace: Trace,
  ):
    self._job, self._first, self._step = job, first, train_step
    self._suspects, self._log, self._session, self._trace = suspects, log, session, trace

  def __call__(self, state: TrainState, step: int) -> TrainState:
    """Returns the state after a step; the state before is used up."""
    with self._trace.step(step):
      with self._log.fetching():
        batch = next(self._job.batches)
      self._suspects.add(step, batch)
      with self._session.compiling(step):
        shared = shard(batch, jax.local_device_count())
        if step == self._first + 1:
          CONSOLE.print("  compiling the training step, once (a deep one takes a minute or more)")
          if jax.process_count() == 1:
            self._step, sizes = compile_step(self._step, state, shared, self._job.key)
            CONSOLE.print(f"  {sizes}", highlight=False)
        state, metrics = self._step(state, shared, self._job.key)
      self._trace.ends(step, metrics)
    self._log.add(step, metrics)
    return state


def save(
  job: Job,
  session: Session,
  state: TrainState,
  step: int,
  progress: Progress,
  score: float | None,
) -> None:
  """Begins to save a checkpoint.

  Args:
    job: what is trained.
    session: the session, which takes the time.
    state: the state.
    step: its number of finished steps.
    progress: progress of the metric that selects the best checkpoint.
    score: that metric at this step; None if it wasn't evaluated.

  Raises:
    InputError: this checkpoint, or the one before, can't be written.
  """
  position = {
    "iterator": job.batches.get_state(),
    "fingerprint": job.dataset.fingerprint,
    "progress": dataclasses.asdict(progress),
  }
  with session.timing("save"):
    job.checkpoints.save(state, position, score)
  session.save(step)


def _as_dataset(given: Dataset | Source | None, config: ConfigDict) -> Dataset:
  """The data set that was given, or the configuration's; a source is prepared."""
  if isinstance(given, Dataset):
    return as_scaled(config, given)
  # Processes that share a folder of prepared sets must not prepare one set twice.
  return hosts.first_then_others(lambda: configs.load_dataset(config, given))


def alike(config: ConfigDict) -> dict[str, object]:
  """What must be the same in all processes of a run: the versions and the configuration.

  Places of files may differ, and whatever doesn't change when a process comes to wait for others.
  """
  own = {"data.root", "data.data_dir", "data.threads", "compilation_cache", "init_from"}
  names = ("jseg", "jax", "jaxlib", "flax", "optax")
  found = versions()
  # Of our own version, not where it lies.
  facts: dict[str, object] = {name: found[name].partition(",")[0] for name in names}
  return facts | {k: v for k, v in sorted(configs.flatten(config)) if k not in own}


def _planned_steps(workdir: str | pathlib.Path, config: ConfigDict, model: Network | None) -> int:
  """Steps that the run in a directory was to have so far; the configuration's if there is none."""
  path = pathlib.Path(workdir).expanduser()
  return Run.open(path, model=model).config.steps if Files(path).config.exists() else config.steps


def _without_best(progress: Progress, run: Run) -> str:
  return (
    f"{progress.since} evaluations without a better {run.best_metric} than {progress.best} "
    f"(patience {run.config.patience})"
  )


def check_devices(config: ConfigDict) -> None:
  """Raises InputError if the batch can't be spread over the devices, and there over its parts."""
  devices, size = jax.device_count(), config.data.batch_size
  shares = devices * config.accumulate
  if size % shares:
    what = f"{devices} devices" + (f" x {config.accumulate} parts" * (config.accumulate > 1))
    raise InputError(
      f"data.batch_size: {size} must be a multiple of the {what}; use {cdiv(size, shares) * shares}"
    )


def use_compilation_cache(config: ConfigDict) -> None:
  """Enables JAX's persistent compilation cache unless one is configured, or it can't be written."""
  if config.compilation_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    try:
      folder = pathlib.Path(config.compilation_cache).expanduser()
      try_folder(folder, "set JAX_COMPILATION_CACHE_DIR, or --config.compilation_cache")
    except (InputError, RuntimeError) as error:  # there is no home directory
      CONSOLE.print(f"compiled programs are not kept: {error}", style="yellow", soft_wrap=True)
      return
    compilation_cache.sweep(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _optimizer_maker(
  run: Run, given: optax.GradientTransformation | None
) -> Callable[[Sequence[str]], optax.GradientTransformation]:
  """Makes the optimizer once it is known which parameters are pretrained."""
  config = run.config
  shape = (*config.data.size, config.data.channels)
  order = parameter_order(run.model, shape) if config.optim.layer_decay != 1 else ()
  return lambda taken: configs.make_optimizer(config, taken, order, given)[0]


def restore(
  job: Job,
  make_optimizer: Callable[[Sequence[str]], optax.GradientTransformation],
  key: Array,
) -> Start:
  """Restores the latest checkpoint, or makes a new state where there is none.

  Args:
    job: what is trained; its batches are put where the checkpoint was in the data.
    make_optimizer: makes the optimizer, given the names of pretrained parameters.
    key: random key of the initialization.

  Raises:
    InputError: the data set has changed, or a checkpoint or `init_from` can't be used.
  """
  run, config, progress = job.run, job.run.config, Progress()
  shape = (*config.data.size, config.data.channels)
  create = functools.partial(
    create_train_state, run.model, make_optimizer([]), image_shape=shape, ema=config.ema > 0
  )
  taken: Sequence[str] = []
  if job.checkpoints.latest() is None:
    state = create(key)
    if config.init_from:
      state, taken = initialize(state, config.init_from, run)
  else:
    # Shapes will do, which take no program to compile and no memory.
    state, position = job.checkpoints.restore(jax.eval_shape(create, key))
    if position["fingerprint"] != job.dataset.fingerprint:
      raise InputError(
        f"the data set has changed since the run in {run.path} began; name another --workdir to "
        "train on what it is now, or put back what it was to resume"
      )
    job.batches.set_state(position["iterator"])
    taken = run.pretrained() if config.init_from else []
    progress = Progress.read(position)
  state = hosts.from_first(state)
  return Start(replicate(state), int(state.step), progress, make_optimizer(taken))


def initialize(state: TrainState, path: str, run: Run) -> tuple[TrainState, Sequence[str]]:
  """Takes parameters from another run or from a file of weights, and reports on each.

  The report is written to `init.json`, where a resumed run finds it.

  Args:
    state: a new state.
    path: a run directory, or a file that `jseg.weights` can read.
    run: the run.

  Returns:
    (the state, names of the parameters that were taken).

  Raises:
    InputError: it can't be read, or nothing in it fits.
  """
  unused: list[str] = []
  if is_remote(path) or pathlib.Path(path).expanduser().is_dir():
    source, what = _variables_of_run(path, run)
  else:
    found = find_network(path)
    source, unused = source_variables(found.tensors, found.source, path)
    unused, what = [*unused, *found.left], found.source.description
  shape = (*run.config.data.size, run.config.data.channels)
  variables, report = transfer(
    {"params": state.params, "batch_stats": state.batch_stats},
    source,
    path,
    functools.partial(image_kernels, run.model, shape),
  )
  report = dataclasses.replace(report, unused=[*report.unused, *unused])
  CONSOLE.print(f"initialized from {path} ({what}): {report}", highlight=False)
  if hosts.is_first():
    json_files.write(run.files.init, dataclasses.asdict(report))
  params = variables["params"]
  ema = jax.tree.map(jnp.copy, params) if run.config.ema else state.ema
  return dataclasses.replace(state, ema=ema, **variables), report.taken


def _variables_of_run(path: str, run: Run) -> tuple[Variables, str]:
  """Variables of another run, its heads in the order of this run's classes, and what was done."""
  other = Run.open(path)
  variables = other.restore()[1]
  names, ours = other.classes.names, run.classes.names
  if names == ours or len(names) != len(ours):
    return variables, "a run"
  order = match_classes(names, ours)
  shape = (1, *other.config.data.size, other.config.data.channels)
  network = configs.make_model(other.config, len(names) + 1)
  wider = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(shape)))
  taken = [(names[i], name) for i, name in zip(order, ours, strict=True) if names[i] != name]
  new = "".join(f"; {name!r} begins as what was {old!r}" for old, name in taken)
  what = f"a run; its classes are {', '.join(names)}, matched by name{new}"
  return reorder_classes(variables, wider, order), what


def announce(run: Run, dataset: Dataset, state: TrainState) -> None:
  """Prints what is about to be trained."""
  config = run.config
  parameters = sum(p.size for p in jax.tree.leaves(state.params))
  splits = (config.data.train_split, config.data.eval_split)
  sizes = [len(dataset.source(split)) for split in splits]
  about = (
    f", {parameters:,} parameters, on {config.data.name}: "
    f"{sizes[0]:,} training and {sizes[1]:,} validation images, {len(run.classes.names)} classes; "
    f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
  )
  CONSOLE.print(Text.assemble((config.model.name, "bold"), about))
  for line in about_scaling(config, dataset):
    CONSOLE.print(f"  {line}", highlight=False, markup=False)
  if config.accumulate > 1:
    part = config.data.batch_size // (jax.device_count() * config.accumulate)
    CONSOLE.print(f"  {config.accumulate} parts a step, of {part} image(s) a device{_caveats(run)}")
  if config.optim.groups:
    for line in describe_groups(state.params, read_groups(config.optim.groups)):
      CONSOLE.print(f"  {line}", highlight=False, markup=False)


def _caveats(run: Run) -> str:
  """What isn't as in the whole batch when a step is made of parts."""
  config = run.config
  norms = {value for key, value in config.model.items() if "norm" in key}
  per_part = ["batch norm's statistics"] if norms & {"batch", "local_batch"} else []
  if "loss" in config and "ohem" in config.loss.get("name", "") and config.loss.hardest:
    per_part.append("the hardest pixels of ohem")
  return f"; {' and '.join(per_part)} are those of a part, not of the batch" if per_part else ""


def announce_start(run: Run, start: Start, before: int) -> None:
  """Prints where a session begins, and what another number of steps changes.

  Args:
    run: the run.
    start: where it begins.
    before: number of steps that the run was to have so far.
  """
  first, config = start.first, run.config
  CONSOLE.print(f"{f'resuming at step {first}' if first else 'starting'} in {run.path}")
  if first and before != config.steps:
    CONSOLE.print(about_other_length(config, before, first), highlight=False)


def _already_trained(run: Run, start: Start) -> str:
  config, early = run.config, start.first < run.config.steps
  why = f", {_without_best(start.progress, run)}" if early else ""
  key = "patience" if early else "epochs" if config.epochs else "steps"
  return (
    f"already trained for {start.first} steps{why}; to train anew, name another --workdir; to go "
    f"on, raise --config.{key}"
  )


class Validation:
  """Evaluates during training: metrics, files, and sample pictures.

  Attributes:
    scores: metrics of the last evaluation.

  Args:
    job: what is trained.
    log: the log.
    on_evaluate: called with (step, validation metrics) after each evaluation.
  """

  def __init__(self, job: Job, log: TrainingLog, on_evaluate: LogFn | None):
    self.scores: tasks.Scores | None = None
    self._step = 0
    self._run, self._task, self._dataset, self._key = job.run, job.task, job.dataset, job.key
    self._log, self._on_evaluate = log, on_evaluate
    self._split = job.run.config.data.eval_split
    self._evaluate = job.task.evaluator(job.dataset, self._split)
    self._predict = job.task.predictor()
    self._moments = make_moments_step(job.task.forward(), job.run.config.accumulate)
    self._pictures: Pictures = ()

  def __call__(self, state: TrainState, step: int) -> tuple[TrainState, float]:
    """Evaluates the state, writes the files, and returns (state, the metric that counts).

    The state has recomputed statistics if `precise_bn_batches` asks for them.
    """
    started = time.perf_counter()
    if self._run.config.precise_bn_batches and jax.tree.leaves(state.batch_stats):
      state = dataclasses.replace(state, batch_stats=self._statistics(state))
    self.scores = self._evaluate(state.variables())
    summary = {**self.scores.summary(), "seconds": time.perf_counter() - started}
    self._log.write_validation(step, summary)
    score = summary[self._run.best_metric]
    title = self._run.config.best_metric or self._task.title
    CONSOLE.print(f"step {step}: validation {title} {score:.4f}")
    self._step = step
    if hosts.is_first():
      self._run.save_evaluation(self.scores, self._dataset, self._split, step)
      # One device draws the pictures: elsewhere the copies stay idle.
      self._draw(jax.tree.map(lambda x: x.addressable_data(0), state.variables()), step)
      files = self._run.files
      pictures = {"samples": files.sample(step), "confusion": files.confusion(self._split)}
      self._log.write_pictures(step, pictures)
    if self._on_evaluate is not None:
      self._on_evaluate(step, summary)
    return state, score

  def _statistics(self, state: TrainState) -> Variables:
    """Running statistics of the norms over the first `precise_bn_batches` training batches."""
    config, local = self._run.config, jax.local_device_count()
    # The same batches every time, so that a resumed run has the same statistics.
    batches = self._task.batches(self._dataset, config.seed + 1)
    # Keys of steps that no run reaches.
    steps = [2**31 - 1 - i for i in range(config.precise_bn_batches)]
    keys = [jax.random.fold_in(self._key, step) for step in steps]
    moments = [self._moments(state, shard(next(batches), local), key) for key in keys]
    return {**state.batch_stats, **average_moments(moments)}

  def _draw(self, variables: Variables, step: int) -> None:
    """Draws curves and sample pictures."""
    run, task = self._run, self._task
    save_curves(run.files.metrics, run.files.curves, task.metric, task.title)
    source = self._dataset.source(self._split)
    rows = []
    for index in evenly_spaced(run.config.samples, len(source)):
      example = source.open(index)
      rows.append(task.pictures(self._predict(variables, example["image"]), example))
    self._pictures = rows
    if rows:
      save_samples(rows, task.legend(), run.files.sample(step), f"step {step}")

  def show(self) -> None:
    """Prints the last pictures, where the terminal has colors, and the table of metrics."""
    if self._pictures and CONSOLE.is_terminal and CONSOLE.color_system in ("256", "truecolor"):
      CONSOLE.print("image, truth, prediction:")
      CONSOLE.print(terminal_pictures(self._pictures[:3], min(CONSOLE.width, 120)))
    if self.scores is not None:
      title = f"{self._split}, step {self._step}"
      CONSOLE.print(self.scores.table(self._run.classes.names, title))


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
  """An event that SIGTERM or Ctrl-C sets, so that the loop ends after a whole step.

  Of a run of several processes see `Checkpoints.preempted`.
  """
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event  # only the main thread may handle signals
    return
  handlers: dict[int, Callable[..., object]] = {
    number: lambda *_: event.set() for number in (signal.SIGTERM, signal.SIGINT)
  }
  if jax.process_count() > 1:
    # All must stop after the same step. JAX listens to SIGTERM and lets them agree on it.
    handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
  previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  try:
    yield event
  finally:
    for number, old in previous.items():
      signal.signal(number, old)
