"""Makes a run directory of weights that were trained elsewhere."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jseg import config as configs
from jseg import models
from jseg.checkpoint import CONFIG_FILE, Checkpoints, save_run
from jseg.data import ClassInfo
from jseg.state import TrainState
from jseg.types import InputError
from jseg.weights import Loaded, load
from jseg.weights.classes import class_info

IMPORT_FILE = "import.json"  # where the weights came from, and what became of each
# Of images that scores are computed on: those of VOC fit whole, those of Cityscapes too.
_SIZE = (513, 513)
_DATA: dict[int, dict[str, Any]] = {
  21: {"name": "voc", "size": _SIZE},
  19: {"name": "cityscapes", "size": (1025, 2049), "eval_batch_size": 1},
}


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
    classes: names and colours; None: those of VOC, Cityscapes or ADE20K if their number is the
      head's, else class_0, class_1, ... A classifier's new head is for VOC's.
    changes: configuration keys with dots, and their values.

  Returns:
    What was loaded.

  Raises:
    InputError: the file isn't known, or it, the classes and the changes don't go together.
  """
  out = pathlib.Path(out).expanduser()
  if (out / CONFIG_FILE).exists():
    raise InputError(f"{out} holds a run already; name another folder with --out")
  changes = dict(changes or {})
  knobs = {k.removeprefix("model."): v for k, v in changes.items() if k.startswith("model.")}
  loaded = load(path, model, len(classes.names) if classes else None, **knobs)
  classes = classes or class_info(loaded.num_classes)

  config = configs.default(loaded.name, **loaded.knobs)
  config.data.update({"name": "folder", "size": _SIZE, **_DATA.get(len(classes.names), {})})
  if models.task(loaded.name) == "instance":
    # As torchvision does it.
    config.data.update({"size": (1333, 1333), "short_side": 800, "eval_batch_size": 1})
  config = configs.change(config, changes)

  try:
    out.mkdir(parents=True, exist_ok=True)
    report = {"source": str(path), "what": loaded.what, **dataclasses.asdict(loaded.report)}
    (out / IMPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    save_run(out, config, classes)
  except OSError as error:
    raise InputError(f"{out} can't be written ({error.strerror}); name another --out") from None
  stats = loaded.variables["batch_stats"]
  state = TrainState(jnp.zeros((), jnp.int32), loaded.variables["params"], stats, {}, {})
  with contextlib.closing(Checkpoints(out)) as checkpoints:
    checkpoints.save(state, {})
  return loaded
