"""Weights and images by formula, so that golden files hold results and no weights.

Values depend on the parameter's name in the reference's own naming, its shape and nothing else: a
hash in integer arithmetic, the same on every machine and with every version of NumPy.
"""

import zlib

import numpy as np


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float64 in [0, 1) of a shape, by a hash of the name and the position."""
  z = np.arange(int(np.prod(shape)), dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << 32)
  # The finaliser of SplitMix64 (Steele, Lea & Flood 2014); unsigned arithmetic wraps.
  with np.errstate(over="ignore"):
    z = (z + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27)) * np.uint64(0x94D049BB133111EB)
  return ((z ^ (z >> 31)) >> 11).astype(np.float64).reshape(shape) * 2.0**-53


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32 value of a parameter or a running statistic, in PyTorch's naming and layout.

  Kernels (two dimensions and more) are uniform with variance 2 / fan-in, so that activations keep
  their scale through ReLUs; fan-in is all but the first dimension. Vectors: running variances and
  norm weights (a vector called "weight") lie in [.5, 1.5), all others in [-.1, .1).
  """
  u = uniform(name, shape)
  if len(shape) >= 2:
    return ((2 * u - 1) * np.sqrt(6 / np.prod(shape[1:]))).astype(np.float32)
  if name.endswith(("running_var", "weight")):
    return (0.5 + u).astype(np.float32)
  return (0.2 * (u - 0.5)).astype(np.float32)


def image(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32 input, uniform in [-1.7, 1.7): unit variance."""
  return (np.sqrt(3) * (2 * uniform(name, shape) - 1)).astype(np.float32)
