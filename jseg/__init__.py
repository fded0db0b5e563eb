"""jseg: the classic segmentation networks on JAX."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  # Late, so that who needs a block or a loss doesn't wait for what reads data and checkpoints.
  if name == "Segmenter":
    from jseg.predict import Segmenter

    return Segmenter
  raise AttributeError(f"module 'jseg' has no attribute {name!r}")
