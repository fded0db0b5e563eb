"""Weights and images by formula, so that golden files hold results and no weights.

Values depend on the parameter's name in the reference's own naming, its shape and nothing else: a
hash in integer arithmetic, the same on every machine and with every version of NumPy.
"""

import zlib
from collections.abc import Callable

import numpy as np

BLOCK = 1 << 15
"""Values that are made at a time, which stay in a processor's cache: a network has millions."""


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float64 in [0, 1) of a shape, by a hash of the name and the position."""
  return _made(name, shape, np.float64, lambda u: u)


def _made(
  name: str, shape: tuple[int, ...], dtype: type, value: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """An array of a dtype whose elements are a function of the uniform values."""
  made = np.empty(int(np.prod(shape)), dtype)
  for start in range(0, made.size, BLOCK):
    part = made[start : start + BLOCK]
    z = np.arange(start, start + part.size, dtype=np.uint64)
    z += np.uint64(zlib.crc32(name.encode())) << 32
    # The finaliser of SplitMix64 (Steele, Lea & Flood 2014); unsigned arithmetic wraps.
    with np.errstate(over="ignore"):
      z = (z + 1) * np.uint64(0x9E3779B97F4A7C15)
      z = (z ^ (z >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
      z = (z ^ (z >> 27)) * np.uint64(0x94D049BB133111EB)
    part[:] = value(((z ^ (z >> 31)) >> 11).astype(np.float64) * 2.0**-53)
  return made.reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32 value of a parameter or a running statistic, in PyTorch's naming and layout.

  Kernels (two dimensions and more) are uniform with variance 2 / fan-in, so that activations keep
  their scale through ReLUs; fan-in is all but the first dimension. Vectors: running variances and
  norm weights (a vector called "weight") lie in [.5, 1.5), all others in [-.1, .1).
  """
  if len(shape) >= 2:
    bound = np.sqrt(6 / np.prod(shape[1:]))
    return _made(name, shape, np.float32, lambda u: (2 * u - 1) * bound)
  if name.endswith(("running_var", "weight")):
    return _made(name, shape, np.float32, lambda u: 0.5 + u)
  return _made(name, shape, np.float32, lambda u: 0.2 * (u - 0.5))


def image(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32 input, uniform in [-1.7, 1.7): unit variance."""
  return (np.sqrt(3) * (2 * uniform(name, shape) - 1)).astype(np.float32)
