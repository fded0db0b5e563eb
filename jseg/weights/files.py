"""Reads files of weights: .safetensors, and PyTorch's."""

import os
import pathlib

from safetensors.numpy import load_file

from jseg.types import InputError
from jseg.weights.pth import read_pth
from jseg.weights.published import get_published, is_published


def read_file(source: str | os.PathLike[str]) -> object:
  """Reads what is in a .safetensors, .pth or .pt file: dictionaries and lists that hold arrays.

  Nothing in the file is executed.

  Args:
    source: path of the file, or a name of published weights (`get_published`).

  Raises:
    InputError: the file isn't there, is of another kind, or is damaged; or the weights can't be
      downloaded.
  """
  path = get_published(str(source)) if is_published(source) else pathlib.Path(source).expanduser()
  if path.is_dir():
    raise InputError(f"{path} is a folder; give a file of weights (.safetensors, .pth or .pt)")
  if not path.is_file():
    raise InputError(
      f"there is no file {path}; give a run directory, a .safetensors or .pth file, or "
      "a name such as torchvision:resnet50 or hf:timm/resnet50.a1_in1k"
    )
  if path.suffix.lower() != ".safetensors":
    return read_pth(path)
  try:
    return load_file(path)
  except (AttributeError, KeyError) as error:  # a dtype that NumPy doesn't have
    raise InputError(
      f"{path} has tensors of a type that isn't read ({error}); save them as 32-bit floats"
    ) from None
  # Whatever bytes may do to it.
  except Exception as error:
    raise InputError(f"{path} is damaged or no .safetensors file ({error})") from None
