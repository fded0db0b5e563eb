"""Converts tensors from PyTorch's layout to Flax's."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jseg.types import InputError, Tree, Variables

# What PyTorch calls the tensors of a layer: where they go, and what we call them.
_NORM = {
  "weight": ("params", "scale"),
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
}


@dataclasses.dataclass(frozen=True)
class LayerTarget:
  """Destination of a source's layer.

  Attributes:
    path: path of the module in our network, "/" between names.
    kind: "conv" (weight [f c ...]), "transposed" (weight [c f ...]), "norm", or "dense": a
      fully connected layer [f c kh kw] whose input was a map of `window`, made a convolution.
    window: height and width (kh, kw) of the map under a "dense" layer; (1, 1) for a vector.
    outputs: order in which to take the outputs, group by group; empty: as they are.
    epsilon: number that the source's norm adds to the variance. Ours adds 1e-5, so the variance
      takes the difference.
  """

  path: str
  kind: str = "conv"
  window: tuple[int, int] = (1, 1)
  outputs: tuple[int, ...] = ()
  epsilon: float = 1e-5


def convert(
  tensors: Mapping[str, np.ndarray], layers: Mapping[str, LayerTarget]
) -> tuple[Variables, list[str]]:
  """Renames and transposes tensors.

  Args:
    tensors: tensors by PyTorch's names, LAYER.weight, LAYER.bias, LAYER.running_mean, ...
    layers: destinations by PyTorch's names of layers.

  Returns:
    ({"params", "batch_stats"} as nested dicts of float32 arrays, names that no layer claimed).

  Raises:
    InputError: a tensor doesn't have the dimensions of its layer's kind, or not all of its numbers
      are finite floats.
  """
  variables: dict[str, Tree] = {"params": {}, "batch_stats": {}}
  unused = []
  for name, tensor in tensors.items():
    layer_name, _, leaf = name.rpartition(".")
    layer = layers.get(layer_name)
    if leaf == "num_batches_tracked":  # PyTorch's counter; no norm needs it
      continue
    if layer is None or (layer.kind == "norm" and leaf not in _NORM):
      unused.append(name)
      continue
    value = _finite(name, tensor)
    if layer.kind == "norm":
      collection, ours = _NORM[leaf]
      if ours == "var":
        value = value + np.float32(layer.epsilon - 1e-5)
    else:
      collection, ours = "params", "kernel" if leaf == "weight" else leaf
      if leaf == "weight":
        value = _kernel(name, value, layer)
      if layer.outputs:
        if not value.ndim or value.shape[-1] % len(layer.outputs):
          raise InputError(
            f"{name}: a tensor of shape {tensor.shape}, where outputs come in groups of "
            f"{len(layer.outputs)}"
          )
        groups = value.reshape(*value.shape[:-1], -1, len(layer.outputs))
        value = groups[..., list(layer.outputs)].reshape(value.shape)
    target = variables[collection]
    for part in layer.path.split("/"):
      target = target.setdefault(part, {})
    target[ours] = value
  return variables, unused


def _finite(name: str, tensor: np.ndarray) -> np.ndarray:
  """A tensor as float32, if that is what it holds."""
  if np.asarray(tensor).dtype.kind in "biuc":
    raise InputError(
      f"{name}: {tensor.dtype} is no type of weights; if they are quantized, save the network as "
      "it was before that"
    )
  with np.errstate(over="ignore"):
    value = np.asarray(tensor, np.float32)
  if bad := value.size - np.count_nonzero(np.isfinite(value)):
    raise InputError(
      f"{name}: {bad} of {value.size} numbers are NaN or infinite as 32-bit floats, so the network "
      "can't compute anything; take a checkpoint from before its training diverged"
    )
  return value


def _kernel(name: str, weight: np.ndarray, layer: LayerTarget) -> np.ndarray:
  pixels = layer.window[0] * layer.window[1]
  if layer.kind == "dense" and weight.ndim == 2 and weight.shape[1] % pixels == 0:
    weight = weight.reshape(weight.shape[0], -1, *layer.window)
  if weight.ndim < 3:
    raise InputError(f"{name}: a tensor of shape {weight.shape} is no convolution's kernel")
  first = (0, 1) if layer.kind == "transposed" else (1, 0)
  return np.ascontiguousarray(weight.transpose(*range(2, weight.ndim), *first))
