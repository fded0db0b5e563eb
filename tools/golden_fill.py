"""What the scripts of golden files share: weights by formula in a network of PyTorch."""

import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"

formula = SimpleNamespace(**runpy.run_path(str(GOLDEN / "formula.py")))
"""tests/golden/formula.py."""


def fill(
  model: torch.nn.Module, scale: Mapping[str, float], unused: tuple[str, ...] = ()
) -> list[tuple[str, tuple[int, ...]]]:
  """Sets all parameters and running statistics in use.

  Args:
    model: the network.
    scale: factors of what a regular expression finds among the names.
    unused: beginnings of the names that are left as they are.

  Returns:
    Names and shapes of what was set.
  """
  entries = []
  for name, tensor in model.state_dict().items():
    if not name.startswith(unused) and not name.endswith("num_batches_tracked"):
      shape = tuple(tensor.shape)
      tensor.copy_(torch.from_numpy(formula.weight(name, shape)))
      for pattern, factor in scale.items():
        if re.search(pattern, name):
          tensor.mul_(factor)
      entries.append((name, shape))
  return entries
