"""Keeping XLA for CPUs from computing things again and again, and from copying what it is given.

It fuses a stage into whatever reads it, even through gathers, and computes it anew for every
element that is read; optimization barriers are dropped before that.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.types import Array

_ALIGNMENT = 64  # bytes


def filled(shape: Sequence[int], value: Any, dtype: Any) -> np.ndarray:
  """np.full at an address that JAX on CPUs can use without a copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  array = memory[start : start + size].view(dtype).reshape(shape)
  array.fill(value)
  return array


def stored(f: Any, *args: Any) -> Array:
  """f(*args), an array, written to memory before anything reads it.

  XLA can't fuse into or out of the branches of a condition.
  """
  out = jax.eval_shape(f, *args)

  def on_cpu(*args: Any) -> Array:
    known = jax.tree.leaves(args)[0].reshape(-1)[0]
    return lax.cond(known == known, f, lambda *_: jnp.full(out.shape, jnp.nan, out.dtype), *args)

  def elsewhere(*args: Any) -> Array:
    return lax.optimization_barrier(f(*args))

  return lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)


def staged(f: Any, *args: Any, blocks: int = 16) -> Any:
  """f(*args) of arrays [n ...], for one block of n after the other; what a loop returns is stored.

  The blocks' temporaries stay in a core's cache.
  """
  n = jax.tree.leaves(args)[0].shape[0]
  length = -(-n // blocks)

  def split(x: Array) -> Array:
    pad = ((0, length * blocks - n),) + ((0, 0),) * (x.ndim - 1)
    return (jnp.pad(x, pad) if length * blocks > n else x).reshape(blocks, length, *x.shape[1:])

  out = lax.map(lambda block: f(*block), jax.tree.map(split, args))
  return jax.tree.map(lambda x: x.reshape(blocks * length, *x.shape[2:])[:n], out)
