"""The smallest run that goes the whole way, and what it logs."""

import json

import jseg.config
import jseg.models

TIMINGS = {
  "images_per_second",
  "seconds",
  "waiting_for_input",
  "host_peak_gib",
  "device_peak_gib",
}


def tiny_config(data_dir, model="unet", knobs=None, **changes):
  """A configuration that trains in seconds: U-Net of 2 levels on 24 shapes of 32 x 32.

  Args:
    data_dir: where the prepared set is kept.
    model: name of another network, or a network made in Python.
    knobs: arguments of the network, beside its tiny preset.
    **changes: values by dotted key, with "__" for the dot.
  """
  preset = jseg.models.get(model).TINY if isinstance(model, str) else {}
  if model == "unet":
    preset = {"widths": (4, 8)}
  config = jseg.config.default(model, **{**preset, **(knobs or {})})
  config.steps = 12
  config.data.data_dir = str(data_dir)
  config.data.options = {"size": 32, "train": 24, "val": 7, "test": 5}
  config.data.size = (32, 32)
  config.data.batch_size = 8
  config.data.eval_batch_size = 3
  config.optim.lr = 0.05
  config.log_every = 2
  config.eval_every = 6
  config.checkpoint_every = 3
  config.samples = 2
  config.compilation_cache = ""
  for key, value in changes.items():
    *section, name = key.split("__")
    target = config
    for part in section:
      target = target[part]
    target[name] = value
  return config


def logged(run):
  """The lines of a run's metrics.jsonl, without what differs from one start to the next."""
  lines = (run / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]
