"""Gaussian filters over the pixel grid, and exact and low-rank filters over features."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.types import Array

SIGMAS = 4.5
"""Where the taps of a filter end; what is cut off weighs 7e-6 of the whole."""
MAX_RADIUS = 40
"""From here on a matrix product is quicker than taps, and cuts nothing off."""


def axis_matrix(n: int, sigma: Array) -> Array:
  """exp(-(i - j)^2 / 2 sigma^2), [n n]."""
  i = jnp.arange(n, dtype=sigma.dtype)
  return jnp.exp(-0.5 * jnp.square((i[:, None] - i[None]) / sigma))


def grid_filter(x: Array, sigmas: Array, radii: Sequence[int] | None = None) -> Array:
  """Separable Gaussian exp(-|p - q|^2 / 2 sigma^2) along every spatial axis, zero outside.

  Args:
    x: [h w c], or with any other number of spatial dimensions.
    sigmas: one per spatial axis, in pixels.
    radii: how many taps to each side, where the sigmas are known before tracing; matrix products,
      exact but slower for small sigmas, if None.
  """
  for axis, n in enumerate(x.shape[:-1]):
    sigma = sigmas[axis]
    if radii is None or radii[axis] > MAX_RADIUS or radii[axis] >= n - 1:
      x = _matrix_product(axis_matrix(n, sigma), x, axis)
    else:
      x = _taps(x, sigma, radii[axis], axis)
  return x


def _matrix_product(matrix: Array, x: Array, axis: int) -> Array:
  before = int(np.prod(x.shape[:axis]))
  after = int(np.prod(x.shape[axis + 1 :]))
  flat = x.reshape(before, x.shape[axis], after)
  y = jnp.einsum("ij,bjc->bic", matrix, flat, precision=lax.Precision.HIGHEST)
  return y.reshape(x.shape)


def _taps(x: Array, sigma: Array, radius: int, axis: int) -> Array:
  pad = [(0, 0)] * x.ndim
  pad[axis] = (radius, radius)
  n = x.shape[axis]
  weights = jnp.exp(-0.5 * jnp.square(np.arange(radius + 1) / sigma)).astype(x.dtype)

  # A scan over one stripe is no loop, but keeps XLA from fusing this axis into the next.
  def stripe(padded: Array) -> Array:
    y = lax.slice_in_dim(padded, radius, radius + n, axis=axis)
    for i in range(1, radius + 1):
      y = y + weights[i] * (
        lax.slice_in_dim(padded, radius - i, radius - i + n, axis=axis)
        + lax.slice_in_dim(padded, radius + i, radius + i + n, axis=axis)
      )
    return y

  return stripe(jnp.pad(x, pad))


def exact_filter(x: Array, features: Array, block: int = 256) -> Array:
  """exp(-|f_i - f_j|^2 / 2) times x, in blocks of rows; O(n^2 (d + c)).

  Args:
    x: [n c].
    features: [n d], in standard deviations.
    block: rows at a time.
  """
  n, d = features.shape
  count = -(-n // block)
  queries = jnp.pad(features, ((0, count * block - n), (0, 0)))

  @jax.checkpoint
  def rows(query: Array) -> Array:
    # Not |a|^2 + |b|^2 - 2 ab, which cancels badly where colours are many deviations apart.
    squares = jnp.zeros((block, n), x.dtype)
    for i in range(d):
      squares = squares + jnp.square(query[:, i][:, None] - features[:, i][None])
    kernel = jnp.exp(-0.5 * squares)
    return jnp.dot(kernel, x, precision=lax.Precision.HIGHEST)

  y = lax.map(rows, queries.reshape(count, block, d))
  return y.reshape(count * block, -1)[:n]


def landmark_factors(colours: Array, count: int) -> Array:
  """Low-rank factor phi of the colour kernel: phi phi^T is about exp(-|c_i - c_j|^2 / 2).

  The Nystroem method with landmarks that lie as far from one another as can be found, one by one.

  Args:
    colours: [n c], in standard deviations.
    count: number of landmarks; the rank.

  Returns:
    [n count].
  """
  n = colours.shape[0]
  fixed = lax.stop_gradient(colours)

  def pick(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
    nearest, at = state
    nearest = jnp.minimum(nearest, jnp.square(fixed - fixed[at][None]).sum(1))
    return (nearest, jnp.argmax(nearest)), at

  start = (jnp.full(n, jnp.inf, colours.dtype), jnp.zeros((), jnp.argmax(fixed[:, 0]).dtype))
  chosen = lax.scan(pick, start, None, length=min(count, n))[1]
  landmarks = colours[chosen]

  def kernel(a: Array) -> Array:
    squares = jnp.square(a[:, None] - landmarks[None]).sum(-1)
    return jnp.exp(-0.5 * squares)

  # The jitter keeps equal colours, of flat images, from being a singular matrix.
  small = kernel(landmarks) + 1e-4 * jnp.eye(landmarks.shape[0], dtype=colours.dtype)
  root = jnp.linalg.cholesky(small)
  return jax.scipy.linalg.solve_triangular(root, kernel(colours).T, lower=True).T


def landmark_filter(x: Array, factors: Array, matrices: Sequence[Array]) -> Array:
  """sum_r phi_r G(phi_r x), G the separable Gaussian over the grid.

  Args:
    x: [h w c], or with any other number of spatial dimensions.
    factors: [n rank].
    matrices: `axis_matrix` of each spatial axis.
  """

  @jax.checkpoint
  def add(total: Array, factor: Array) -> tuple[Array, None]:
    factor = factor.reshape(*x.shape[:-1], 1)
    y = x * factor
    for axis, matrix in enumerate(matrices):
      y = _matrix_product(matrix, y, axis)
    return total + y * factor, None

  return lax.scan(add, jnp.zeros_like(x), factors.T)[0]
