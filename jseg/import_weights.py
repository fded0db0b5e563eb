"""Makes a run directory of weights that were trained elsewhere."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jseg import config as configs
from jseg import json_files, tasks
from jseg.data import ClassInfo
from jseg.data.published import class_info
from jseg.run import Files, Run, held
from jseg.state import TrainState
from jseg.types import InputError
from jseg.weights import Loaded, load


def import_run(
  path: str | pathlib.Path,
  out: str | pathlib.Path,
  model: str | None = None,
  classes: ClassInfo | None = None,
  changes: Mapping[str, Any] | None = None,
) -> Loaded:
  """Writes a run directory that can be evaluated, predicted with and trained from.

  Args:
    path: a .safetensors, .pth or .pt file; nothing in it is executed.
    out: the run directory; must not hold a run yet.
    model: the network; needed for a classifier of ImageNet.
    classes: names and colors; None: those of VOC, Cityscapes or ADE20K if their number is the
      head's, else class_0, class_1, ... A classifier's new head is for VOC's.
    changes: values by dotted configuration key.

  Returns:
    What was recognized and loaded.

  Raises:
    InputError: the file isn't known, or it, the classes and the changes don't go together.
  """
  out = pathlib.Path(out).expanduser()
  if Files(out).config.exists():
    raise InputError(f"{out} holds a run already; name another folder with --out")
  changes = dict(changes or {})
  arguments = {k.removeprefix("model."): v for k, v in changes.items() if k.startswith("model.")}
  channels = changes.get("data.channels", 3)
  if not isinstance(channels, int) or channels < 1:
    raise InputError(f"data.channels: {channels!r} must be a whole number above 0")
  loaded = load(path, model, len(classes.names) if classes else None, channels, **arguments)
  classes = classes or class_info(loaded.num_classes)

  config = configs.default(loaded.name, **loaded.arguments)
  config.data.update(tasks.get(loaded.model.task).foreign_data(len(classes.names)))
  run = Run(out, configs.change(config, changes), classes)
  with held(out):
    _write(run, loaded, path)
  return loaded


def _write(run: Run, loaded: Loaded, path: str | pathlib.Path) -> None:
  """Writes the files of a run of these weights."""
  run.write()
  report = {"source": str(path), "what": loaded.description, **dataclasses.asdict(loaded.report)}
  json_files.write(run.files.imported, report)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=loaded.variables["params"],
    batch_stats=loaded.variables["batch_stats"],
    opt_state={},
    ema={},
  )
  with contextlib.closing(run.checkpoints(read_only=False)) as checkpoints:
    checkpoints.save(state, {})
