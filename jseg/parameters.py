"""Parameters as a tree: their names, and a digest."""

import hashlib

import jax
import numpy as np


def parameter_name(path: tuple[object, ...]) -> str:
  """Returns the name of a parameter, "backbone/conv1/kernel", from its path in a tree of JAX."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def digest(tree: object) -> str:
  """Computes 16 hexadecimal digits that differ for trees of other names or values."""
  result = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(jax.device_get(leaf))
    result.update(f"{parameter_name(path)} {array.dtype} {array.shape} ".encode())
    result.update(array.reshape(-1).view(np.uint8).data)
  return result.hexdigest()[:16]
