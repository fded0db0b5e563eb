"""Checkpoints of a run, through Orbax: written in the background, atomically, latest and best.

A checkpoint has three items: `model` (parameters, running statistics, averaged parameters), all
that evaluation reads; `training` (optimizer state, step); `data` (state of the data iterator).
"""

import errno
import glob
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jseg.parameters import parameter_name
from jseg.state import TrainState
from jseg.types import InputError

_policy = ocp.checkpoint_managers


class Checkpoints:
  """The checkpoints of one run directory.

  Args:
    run: the run directory; they are in its folder `checkpoints`.
    keep: how many of the latest are kept. The best one is kept besides.
    keep_every: steps between two that are kept for good; 0 is none.
    metric: name of the metric that selects the best; higher is better.
    read_only: for evaluation: nothing is written, created or cleaned up.

  Raises:
    InputError: `read_only`, and there is none; or its path can't hold any.
  """

  def __init__(
    self,
    run: str | pathlib.Path,
    *,
    keep: int = 2,
    keep_every: int = 0,
    metric: str = "miou",
    read_only: bool = False,
  ):
    self.run = pathlib.Path(run).absolute()
    directory = self.run / "checkpoints"
    if "\\" in directory.as_posix():
      raise InputError(
        f"{run}: checkpoints can't be kept in a folder with a backslash in its name; rename it"
      )
    if read_only and not directory.is_dir():
      raise InputError(f"{run} has no checkpoints yet; train first, or name another run directory")
    # Orbax tells every save in ten lines; and what its tasks fail with is raised here anyway.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    self._name = metric
    best = _policy.BestN(get_metric_fn=_only_value, n=1, keep_checkpoints_without_metrics=False)
    self._manager = ocp.CheckpointManager(
      directory,
      item_handlers={
        "model": _array_handler(directory),
        "training": _array_handler(directory),
        "data": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_policy.AnyPreservationPolicy(
          [
            _policy.LatestN(keep),
            best,
            *([_policy.EveryNSteps(keep_every)] if keep_every else []),
          ]
        ),
        best_fn=_only_value,  # the policy alone decides; but without this, metrics are not written
        create=not read_only,
        read_only=read_only,
        enable_async_checkpointing=not read_only,
      ),
    )
    if read_only and not self._manager.all_steps():
      raise InputError(f"{directory} holds no finished checkpoint; train for longer first")

  def steps(self) -> list[int]:
    """Steps that have a finished checkpoint, in order."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """The last step, or None if nothing was saved yet."""
    return self._manager.latest_step()

  def best(self) -> int:
    """Returns the step with the highest validation metric; the latest if none was evaluated."""
    scores = {step: self._metric(step) for step in self.steps()}
    known = {step: score for step, score in scores.items() if score is not None}
    return max(known, key=lambda step: (known[step], step)) if known else max(scores)

  def _metric(self, step: int) -> float | None:
    metrics = self._manager.metrics(step)
    return _only_value(metrics) if metrics else None

  def pick(self, which: str | int) -> int:
    """The step that "best", "latest" or a number stands for.

    Raises:
      InputError: there is no such checkpoint; the message lists those there are.
    """
    steps = self.steps()
    if which in ("best", "latest"):
      return self.best() if which == "best" else steps[-1]
    if str(which).isdigit() and int(which) in steps:
      return int(which)
    raise InputError(
      f"{self.run} has no checkpoint {which!r}; there is best, latest and "
      f"{', '.join(map(str, steps))}"
    )

  def save(
    self, state: TrainState, position: Mapping[str, Any], score: float | None = None
  ) -> None:
    """Starts to save; returns as soon as the state is copied, so that training can go on.

    Args:
      state: state of the run; its step names the checkpoint.
      position: position in the data, as plain values.
      score: the metric at this step, if it was evaluated; the highest is kept as the best.
        NaN counts as not evaluated.

    Raises:
      InputError: this save or the one before it could not be written.
    """
    # Host arrays: Orbax would cut arrays that lie on several devices into parts, each by a program
    # of its own, and write none that belong to one process of several.
    state = jax.device_get(state)
    model = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
    training = {"opt_state": state.opt_state, "step": state.step}
    try:
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          model=ocp.args.PyTreeSave(model),
          training=ocp.args.PyTreeSave(training),
          data=ocp.args.JsonSave(dict(position)),
        ),
        metrics=None if score is None or math.isnan(score) else {self._name: score},
      )
    except (OSError, ValueError, RuntimeError) as error:
      raise self._save_error(error) from error

  def wait(self) -> None:
    """Returns when what was being saved is on disk.

    Raises:
      InputError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except (OSError, ValueError, RuntimeError) as error:
      raise self._save_error(error) from error

  def _save_error(self, error: Exception) -> InputError:
    text = str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
      words in text for words in ("No space left", "File too large", "quota exceeded")
    )
    cause = "the disk is full" if full else text.strip().splitlines()[0]
    kept = ", ".join(map(str, self.steps())) or "none"
    remedy = "Free some space" if full else "Mend that"
    return InputError(
      f"a checkpoint could not be saved in {self.run}: {cause}. Finished checkpoints are untouched "
      f"(steps: {kept}). {remedy}, then start the same command again: it resumes from the last one"
    )

  def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The latest state and the position in the data that was saved with it.

    Args:
      template: a state of the same shapes; its values are not used.

    Raises:
      InputError: the checkpoint is of another network, or damaged.
    """
    step = self.latest()
    assert step is not None, "look at latest() before"
    model = {"params": template.params, "batch_stats": template.batch_stats, "ema": template.ema}
    training = {"opt_state": template.opt_state, "step": template.step}
    items = self._restore(step, {"model": model, "training": training})
    data = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
    return TrainState(**items["training"], **items["model"]), data

  def restore_model(self, step: int, template: Mapping[str, Any]) -> dict[str, Any]:
    """Variables to apply the model with, from the checkpoint of one step.

    Args:
      step: one of `steps()`.
      template: {"params", "batch_stats"} as the model's init gives; its values are not used.

    Raises:
      InputError: the checkpoint is of another network, or damaged.
    """
    saved = self._metadata(step, "model")
    params, stats = template["params"], template.get("batch_stats", {})
    target = {"params": params, "batch_stats": stats, "ema": params if saved.get("ema") else {}}
    model = self._restore(step, {"model": target})["model"]
    return {
      "params": model["ema"] if saved.get("ema") else model["params"],
      "batch_stats": model["batch_stats"],
    }

  def _restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
    for name, template in items.items():
      self._check(step, name, template)
    # Host arrays: every process reads the whole, whatever devices there were and are.
    arguments = {
      name: ocp.args.PyTreeRestore(
        template,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template),
      )
      for name, template in items.items()
    }
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
      others = ", ".join(str(s) for s in self.steps() if s != step) or "none"
      raise InputError(
        f"checkpoint {step} of {self.run} is damaged ({str(error).strip().splitlines()[0]}); "
        f"delete its folder to go on from another one (steps: {others})"
      ) from error
    # Copies of JAX's own: a step may donate them, and NumPy's memory can't be.
    return {name: jax.tree.map(jnp.array, restored[name]) for name in items}

  def _metadata(self, step: int, item: str) -> dict[str, Any]:
    try:
      return self._manager.item_metadata(step)[item].tree
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
      raise InputError(
        f"checkpoint {step} of {self.run} is damaged: its {item!r} can't be read ({error}); "
        "delete its folder to go on from an earlier one"
      ) from error

  def _check(self, step: int, item: str, template: Any) -> None:
    saved = _shapes(self._metadata(step, item))
    expected = _shapes(template)
    problems = [
      f"{path}: {saved.get(path, 'not in the checkpoint')} in the checkpoint, "
      f"{expected.get(path, 'not in the network')} in the network"
      for path in sorted(saved.keys() | expected.keys())
      if saved.get(path) != expected.get(path)
    ]
    if problems:
      more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
      raise InputError(
        f"checkpoint {step} of {self.run} is of another network than the run's config.json "
        f"describes: {'; '.join(problems[:3])}{more}. Use the run directory it was trained in"
      )

  def preempted(self, step: int) -> bool:
    """Whether the processes of a multi-host run have agreed to stop at this step."""
    return jax.process_count() > 1 and self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits for what is being saved, then lets go of the directory."""
    try:
      self.wait()
    finally:
      self._manager.close()


def _array_handler(directory: pathlib.Path) -> ocp.PyTreeCheckpointHandler:
  # Orbax finds the parts of an OCDBT checkpoint by a pattern that holds the path unescaped. Where
  # that matches nothing, or another run, it is to write the format that has no parts; it reads
  # either.
  return ocp.PyTreeCheckpointHandler(use_ocdbt=not glob.has_magic(str(directory)))


def _only_value(metrics: Mapping[str, float]) -> float:
  (value,) = metrics.values()
  return value


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {parameter_name(path): tuple(leaf.shape) for path, leaf in leaves}
