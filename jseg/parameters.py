"""Parameters as a tree: their names, and programs that make them once."""

import hashlib
import os
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

_LEVEL = "xla_backend_optimization_level"
_Result = TypeVar("_Result")


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


def jit_once(function: Callable[..., _Result]) -> Callable[..., _Result]:
  """Compiles a function that runs once, such as the initialization of a network.

  XLA unrolls the random numbers of small kernels so far that LLVM's full optimization takes a
  minute over a program that runs for milliseconds; so on CPU it optimizes little. Whoever has the
  level in `XLA_FLAGS` keeps theirs. Inside of another program, which has options of its own, the
  function is part of that.
  """
  given = f"--{_LEVEL}=" in os.environ.get("XLA_FLAGS", "")
  options = {_LEVEL: 1} if jax.default_backend() == "cpu" and not given else None
  program = jax.jit(function, compiler_options=options)

  def call(*arrays: object) -> _Result:
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))
    return function(*arrays) if traced else program(*arrays)

  return call
