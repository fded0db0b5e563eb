"""Ways to keep XLA on CPUs from recomputing intermediate results and from copying its inputs.

XLA fuses a computation into whatever reads it, even through gathers, and recomputes it for every
element that is read; it drops optimization barriers before that.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jseg.arithmetic import cdiv
from jseg.barrier import computed_after
from jseg.types import Array

_ALIGNMENT = 64  # bytes


def filled(shape: Sequence[int], value: float, dtype: DTypeLike) -> np.ndarray:
  """Like np.full, at an address that JAX on CPUs can use without a copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  array = memory[start : start + size].view(dtype).reshape(shape)
  array.fill(value)
  return array


def stored(f: Callable[..., Array], *args: Any) -> Array:
  """Returns the array f(*args), written to memory before anything reads it."""

  def elsewhere(*args: Any) -> Array:
    return lax.optimization_barrier(f(*args))

  on_cpu = functools.partial(computed_after, [], f)
  return lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)


def staged(f: Callable[..., Any], *args: Any, blocks: int = 16) -> Any:
  """Computes f(*args) of arrays [n ...] by blocks of n, in a loop: what a loop returns is stored.

  The temporaries of a block stay in the cache of a core.
  """
  n = jax.tree.leaves(args)[0].shape[0]
  length = cdiv(n, blocks)

  def split(x: Array) -> Array:
    pad = ((0, length * blocks - n),) + ((0, 0),) * (x.ndim - 1)
    return (jnp.pad(x, pad) if length * blocks > n else x).reshape(blocks, length, *x.shape[1:])

  out = lax.map(lambda block: f(*block), jax.tree.map(split, args))
  return jax.tree.map(lambda x: x.reshape(blocks * length, *x.shape[2:])[:n], out)
