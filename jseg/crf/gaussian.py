"""Gaussian filters over the pixel grid, and exact and low-rank filters over features."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf.stages import stored
from jseg.types import Array

SIGMAS = 4.5
"""Where the taps of a filter end; what is cut off weighs 7e-6 of the whole."""
MAX_RADIUS = 40
"""From here on a matrix product is quicker than taps, and cuts nothing off."""
HALF_FROM = 2.5
"""From this sigma on half the resolution is enough; see `axis_filter`."""


class AxisPlan(NamedTuple):
  """How to filter along an axis whose sigma is known before tracing.

  Attributes:
    radius: number of taps to each side.
    half: whether at half the resolution.
  """

  radius: int
  half: bool


def plan_axis(sigma: float, *, half: bool) -> AxisPlan:
  """Taps for a sigma in pixels, at half the resolution if that is allowed and close."""
  half = half and sigma >= HALF_FROM
  return AxisPlan(min(math.ceil(SIGMAS * (_half_sigma(sigma) if half else sigma)), 10**6), half)


def _half_sigma(sigma: Any) -> Any:
  # Going down and up adds a variance of 3/4 each.
  return (sigma * sigma / 4 - 0.375) ** 0.5


def axis_matrix(n: int, sigma: Array) -> Array:
  """exp(-(i - j)^2 / 2 sigma^2), [n n]."""
  i = jnp.arange(n, dtype=sigma.dtype)
  return jnp.exp(-0.5 * jnp.square((i[:, None] - i[None]) / sigma))


class Stencil(NamedTuple):
  """Sums of few elements along an axis: y_i = sum_t weight[t, i] x[source[t, i]].

  Attributes:
    source: int32 [t m].
    weight: [t m].
  """

  source: np.ndarray
  weight: Array


class AxisFilter(NamedTuple):
  """A Gaussian along one axis.

  Attributes:
    down: to half the resolution; None if it is done at full.
    middle: the Gaussian, as a matrix if it is wide.
    up: back to full resolution.
  """

  down: Stencil | None
  middle: Stencil | Array
  up: Stencil | None


def axis_filter(n: int, sigma: Array, plan: AxisPlan | None = None) -> AxisFilter:
  """exp(-(i - j)^2 / 2 sigma^2) along an axis of n elements, zero outside.

  At half the resolution the axis is shrunk by [1 3 3 1], and enlarged linearly, which is the
  transpose of that. The absolute errors of the kernel then sum up to 1.6 % of the kernel's sum at a
  sigma of 2.5, .8 % at 3, .3 % at 4.

  Args:
    n: length.
    sigma: in elements.
    plan: None where sigma isn't known before tracing: a matrix product, exact but slower for small
      sigmas.
  """
  if plan is None or not plan.half:
    return AxisFilter(None, _gaussian(n, sigma, plan), None)
  half = _half_sigma(sigma)
  cells = np.arange(-(-n // 2) + 2)  # One beyond either end.
  down = _stencil(2 * cells - 2, {-1: 0.25, 0: 0.75, 1: 0.75, 2: 0.25}, n)
  places = np.arange(n)
  side = np.where(places % 2, 1, -1)
  up = Stencil(
    np.stack([places // 2 + 1, places // 2 + 1 + side]).astype(np.int32),
    jnp.broadcast_to(jnp.array([[0.75], [0.25]]) * (sigma / half / 2), (2, n)),
  )
  return AxisFilter(down, _gaussian(len(cells), half, plan), up)


def _gaussian(n: int, sigma: Array, plan: AxisPlan | None) -> Stencil | Array:
  if plan is None or plan.radius > MAX_RADIUS or plan.radius >= n - 1:
    return axis_matrix(n, sigma)
  offsets = range(-plan.radius, plan.radius + 1)
  return _stencil(np.arange(n), {i: jnp.exp(-0.5 * jnp.square(i / sigma)) for i in offsets}, n)


def _stencil(centre: np.ndarray, taps: Mapping[int, Any], n: int) -> Stencil:
  at = centre + np.array(list(taps))[:, None]
  weight = jnp.stack([jnp.asarray(w) for w in taps.values()])[:, None] * ((at >= 0) & (at < n))
  return Stencil(np.clip(at, 0, n - 1).astype(np.int32), weight)


def scale_filter(f: AxisFilter, before: Array, after: Array | None) -> AxisFilter:
  """With factors [n] before and after it, which cost nothing there."""

  def scaled(step: Any, before: Array | None, after: Array | None) -> Any:
    taps = isinstance(step, Stencil)
    weight = step.weight if taps else step
    if before is not None:
      weight = weight * (before[step.source] if taps else before[None])
    if after is not None:
      weight = weight * (after[None] if taps else after[:, None])
    return step._replace(weight=weight) if taps else weight

  if f.down is None:
    return f._replace(middle=scaled(f.middle, before, after))
  return f._replace(down=scaled(f.down, before, None), up=scaled(f.up, None, after))


def grid_filter(x: Array, filters: Sequence[AxisFilter]) -> Array:
  """Filters [h w c], or with any other number of spatial dimensions, along each of these."""
  down = [f.down for f in filters]
  x = stored(functools.partial(_along_all, steps=down), x) if any(down) else x
  for axis, f in enumerate(filters):
    along = functools.partial(_along, step=f.middle, axis=axis)
    last = axis == len(filters) - 1 and not any(f.up for f in filters)
    # What reads the last one does so once for each element; products are stored anyway.
    x = stored(along, x) if isinstance(f.middle, Stencil) and not last else along(x)
  return _along_all(x, [f.up for f in filters])


def _along_all(x: Array, steps: Sequence[Stencil | None]) -> Array:
  for axis, step in enumerate(steps):
    x = x if step is None else _along(x, step, axis)
  return x


def _along(x: Array, step: Stencil | Array, axis: int) -> Array:
  if not isinstance(step, Stencil):
    return _matrix_product(step, x, axis)
  # Gathers of rows are as quick as slices, and need no padding.
  lead = (slice(None),) * axis
  total: Array | None = None
  for source, weight in zip(step.source, step.weight, strict=True):
    weight = lax.broadcast_in_dim(
      weight, (*(1,) * axis, len(source), *(1,) * (x.ndim - axis - 1)), (axis,)
    )
    term = x.at[(*lead, source)].get(mode="promise_in_bounds") * weight
    total = term if total is None else total + term
  assert total is not None
  return total


def _matrix_product(matrix: Array, x: Array, axis: int) -> Array:
  before = int(np.prod(x.shape[:axis]))
  after = int(np.prod(x.shape[axis + 1 :]))
  flat = x.reshape(before, x.shape[axis], after)
  y = jnp.einsum("ij,bjc->bic", matrix, flat, precision=lax.Precision.HIGHEST)
  return y.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


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
