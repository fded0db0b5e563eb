"""jseg: the classic segmentation networks on JAX."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jseg import (
    augment,
    backbones,
    config,
    crf,
    data,
    images,
    losses,
    metrics,
    models,
    nn,
    optim,
    report,
    step,
    tasks,
    types,
    weights,
  )
  from jseg.evaluation import evaluate
  from jseg.export import export_run
  from jseg.import_weights import import_run
  from jseg.loop import train
  from jseg.predict import Segmenter
  from jseg.run import Run, load_model
  from jseg.tuning import tune_crf
  from jseg.types import InputError

__version__ = "0.1.0"

__all__ = [
  "InputError",
  "Run",
  "Segmenter",
  "augment",
  "backbones",
  "config",
  "crf",
  "data",
  "evaluate",
  "export_run",
  "images",
  "import_run",
  "load_model",
  "losses",
  "metrics",
  "models",
  "nn",
  "optim",
  "report",
  "step",
  "tasks",
  "train",
  "tune_crf",
  "types",
  "weights",
]

# Lazy: importing a block or a loss must not pull in the data and checkpoint stack.
_OBJECTS = {
  "InputError": "types",
  "Run": "run",
  "Segmenter": "predict",
  "evaluate": "evaluation",
  "export_run": "export",
  "import_run": "import_weights",
  "load_model": "run",
  "train": "loop",
  "tune_crf": "tuning",
}


def __getattr__(name: str) -> object:
  if name in _OBJECTS:
    value = getattr(importlib.import_module(f"jseg.{_OBJECTS[name]}"), name)
  elif name in __all__:
    value = importlib.import_module(f"jseg.{name}")
  else:
    raise AttributeError(f"module 'jseg' has no attribute {name!r}")
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted(__all__)
