"""The programs of tiny runs, lowered for devices that aren't there (`benchmarks/ahead.py`)."""

import importlib.util
import pathlib

import jseg.config
import jseg.models

_PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "ahead.py"
_SPEC = importlib.util.spec_from_file_location("ahead", _PATH)
ahead = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ahead)


def tiny_programs(name, devices, size=32, crf=None, dtype="bfloat16"):
  """Programs of a network's tiny preset in half precision, with one example a device.

  With the method of a CRF, that is the network's last layer.
  """
  config = jseg.config.default(name, **jseg.models.get(name).TINY)
  config.dtype = dtype
  config.data.size = (size,) * len(config.data.size)
  config.data.batch_size = config.data.eval_batch_size = len(devices)
  if "max_objects" in config.data:
    config.data.max_objects = 4
  if crf:
    config.crf.train, config.crf.method, config.crf.iterations = True, crf, 2
  return ahead.Programs(config, 3, devices)
