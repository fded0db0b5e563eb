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
from typing import Any

import grain
import jax
import jax.numpy as jnp
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
from jseg.outputs import try_folder
from jseg.profile import Trace
from jseg.report import save_curves, save_samples, terminal_pictures
from jseg.run import Files, Run, held
from jseg.scaling import about_scaling, as_scaled, fit_scaling
from jseg.sessions import Session
from jseg.state import TrainState, create_train_state, parameter_order, run_keys
from jseg.step import make_moments_step, make_train_step, meet, replicate, shard
from jseg.suspects import Suspects
from jseg.tasks.base import LossFn
from jseg.types import Array, InputError, Variables
from jseg.weights import find_network, image_kernels, source_variables, transfer
from jseg.weights.class_order import match_classes, reorder_classes

Pictures = Sequence[Sequence[Any]]
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
    workdir: the run directory; made if it isn't there.
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
  hosts.agree(alike(config))
  meet()
  configs.validate(config, model)
  at_least({"profile": profile}, 0)
  check_devices(config)
  use_compilation_cache(config)

  # Data and network.
  config, dataset = fit_scaling(config, _as_dataset(dataset, config))
  config = in_steps(config, len(dataset.source(config.data.train_split)))
  network = model or configs.make_model(config, len(dataset.classes.names))
  task = tasks.create(config, network, dataset.classes)
  task.check_data(dataset)
  hosts.agree({"the data set's fingerprint": dataset.fingerprint})
  batches = task.batches(dataset, config.seed)
  init_key, key = run_keys(config.seed)

  with contextlib.ExitStack() as stack:
    hosts.on_first(lambda: stack.enter_context(held(workdir)))
    before = _planned_steps(workdir, config, model)
    run = Run.start(workdir, config, dataset.classes, model)

    # State: a new one, or the last checkpoint's.
    checkpoints = stack.enter_context(contextlib.closing(run.checkpoints(read_only=False)))
    make_optimizer = _optimizer_maker(run, optimizer)
    state, taken, progress = restore(
      run, checkpoints, batches, dataset, make_optimizer([]), init_key
    )
    state, first = replicate(hosts.from_first(state)), int(state.step)
    announce(run, dataset, state)
    if first >= config.steps or progress.is_over(config.patience):
      early = f", {_without_best(progress, run)}" if first < config.steps else ""
      CONSOLE.print(
        f"already trained for {first} steps{early}; to train anew, name another --workdir; to go "
        f"on, raise --config.{'patience' if early else 'epochs' if config.epochs else 'steps'}"
      )
      return task.evaluator(dataset, config.data.eval_split)(state.variables())
    CONSOLE.print(f"{f'resuming at step {first}' if first else 'starting'} in {run.path}")
    if first and before != config.steps:
      CONSOLE.print(about_other_length(config, before, first), highlight=False)

    # Steps and log.
    train_step = make_train_step(
      make_optimizer(taken),
      task.forward(),
      losses or task.losses(dataset),
      task.counts,
      weights={} if losses else task.loss_weights(),
      ema=config.ema,
      freeze=frozen_names(state.params, config.optim.freeze, config.optim.groups),
      accumulate=config.accumulate,
      norms=config.log_norms,
    )
    schedule = configs.make_optimizer(config)[1]
    suspects = Suspects(run, task, dataset.source(config.data.train_split), key, IN_FLIGHT + 1)
    explain = suspects.explain
    log = stack.enter_context(TrainingLog(run, task, first, schedule, on_log, explain))
    validate = Validation(run, task, dataset, key, log, on_evaluate)
    stopped = stack.enter_context(stop_signal())
    stack.enter_context(hosts.lost_processes())
    stack.enter_context(out_of_memory(config))

    # Train.
    if hosts.stopped_before(first):
      CONSOLE.print(f"stopped at step {first}. The same command goes on from there")
      return None
    session = stack.enter_context(Session(run, dataset.fingerprint, first))
    trace = stack.enter_context(Trace(run.files.profile, first, profile))
    for step in range(first + 1, config.steps + 1):
      with trace.step(step):
        with log.fetching():
          batch = next(batches)
        suspects.add(step, batch)
        with session.compiling(step):
          shared = shard(batch, jax.local_device_count())
          if step == first + 1 and jax.process_count() == 1:
            train_step, sizes = compile_step(train_step, state, shared, key)
            CONSOLE.print(f"  {sizes}", highlight=False)
          state, metrics = train_step(state, shared, key)
        trace.ends(step, metrics)
      log.add(step, metrics)

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
        position = {
          "iterator": batches.get_state(),
          "fingerprint": dataset.fingerprint,
          "progress": dataclasses.asdict(progress),
        }
        with session.timing("save"):
          checkpoints.save(state, position, score)
        session.save(step)
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
    best = checkpoints.best()

  validate.show()
  CONSOLE.print(f"checkpoints: step {step} is the latest, step {best} the best")
  CONSOLE.print(f"pictures: {run.path / 'samples'}, curves: {run.files.curves}")
  return validate.scores


def _as_dataset(given: Dataset | Source | None, config: ConfigDict) -> Dataset:
  """The data set that was given, or the configuration's; a source is prepared."""
  if isinstance(given, Dataset):
    return as_scaled(config, given)
  # Processes that share a folder of prepared sets must not prepare one set twice.
  return hosts.first_then_others(lambda: configs.load_dataset(config, given))


def alike(config: ConfigDict) -> dict[str, Any]:
  """What must be the same in all processes of a run: the versions and the configuration.

  Places of files may differ, and whatever doesn't change when a process comes to wait for others.
  """
  own = {"data.root", "data.data_dir", "data.threads", "compilation_cache", "init_from"}
  names = ("jseg", "jax", "jaxlib", "flax", "optax")
  found = versions()
  # Of our own version, not where it lies.
  facts: dict[str, Any] = {name: found[name].partition(",")[0] for name in names}
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
  run: Run,
  checkpoints: Checkpoints,
  batches: grain.DatasetIterator,
  dataset: Dataset,
  optimizer: optax.GradientTransformation,
  key: Array,
) -> tuple[TrainState, Sequence[str], Progress]:
  """The state to begin with: the latest checkpoint's, or a new one.

  Args:
    run: the run.
    checkpoints: the run's checkpoints.
    batches: the training batches; put where the checkpoint was in the data.
    dataset: the data set, which must be what it was.
    optimizer: the optimizer.
    key: random key of the initialization.

  Returns:
    (state, names of the parameters that `init_from` filled, progress of the best metric).

  Raises:
    InputError: the data set has changed, or a checkpoint or `init_from` can't be used.
  """
  config = run.config
  shape = (*config.data.size, config.data.channels)
  state = create_train_state(run.model, optimizer, key, shape, ema=config.ema > 0)
  if checkpoints.latest() is None:
    taken: Sequence[str] = []
    if config.init_from:
      state, taken = initialize(state, config.init_from, run)
    return state, taken, Progress()
  state, position = checkpoints.restore(state)
  if position["fingerprint"] != dataset.fingerprint:
    raise InputError(
      f"the data set has changed since the run in {run.path} began; name another --workdir to "
      "train on what it is now, or put back what it was to resume"
    )
  batches.set_state(position["iterator"])
  taken = run.pretrained() if config.init_from else []
  return state, taken, Progress.read(position)


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
  if pathlib.Path(path).expanduser().is_dir():
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
  if config.remat != "none" and jax.default_backend() == "cpu":
    CONSOLE.print(
      "  remat: saves no memory on CPUs, where XLA merges what is computed again with what is there"
    )
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


class Validation:
  """Evaluates during training: metrics, files, and sample pictures.

  Attributes:
    scores: metrics of the last evaluation.

  Args:
    run: the run.
    task: task of the run.
    dataset: data set of the run.
    key: the run's random key, for the batches of recomputed statistics.
    log: the log.
    on_evaluate: called with (step, validation metrics) after each evaluation.
  """

  def __init__(
    self,
    run: Run,
    task: tasks.Task,
    dataset: Dataset,
    key: Array,
    log: TrainingLog,
    on_evaluate: LogFn | None,
  ):
    self.scores: tasks.Scores | None = None
    self._step = 0
    self._run, self._task, self._dataset, self._key = run, task, dataset, key
    self._log, self._on_evaluate = log, on_evaluate
    self._split = run.config.data.eval_split
    self._evaluate = task.evaluator(dataset, self._split)
    self._predict = task.predictor()
    self._moments = make_moments_step(task.forward(), run.config.accumulate)
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
      example = source[index]
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
