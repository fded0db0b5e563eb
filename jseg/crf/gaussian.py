"""Gaussian filters over the pixel grid, and low-rank filters over features."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.arithmetic import cdiv
from jseg.crf.stages import stored
from jseg.types import Array

_Number = TypeVar("_Number", float, Array)

CUTOFF = 4.5
"""Standard deviations at which a filter is cut off; the rest has 7e-6 of its mass."""
MAX_RADIUS = 40
"""Largest number of taps to each side; beyond it a matrix product, without cut-off, is faster."""
HALF_FROM = 2.5
"""Smallest sigma in pixels that may be filtered at half the resolution; see `axis_filter`."""


class AxisPlan(NamedTuple):
  """How to filter along an axis.

  Attributes:
    radius: number of taps to each side; None where sigma is traced.
    half: whether to filter at half the resolution; where sigma is traced, whether that is allowed.
  """

  radius: int | None
  half: bool


def plan_axis(sigma: float | None, *, half: bool) -> AxisPlan:
  """Plans the filter for a sigma in pixels, at half the resolution if allowed and accurate.

  Args:
    sigma: standard deviation; None where it is traced.
    half: whether half the resolution is allowed.
  """
  if sigma is None:
    return AxisPlan(None, half)
  half = half and sigma >= HALF_FROM
  return AxisPlan(min(math.ceil(CUTOFF * (_half_sigma(sigma) if half else sigma)), 10**6), half)


def _half_sigma(sigma: _Number) -> _Number:
  # Going down and up adds a variance of 3/4 each.
  return (sigma * sigma / 4 - 0.375) ** 0.5


def axis_matrix(n: int, sigma: Array) -> Array:
  """Returns the matrix exp(-(i - j)^2 / 2 sigma^2), [n n]."""
  i = jnp.arange(n, dtype=sigma.dtype)
  return jnp.exp(-0.5 * jnp.square((i[:, None] - i[None]) / sigma))


class Stencil(NamedTuple):
  """A weighted sum of few elements along an axis: y_i = sum_t weight[t, i] x[source[t, i]].

  Attributes:
    source: int32 [t m], number of the t-th element that output i reads.
    weight: [t m], weight of that element.
  """

  source: np.ndarray
  weight: Array


class AxisFilter(NamedTuple):
  """A Gaussian filter along one axis.

  Attributes:
    down: stencil to half the resolution; None at full resolution.
    middle: the Gaussian, a stencil, or a matrix where it is wide.
    up: stencil back to full resolution; None at full resolution.
  """

  down: Stencil | None
  middle: Stencil | Array
  up: Stencil | None


def axis_filter(n: int, sigma: Array, plan: AxisPlan) -> AxisFilter:
  """Makes the filter exp(-(i - j)^2 / 2 sigma^2) along an axis of n elements, zero outside.

  At half the resolution the axis is shrunk by [1 3 3 1], and enlarged linearly, which is the
  transpose of that. The absolute errors of the kernel then sum up to 1.6 % of the kernel's sum at a
  sigma of 2.5, .8 % at 3, .3 % at 4.

  Args:
    n: length of the axis.
    sigma: standard deviation in elements.
    plan: `plan_axis` of sigma. Where sigma is traced, the filter is one matrix with the same
      values, which is slower for small sigmas.
  """
  if plan.radius is None:
    return AxisFilter(None, _matrix_of_traced(n, sigma, half=plan.half), None)
  if plan.half:
    return _half_filter(n, sigma, functools.partial(_gaussian, radius=plan.radius))
  return AxisFilter(None, _gaussian(n, sigma, plan.radius), None)


def _half_filter(
  n: int, sigma: Array, gaussian: Callable[[int, Array], Stencil | Array]
) -> AxisFilter:
  """The filter at half the resolution; `gaussian` makes its middle by length and sigma."""
  half = _half_sigma(sigma)
  cells = np.arange(cdiv(n, 2) + 2)  # one beyond either end
  down = _stencil(2 * cells - 2, {-1: 0.25, 0: 0.75, 1: 0.75, 2: 0.25}, n)
  places = np.arange(n)
  side = np.where(places % 2, 1, -1)
  up = Stencil(
    np.stack([places // 2 + 1, places // 2 + 1 + side]).astype(np.int32),
    jnp.broadcast_to(jnp.array([[0.75], [0.25]]) * (sigma / half / 2), (2, n)),
  )
  return AxisFilter(down, gaussian(len(cells), half), up)


def _gaussian(n: int, sigma: Array, radius: int) -> Stencil | Array:
  if radius > MAX_RADIUS or radius >= n - 1:
    return axis_matrix(n, sigma)
  offsets = range(-radius, radius + 1)
  return _stencil(np.arange(n), {i: jnp.exp(-0.5 * jnp.square(i / sigma)) for i in offsets}, n)


def _matrix_of_traced(n: int, sigma: Array, *, half: bool) -> Array:
  """The matrix [n n] of the filter that a concrete sigma of this value has."""
  whole = _cut_matrix(n, sigma)
  if not half:
    return whole
  wide = sigma >= HALF_FROM
  # Where it isn't used, a narrow sigma would make it NaN, and with it the derivative.
  shrunk = _half_filter(n, jnp.where(wide, sigma, HALF_FROM), _cut_matrix)
  return jnp.where(wide, grid_filter(jnp.eye(n, dtype=sigma.dtype), [shrunk]), whole)


def _cut_matrix(n: int, sigma: Array) -> Array:
  """`axis_matrix`, cut off where `_gaussian` does so."""
  radius = jnp.ceil(CUTOFF * lax.stop_gradient(sigma))
  i = jnp.arange(n)
  uncut = (radius > MAX_RADIUS) | (radius >= n - 1)
  return jnp.where(uncut | (abs(i[:, None] - i[None]) <= radius), axis_matrix(n, sigma), 0)


def _stencil(center: np.ndarray, taps: Mapping[int, float | Array], n: int) -> Stencil:
  at = center + np.array(list(taps))[:, None]
  weight = jnp.stack([jnp.asarray(w) for w in taps.values()])[:, None] * ((at >= 0) & (at < n))
  return Stencil(np.clip(at, 0, n - 1).astype(np.int32), weight)


def scale_filter(f: AxisFilter, before: Array, after: Array | None) -> AxisFilter:
  """Multiplies factors [n] before and after a filter into its weights, where they cost nothing."""
  if f.down is not None and f.up is not None:
    return f._replace(
      down=_scale_stencil(f.down, before, None), up=_scale_stencil(f.up, None, after)
    )
  if isinstance(f.middle, Stencil):
    return f._replace(middle=_scale_stencil(f.middle, before, after))
  matrix = f.middle * before[None]
  return f._replace(middle=matrix if after is None else matrix * after[:, None])


def _scale_stencil(stencil: Stencil, before: Array | None, after: Array | None) -> Stencil:
  weight = stencil.weight
  if before is not None:
    weight = weight * before[stencil.source]
  if after is not None:
    weight = weight * after[None]
  return stencil._replace(weight=weight)


def grid_filter(x: Array, filters: Sequence[AxisFilter]) -> Array:
  """Filters x [h w c], with any number of spatial axes, along each of these."""
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


def landmark_factors(colors: Array, count: int) -> Array:
  """Finds a low-rank factor phi of the color kernel: phi phi^T is about exp(-|c_i - c_j|^2 / 2).

  The Nyström method (Williams and Seeger 2001); each landmark is the color farthest from those
  chosen before.

  Args:
    colors: [n c] in standard deviations.
    count: number of landmarks, the rank of phi; at most n are used.

  Returns:
    phi [n count].
  """
  n = colors.shape[0]
  fixed = lax.stop_gradient(colors)

  def pick(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
    nearest, at = state
    nearest = jnp.minimum(nearest, jnp.square(fixed - fixed[at][None]).sum(1))
    return (nearest, jnp.argmax(nearest)), at

  start = (jnp.full(n, jnp.inf, colors.dtype), jnp.zeros((), jnp.argmax(fixed[:, 0]).dtype))
  chosen = lax.scan(pick, start, None, length=min(count, n))[1]
  landmarks = colors[chosen]

  def kernel(a: Array) -> Array:
    squares = jnp.square(a[:, None] - landmarks[None]).sum(-1)
    return jnp.exp(-0.5 * squares)

  # The jitter keeps equal colors, of flat images, from being a singular matrix.
  small = kernel(landmarks) + 1e-4 * jnp.eye(landmarks.shape[0], dtype=colors.dtype)
  root = jnp.linalg.cholesky(small)
  return jax.scipy.linalg.solve_triangular(root, kernel(colors).T, lower=True).T


def landmark_filter(x: Array, factors: Array, matrices: Sequence[Array]) -> Array:
  """Computes sum_r phi_r G(phi_r x), where G is the separable Gaussian over the pixel grid.

  Args:
    x: [h w c] values, with any number of spatial axes.
    factors: phi [n rank] of `landmark_factors`.
    matrices: `axis_matrix` of each spatial axis.

  Returns:
    Shaped like x.
  """

  @jax.checkpoint
  def add(total: Array, factor: Array) -> tuple[Array, None]:
    factor = factor.reshape(*x.shape[:-1], 1)
    y = x * factor
    for axis, matrix in enumerate(matrices):
      y = _matrix_product(matrix, y, axis)
    return total + y * factor, None

  return lax.scan(add, jnp.zeros_like(x), factors.T)[0]
