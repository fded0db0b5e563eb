"""jseg: the classic segmentation networks on JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
  "checkpoint",
  "config",
  "crf",
  "data",
  "evaluate",
  "export",
  "losses",
  "metrics",
  "models",
  "nn",
  "predict",
  "weights",
)


def __getattr__(name: str) -> Any:
  # Late, so that who needs a block or a loss doesn't wait for what reads data and checkpoints.
  if name == "Segmenter":
    return importlib.import_module("jseg.predict").Segmenter
  if name in _MODULES:
    return importlib.import_module(f"jseg.{name}")
  raise AttributeError(f"module 'jseg' has no attribute {name!r}")
