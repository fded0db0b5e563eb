"""Checkpoints of a run, through Orbax: written in the background, atomically, latest and best.

A checkpoint has four items: `model` (parameters, running statistics, averaged parameters), all
that evaluation reads; `training` (optimizer state, step); `data` (state of the data iterator);
`checksums` of the others. What is restored is compared with them; checkpoints that are older than
they are have none.
"""

import contextlib
import errno
import functools
import glob
import logging
import math
import pathlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jseg import checksums, hosts, json_files
from jseg.console import ERRORS
from jseg.outputs import unwritable
from jseg.parameters import parameter_name
from jseg.state import TrainState
from jseg.types import InputError, Json, Tree, Variables

_policy = ocp.checkpoint_managers


class DamagedCheckpoint(InputError):
  """A checkpoint can't be read, or isn't what was saved."""


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
    self._name, self._directory, self._keep = metric, directory, keep
    if read_only:
      self._check_metrics(read_only)
    else:
      hosts.on_first(lambda: self._check_metrics(read_only))
    best = _policy.BestN(get_metric_fn=_only_value, n=1, keep_checkpoints_without_metrics=False)
    for_good = [_policy.EveryNSteps(keep_every)] if keep_every else []
    kept = _policy.AnyPreservationPolicy([_policy.LatestN(keep), best, *for_good])
    if read_only:
      self._manager = self._open(kept, read_only)
    else:
      self._manager = hosts.first_then_others(lambda: self._open(kept, not hosts.is_first()))
    if read_only and not self._manager.all_steps():
      raise InputError(f"{directory} holds no finished checkpoint; train for longer first")

  def _open(
    self, kept: ocp.checkpoint_managers.PreservationPolicy, read_only: bool
  ) -> ocp.CheckpointManager:
    # Orbax is to be alone: where one process can't write, it would let all wait for 20 minutes.
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index)
    )
    arrays = functools.partial(_array_handler, self._directory, alone)
    values = functools.partial(ocp.JsonCheckpointHandler, multiprocessing_options=alone)
    try:
      if not read_only:
        self._directory.mkdir(parents=True, exist_ok=True)
      return ocp.CheckpointManager(
        self._directory,
        item_handlers={
          "model": arrays(),
          "training": arrays(),
          "data": values(),
          "checksums": values(),
        },
        options=ocp.CheckpointManagerOptions(
          preservation_policy=kept,
          best_fn=_only_value,  # the policy alone decides; but without it, metrics are not written
          create=False,
          read_only=read_only,
          enable_async_checkpointing=not read_only,
          multiprocessing_options=alone,
        ),
      )
    except OSError as error:
      fix = "mend that, then start the same command again"
      raise unwritable(self._directory, error, fix) from error

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
    record = self._sound_record(step)
    metrics = self._manager.metrics(step) if record is None else record["metrics"]
    return _only_value(metrics) if metrics else None

  def _check_metrics(self, read_only: bool) -> None:
    """Mends files of metrics that are damaged, at which Orbax would fail for all steps."""
    for step in self._finished():
      path = self._directory / str(step) / "metrics" / "metrics"
      record, found, problem = self._sound_record(step), None, ""
      try:
        found = _read_metrics(path)
      except InputError as error:
        if read_only:
          raise
        problem = str(error)
      if record is not None and found != record["metrics"]:
        problem = problem or f"{path} isn't what was saved"
      if problem and not read_only:
        _mend_metrics(path, record and record["metrics"], problem)

  def _finished(self) -> list[int]:
    if not self._directory.is_dir():
      return []
    return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

  def _sound_record(self, step: int) -> dict[str, Any] | None:
    try:
      return self._record(step)
    except DamagedCheckpoint:  # is told where the checkpoint is restored
      return None

  def _record(self, step: int) -> dict[str, Any] | None:
    """Checksums and metrics of a checkpoint, or None where it is older than they are.

    Raises:
      DamagedCheckpoint: they are damaged themselves.
    """
    path = self._directory / str(step) / "checksums" / "metadata"
    if not path.parent.exists():
      return None
    with self._told(step):
      record = json_files.read(path, "")
      content: Any = record["content"]
      if record["own"] != checksums.of_json(content):
        raise ValueError(f"{path} isn't what was saved")
      return content

  def restore_average(self, count: int, template: Variables) -> tuple[int, Variables]:
    """The means of parameters and running statistics over the last checkpoints.

    Averaging of weights (Izmailov et al. 2018, arXiv:1803.05407); but the means of the statistics
    take the place of ones that are computed anew. What is averaged is told.

    Args:
      count: number of checkpoints.
      template: as for `restore_model`.

    Returns:
      (step of the last one, variables to apply the model with).

    Raises:
      InputError: the run doesn't keep so many, or `restore_model` would raise it.
    """
    steps = self.steps()
    # Those before are the best or kept for good: far between.
    if not 1 <= count <= min(self._keep, len(steps)):
      raise InputError(
        f"checkpoint: average:{count} needs the last {count} checkpoints, at least 1; {self.run} "
        f"keeps the last {self._keep} (keep) and has steps {', '.join(map(str, steps))}. Average "
        f"fewer, or train on with --config.keep={max(count, 1)}"
      )
    total = self.restore_model(steps[-count], template)
    for step in steps[len(steps) - count + 1 :]:
      total = jax.tree.map(jnp.add, total, self.restore_model(step, template))
    what = "parameters and running statistics" if total["batch_stats"] else "parameters"
    _tell(f"{what} are the means over checkpoints {', '.join(map(str, steps[-count:]))}")
    return steps[-1], jax.tree.map(lambda x: x / count, total)

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
      f"{self.run} has no checkpoint {which!r}; there is best, latest, average:N of the last N, "
      f"and {', '.join(map(str, steps))}"
    )

  def save(
    self, state: TrainState, position: Mapping[str, object], score: float | None = None
  ) -> None:
    """Starts to save; returns as soon as the state is copied, so that training can go on.

    Of several processes, the first saves.

    Args:
      state: state of the run; its step names the checkpoint.
      position: position in the data, as plain values.
      score: the metric at this step, if it was evaluated; the highest is kept as the best.
        NaN counts as not evaluated.

    Raises:
      InputError: this save or the one before it could not be written.
    """
    if not hosts.is_first():
      return
    # Host arrays: Orbax would cut arrays that lie on several devices into parts, each by a program
    # of its own, and write none that belong to one process of several.
    state = jax.device_get(state)
    model = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
    training = _training(state)
    metrics = None if score is None or math.isnan(score) else {self._name: float(score)}
    content = {
      "model": checksums.of_arrays(model),
      "training": checksums.of_arrays(training),
      "data": checksums.of_json(position),
      "metrics": metrics,
    }
    with self._saving():
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          model=ocp.args.PyTreeSave(model),
          training=ocp.args.PyTreeSave(training),
          data=ocp.args.JsonSave(dict(position)),
          checksums=ocp.args.JsonSave({"content": content, "own": checksums.of_json(content)}),
        ),
        metrics=metrics,
      )

  def wait(self) -> None:
    """Returns when what was being saved is on disk, in all processes, each of which must ask.

    Raises:
      InputError: it could not be written.
    """
    hosts.on_first(self._wait)

  def _wait(self) -> None:
    with self._saving():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Tells whatever saving fails with; what fails in the background is raised by a later call."""
    try:
      yield
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

  def restore(self, template: TrainState) -> tuple[TrainState, Json]:
    """The latest state that isn't damaged, and the position in the data that was saved with it.

    Damaged checkpoints after it are told and set aside, into the folder `damaged` of the run.

    Args:
      template: a state of the same shapes and dtypes, which may be all it has.

    Raises:
      InputError: the checkpoint is of another network, or all are damaged.
    """
    damaged: dict[int, str] = {}
    for step in reversed(self.steps()):
      found = None
      try:
        found = self._restore_all(step, template)
      except DamagedCheckpoint as error:
        damaged[step] = str(error)
      if hosts.everywhere(found is not None) and found is not None:
        if damaged:
          hosts.on_first(lambda: self._set_aside(damaged, step))  # noqa: B023, it is called here
          self._manager.reload()
        return found
    assert damaged, "look at latest() before"
    raise InputError("\n".join([*damaged.values(), "Start anew in another --workdir"]))

  def _restore_all(self, step: int, template: TrainState) -> tuple[TrainState, Json]:
    model = {"params": template.params, "batch_stats": template.batch_stats, "ema": template.ema}
    training = _training(template)
    items = self._restore(step, {"model": model, "training": training})
    record = self._record(step)
    with self._told(step):
      arguments = ocp.args.Composite(data=ocp.args.JsonRestore())
      data = self._manager.restore(step, args=arguments)["data"]
      if record is not None and record["data"] != checksums.of_json(data):
        raise ValueError("'data' isn't what was saved")
    return TrainState(**items["training"], **items["model"]), data

  def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
    """Moves damaged checkpoints away, whose steps are going to be saved again."""
    aside = self.run / "damaged"
    for step in damaged:
      shutil.rmtree(aside / str(step), ignore_errors=True)
      aside.mkdir(exist_ok=True)
      (self._directory / str(step)).rename(aside / str(step))
    for reason in damaged.values():
      _tell(reason)
    _tell(f"going on from checkpoint {used}; what is damaged is now in {aside}")

  def restore_model(self, step: int, template: Variables) -> Variables:
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

  def _restore(self, step: int, items: dict[str, Tree]) -> dict[str, Tree]:
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
    record = self._record(step)
    with self._told(step):
      restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
      for name in items:
        wrong = [] if record is None else checksums.differences(record[name], restored[name])
        if wrong:
          more = f" and {len(wrong) - 1} more arrays" if len(wrong) > 1 else ""
          raise ValueError(f"{wrong[0]}{more} of its {name!r}: not what was saved")
    # Copies of JAX's own: a step may donate them, and NumPy's memory can't be.
    return {name: jax.tree.map(jnp.array, restored[name]) for name in items}

  @contextlib.contextmanager
  def _told(self, step: int) -> Iterator[None]:
    """Tells whatever a checkpoint's reading fails with; damaged files fail in any way."""
    try:
      yield
    except Exception as error:
      _ignore_leftovers()
      lines = str(error).strip().splitlines() or [type(error).__name__]
      others = ", ".join(str(s) for s in self._finished() if s != step) or "none"
      raise DamagedCheckpoint(
        f"checkpoint {step} of {self.run} is damaged ({lines[0]}); use another one (there is "
        f"{others}), as jseg train does by itself"
      ) from error

  def _metadata(self, step: int, item: str) -> Tree:
    with self._told(step):
      metadata = self._manager.item_metadata(step)[item]
      if metadata is None:
        raise ValueError(f"its {item!r} can't be read")
      return metadata.tree

  def _check(self, step: int, item: str, template: Tree) -> None:
    saved, expected = _shapes(self._metadata(step, item)), _shapes(template)
    record = self._record(step)
    when_saved = record and {name: tuple(shape) for name, (_, shape, _) in record[item].items()}
    problems = [
      f"{path}: {saved.get(path, 'not in the checkpoint')} in the checkpoint, "
      f"{expected.get(path, 'not in the network')} in the network"
      for path in sorted(saved.keys() | expected.keys())
      if saved.get(path) != expected.get(path)
    ]
    if problems and when_saved == expected:
      with self._told(step):
        raise ValueError(f"{problems[0]}, and not when it was saved")
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
    """Waits for what is being saved, then lets go of the directory.

    Raises:
      InputError: it could not be written.
    """
    try:
      self._wait()  # others may have ended
    finally:
      with self._saving():
        self._manager.close()


def _training(state: TrainState) -> dict[str, Tree]:
  """What a checkpoint's item `training` holds."""
  scale = {"loss_scale": state.loss_scale} if state.loss_scale else {}
  return {"opt_state": state.opt_state, "step": state.step, **scale}


def _array_handler(
  directory: pathlib.Path, alone: ocp.options.MultiprocessingOptions
) -> ocp.PyTreeCheckpointHandler:
  # Orbax finds the parts of an OCDBT checkpoint by a pattern that holds the path unescaped. Where
  # that matches nothing, or another run, it is to write the format that has no parts; it reads
  # either.
  return ocp.PyTreeCheckpointHandler(
    use_ocdbt=not glob.has_magic(str(directory)), multiprocessing_options=alone
  )


def _ignore_leftovers() -> None:
  """Keeps Python from printing what a failed restore leaves behind: Orbax's unfinished tasks."""
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  previous = sys.unraisablehook
  if getattr(previous, "__name__", "") == "_without_closed_loops":
    return

  def _without_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      previous(unraisable)

  sys.unraisablehook = _without_closed_loops


def _read_metrics(path: pathlib.Path) -> dict[str, float] | None:
  """The metrics of a checkpoint, or None where it wasn't evaluated."""
  if not path.exists():
    return None
  remedy = "remove it: the checkpoint then counts as not evaluated"
  metrics = json_files.read(path, remedy)
  numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
  if len(metrics) != 1 or len(numbers) != 1:
    raise InputError(f"{path} is damaged (it holds no metric); {remedy}")
  return numbers


def _mend_metrics(path: pathlib.Path, known: dict[str, float] | None, problem: str) -> None:
  if known:
    json_files.write(path, known)
  else:
    shutil.rmtree(path.parent, ignore_errors=True)
  _tell(f"{problem}; {'mended' if known else 'removed'}")


def _tell(text: str) -> None:
  ERRORS.print(f"! {text}", style="yellow", soft_wrap=True)


def _only_value(metrics: Mapping[str, float]) -> float:
  (value,) = metrics.values()
  return value


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {parameter_name(path): tuple(leaf.shape) for path, leaf in leaves}
