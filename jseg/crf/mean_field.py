"""Mean-field inference, Krähenbühl and Koltun 2011, arXiv:1210.5644, algorithm 1."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jseg.types import Array


class Kernel(NamedTuple):
  """A Gaussian kernel K_m over the pixels and its weight w_m.

  Attributes:
    apply: maps q [n k] to the messages K_m q [n k].
    weight: float [], one per class [k], or a matrix [k k] that mixes the classes' messages.
    overflow: bool [], whether the lattice of the kernel is incomplete and its messages are wrong.
  """

  apply: Callable[[Array], Array]
  weight: Array
  overflow: Array | bool = False


def mean_field(
  unary: Array,
  kernels: Sequence[Kernel],
  compatibility: Array | None,
  iterations: int,
) -> Array:
  """Runs algorithm 1 of the paper for a fixed number of iterations.

  As in the authors' code, a pixel's message to itself is not removed.

  Args:
    unary: [n k] logits, the negative unary potentials -psi_u.
    kernels: the kernels of the pairwise potential.
    compatibility: label compatibility mu: [k k], its diagonal [k], or None for Potts, -1 for equal
      labels.
    iterations: number of updates.

  Returns:
    [n k] logits of the marginals: softmax over classes gives q.
  """
  if not kernels or not iterations:
    return unary

  def update(logits: Array, _: None) -> tuple[Array, None]:
    q = jax.nn.softmax(logits)
    message = jnp.zeros_like(q)
    for kernel in kernels:  # message passing
      message = message + _multiply_classes(kernel.apply(q), kernel.weight)
    cost = -message if compatibility is None else _multiply_classes(message, compatibility)
    return unary - cost, None  # local update; the softmax above normalizes it

  return lax.scan(update, unary, None, length=iterations)[0]


def _multiply_classes(message: Array, weight: Array) -> Array:
  """Multiplies each pixel's [n k] by a number, a diagonal [k] or a matrix [k k] over classes."""
  if weight.ndim == 2:
    return jnp.dot(message, weight.T, precision=lax.Precision.HIGHEST)
  return message * (weight if weight.ndim == 0 else weight[None])
