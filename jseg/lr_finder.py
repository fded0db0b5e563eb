"""A range test of the learning rate (Smith 2017, arXiv:1506.01186, section 3.3)."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jseg import config as configs
from jseg import json_files, tasks
from jseg.console import progress
from jseg.data import Dataset
from jseg.loop import check_devices, initialize
from jseg.optim import frozen_names
from jseg.outputs import try_folder
from jseg.report.plots import save_rate_plot
from jseg.run import Run
from jseg.state import create_train_state, parameter_order, run_keys
from jseg.step import make_train_step, replicate, shard
from jseg.types import InputError

_MEMORY = 0.9  # share of the old average that a step keeps
_BLOWN_UP = 4.0  # times the lowest average, at which there is nothing more to learn


@dataclasses.dataclass(frozen=True)
class RateCurve:
  """The loss of steps whose learning rate rises from one to the next.

  Attributes:
    rates: learning rate of each step.
    losses: loss of each step's batch, before its update.
    averages: moving averages of the losses.
  """

  rates: Sequence[float]
  losses: Sequence[float]
  averages: Sequence[float]

  @property
  def lowest(self) -> float:
    """Rate at which the average is lowest; from there on the loss rises."""
    return self.rates[int(np.argmin(self.averages))]

  @property
  def suggestion(self) -> float:
    """A tenth of `lowest`: the usual choice of a highest rate."""
    return self.lowest / 10


def make_curve(rates: Sequence[float], losses: Sequence[float]) -> RateCurve:
  """Averages losses, and leaves out those after the loss has blown up.

  Args:
    rates: learning rate of each step.
    losses: loss of each step, which may not be finite at the end.

  Raises:
    InputError: the loss blew up before anything could be seen.
  """
  averages: list[float] = []
  total, lowest = 0.0, math.inf
  for loss in losses:
    total = _MEMORY * total + (1 - _MEMORY) * loss
    average = total / (1 - _MEMORY ** (len(averages) + 1))
    if not math.isfinite(loss) or average > _BLOWN_UP * lowest:
      break
    lowest = min(lowest, average)
    averages.append(average)
  count = len(averages)
  if count < 3:
    raise InputError(f"the loss is no longer finite after {count} steps; begin with a lower rate")
  return RateCurve(list(rates[:count]), list(losses[:count]), averages)


def find_lr(
  config: ConfigDict,
  workdir: str | pathlib.Path,
  *,
  steps: int = 100,
  low: float = 1e-6,
  high: float = 10.0,
) -> RateCurve:
  """Trains for some steps with a rising learning rate, and draws the loss over it.

  The parameters are thrown away. Optimizer, clipping, factors of the rate, `init_from` and batch
  are those of the configuration, its schedule is not. Writes `lr.png` and `lr.json`.

  Args:
    config: configuration of the run to come.
    workdir: folder to write to; none that holds a run.
    steps: steps from the lowest to the highest rate.
    low: lowest rate.
    high: highest rate.

  Raises:
    InputError: a value is impossible, or the configuration, data or folder can't be used.
  """
  if steps < 10:
    raise InputError(f"steps: {steps} must be at least 10; 100 is usual")
  if not 0 < low < high:
    raise InputError(f"low, high: {low} and {high} must be rates above 0, the lower one first")
  configs.validate(config)
  check_devices(config)
  task, dataset = configs.make_task(config)
  run = Run(pathlib.Path(workdir).expanduser(), config, dataset.classes)
  try_folder(run.path, "name another folder")
  if run.files.config.exists():
    raise InputError(f"{run.path} holds a run; name another folder")

  rates = np.geomspace(low, high, steps)
  losses = _losses(run, task, dataset, optax.exponential_decay(low, steps - 1, high / low), steps)
  curve = make_curve(rates.tolist(), losses)
  save_rate_plot(curve.rates, curve.losses, curve.averages, curve.suggestion, run.path / "lr.png")
  about = {"suggestion": curve.suggestion, "lowest": curve.lowest}
  json_files.write(run.path / "lr.json", {**about, **dataclasses.asdict(curve)})
  return curve


def _losses(
  run: Run, task: tasks.Task, dataset: Dataset, rate: optax.Schedule, steps: int
) -> list[float]:
  """The loss of each step, up to the first that isn't finite."""
  config = run.config
  init_key, key = run_keys(config.seed)
  shape = (*config.data.size, config.data.channels)
  order = parameter_order(run.model, shape) if config.optim.layer_decay != 1 else ()
  optimizer = configs.make_optimizer(config, schedule=rate)[0]
  state = create_train_state(run.model, optimizer, init_key, shape)
  taken: Sequence[str] = []
  if config.init_from:
    state, taken = initialize(state, config.init_from, run)
  train_step = make_train_step(
    configs.make_optimizer(config, taken, order, schedule=rate)[0],
    task.forward(),
    task.losses(dataset),
    weights=task.loss_weights(),
    freeze=frozen_names(state.params, config.optim.freeze, config.optim.groups),
    accumulate=config.accumulate,
  )
  state, batches, losses = replicate(state), task.batches(dataset, config.seed), []
  for _ in progress(range(steps), "rising rate", steps):
    batch = shard(next(batches), jax.local_device_count())
    state, metrics = train_step(state, batch, key)
    losses.append(float(metrics["loss"]))
    if not math.isfinite(losses[-1]):
      break
  return losses
