"""Reads files of weights: tensors by name, whatever they are wrapped in."""

import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jseg.types import InputError
from jseg.weights.pth import read_pth

# Keys under which trainers save the weights, beside optimizer states and metrics.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
# Prefixes that DataParallel and torch.compile give to all names.
_PREFIXES = ("module.", "_orig_mod.")


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a .safetensors, .pth or .pt file by name.

  Nothing in the file is executed.

  Raises:
    InputError: the file isn't there, is of another kind, is damaged, or holds no tensors.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    raise InputError(f"{path} is a folder; give a file of weights (.safetensors, .pth or .pt)")
  if not path.is_file():
    raise InputError(f"there is no file {path}; give a run directory, a .safetensors or .pth file")
  if path.suffix == ".safetensors":
    try:
      content: Any = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
      raise InputError(f"{path} is damaged or no .safetensors file ({error})") from None
  else:
    content = read_pth(path)
  tensors = _state_dict(content)
  if not tensors:
    optimizer = isinstance(content, dict) and "param_groups" in content
    what = "the state of an optimizer" if optimizer else "no weights by name"
    raise InputError(
      f"{path} holds {what}; save the network's: torch.save(model.state_dict(), PATH)"
    )
  for prefix in _PREFIXES:
    if all(name.startswith(prefix) for name in tensors):
      tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
  return tensors


def _state_dict(content: Any) -> dict[str, np.ndarray]:
  if not isinstance(content, dict):
    return {}
  for key in _WRAPPERS:
    if isinstance(content.get(key), dict):
      return _state_dict(content[key])
  return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
