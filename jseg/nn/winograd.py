"""Winograd's minimal filtering along one axis: half of a convolution's products, for some sums.

Four outputs of a kernel of three taps take twelve products. But to multiply polynomials of degrees
3 and 2 takes six, of their values at six points, and such outputs are that problem transposed. So a
map is cut into tiles of four outputs along its first spatial axis, each of which sees six inputs.
Six mixtures of these are convolved along the other axes, each with its own mixture of the three
taps, and the outputs are mixtures of the six results.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv:1509.09308), F(4, 3).
Rounding errors are about twice those of the direct form.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.arithmetic import cdiv
from jseg.barrier import computed_after
from jseg.nn.cut import cut
from jseg.types import Array

TAPS = 3
"""Taps of the kernels along the first axis."""

_OUTPUTS = 4  # of a tile
_INPUTS = _OUTPUTS + TAPS - 1
# The sixth is infinity. With the usual 0, 1, -1, 2 and -2 rounding errors are larger by half.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def share_of_products(outputs: int, dilation: int) -> float:
  """Products along the axis as a share of the direct form's: half, more where tiles jut out.

  Args:
    outputs: length of the output along the axis.
    dilation: distance between taps along the axis.
  """
  return _INPUTS * _tiles(outputs, dilation) * dilation / (TAPS * outputs)


def mix_taps(kernel: Array) -> list[Array]:
  """Mixtures of a kernel's taps along the first axis: [3 kw c f] -> six of [kw c f]."""
  return _mix(_OF_KERNEL, list(kernel))


def convolve(
  x: Array,
  kernels: Callable[[Array], Sequence[Array]],
  rest: Callable[[Array, Array], Array],
  *,
  pads: tuple[int, int],
  dilation: int,
  once: bool,
) -> Array:
  """Cross-correlates x with a kernel, step 1 along the first spatial axis.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    kernels: what `mix_taps` makes of the kernel [3 kw c f], as a function of the first mixture of
      inputs, before which it isn't needed.
    rest: the convolution along the other axes, [b w c] and [kw c f] -> [b w' f].
    pads: pixels of padding before and after, along the first axis.
    dilation: distance between taps along the first axis.
    once: whether the output is a map of its own, for the many who read it in training. Else XLA
      computes it within each reader: in inference a norm and a ReLU, which then take no pass.

  Returns:
    [b h' w' f].
  """
  batch, outputs = x.shape[0], x.shape[1] + sum(pads) - dilation * (TAPS - 1)
  parts = _input_parts(x, outputs, pads[0], dilation)
  results = [rest(part, kernel) for part, kernel in zip(parts, kernels(parts[0]), strict=True)]
  shape = (batch, _tiles(outputs, dilation), dilation, *results[0].shape[1:])

  def mixed(*results: Array) -> Array:
    y = jnp.stack([a.reshape(shape) for a in _mix(_TO_OUTPUTS, results)], axis=2)
    return y.reshape(batch, math.prod(y.shape[1:4]), *shape[3:])[:, :outputs]

  return computed_after([], mixed, *results) if once else mixed(*results)


def kernel_gradient(
  x: Array,
  dy: Array,
  rest: Callable[[Array, Array], Array],
  *,
  before: int,
  dilation: int,
) -> Array:
  """Gradient of the kernel of `convolve`.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    dy: gradient of the output, [b h' w' f].
    rest: gradient of the kernel along the other axes, [b w c] and [b w' f] -> [kw c f].
    before: pixels of padding before x, along the first axis.
    dilation: distance between taps along the first axis.

  Returns:
    [3 kw c f].
  """
  outputs = dy.shape[1]
  dresults = _mix(_TO_OUTPUTS.T, _rows(dy, _OUTPUTS, outputs, 0, dilation))
  parts = jnp.stack(_input_parts(x, outputs, before, dilation))
  dkernels = jax.vmap(rest)(parts, jnp.stack(dresults))
  return jnp.tensordot(_OF_KERNEL.T.astype(dkernels.dtype), dkernels, 1, precision="highest")


def _input_parts(x: Array, outputs: int, before: int, dilation: int) -> list[Array]:
  return _mix(_OF_INPUTS, _rows(x, _INPUTS, outputs, before, dilation))


def _tiles(outputs: int, dilation: int) -> int:
  return cdiv(outputs, _OUTPUTS * dilation)


def _rows(a: Array, rows: int, outputs: int, before: int, dilation: int) -> list[Array]:
  """The first row of every tile, the second of every tile and so on: [tiles w c] each.

  With a dilation, rows of a tile are so far apart, and so many tiles interleave.
  """
  tiles = _tiles(outputs, dilation)
  length = ((tiles - 1) * _OUTPUTS + rows) * dilation
  edges = [(0, 0, 0)] * a.ndim
  edges[1] = (before, length - a.shape[1] - before, 0)
  a = lax.pad(a, jnp.zeros((), a.dtype), edges)
  a = a.reshape(a.shape[0], length // dilation, dilation, *a.shape[2:])
  last = (tiles - 1) * _OUTPUTS + 1
  every = [slice(first, first + last, _OUTPUTS) for first in range(rows)]
  return [cut(a, slice(None), places).reshape(-1, *a.shape[3:]) for places in every]


def _mix(coefficients: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
  """A weighted sum of the arrays for each row of coefficients."""
  return [
    functools.reduce(operator.add, [float(k) * a for k, a in zip(row, arrays, strict=True) if k])
    for row in coefficients
  ]


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mixtures of inputs [6 6], of the kernel's taps [6 3], and of results to outputs [4 6].

  Toom and Cook's multiplication of polynomials, transposed (Lavin and Gray, section 4.1). Of a
  polynomial's values at its points the inputs' mixtures interpolate, infinity last.
  """
  of_inputs, of_kernel = np.zeros((_INPUTS, _INPUTS)), np.zeros((_INPUTS, TAPS))
  to_outputs = np.zeros((_OUTPUTS, _INPUTS))
  for i, point in enumerate(_POINTS):
    others = [other for other in _POINTS if other != point]
    of_inputs[i, : len(_POINTS)] = np.poly(others)[::-1]
    of_kernel[i] = point ** np.arange(TAPS) / np.prod(point - np.array(others))
    to_outputs[:, i] = point ** np.arange(_OUTPUTS)
  of_inputs[-1] = np.poly(_POINTS)[::-1]
  of_kernel[-1, -1] = to_outputs[-1, -1] = 1
  return of_inputs, of_kernel, to_outputs


_OF_INPUTS, _OF_KERNEL, _TO_OUTPUTS = _matrices()
