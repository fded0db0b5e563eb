"""The spatial and the bilateral kernel of the dense CRF, normalized."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf import gaussian, lattice
from jseg.crf.blocks import make_blocks
from jseg.crf.embedding import Embedding, colors, pixel_corners, positions, traced_embedding
from jseg.crf.exact import exact_filter
from jseg.crf.mean_field import Kernel
from jseg.crf.params import CrfParams, is_traced
from jseg.types import Array

Filter: TypeAlias = Callable[[Array], Array]
"""A linear map of values [n c]."""


class Plan(NamedTuple):
  """Decisions taken from concrete values before tracing; hashable.

  Attributes:
    spatial: whether there is a spatial kernel.
    bilateral: whether there is a bilateral kernel.
    axes: how the spatial kernel filters along each axis.
  """

  spatial: bool
  bilateral: bool
  axes: tuple[gaussian.AxisPlan, ...]


class PreparedImage(NamedTuple):
  """Data about an image that the host computes before the compiled program runs.

  Attributes:
    axes: [n] per spatial axis, 1 for pixels and 0 for padding; None under jit, where images are not
      padded.
    spatial: embedding of the spatial kernel; empty if it needs no lattice, and under jit.
    bilateral: embeddings of the bilateral kernel, one per lattice; empty likewise.
  """

  axes: Sequence[Array | np.ndarray] | None = None
  spatial: Sequence[Embedding] = ()
  bilateral: Sequence[Embedding] = ()


def make_plan(params: CrfParams, ndim: int) -> Plan:
  """Plans the kernels of `params` for images of `ndim` spatial axes."""

  def is_on(weight: object) -> bool:
    return is_traced(weight) or bool(np.any(np.asarray(weight)))

  sigmas: Sequence[float | None] = [None] * ndim
  if not is_traced(params.spatial_sigma):
    sigmas = np.broadcast_to(np.asarray(params.spatial_sigma), (ndim,)).tolist()
  half = params.spatial_filter == "half"
  axes = tuple(gaussian.plan_axis(sigma, half=half) for sigma in sigmas)
  return Plan(is_on(params.spatial_weight), is_on(params.bilateral_weight), axes)


def make_kernels(
  image: Array, params: CrfParams, prepared: PreparedImage, plan: Plan
) -> list[Kernel]:
  """Makes the kernels that `plan` has switched on.

  Args:
    image: [h w c] or [d h w c].
    params: the parameters; those that aren't static are arrays.
    prepared: data of the host about this image.
    plan: `make_plan` of the parameters.
  """
  axes = [jnp.ones(n, image.dtype) for n in image.shape[:-1]]
  if prepared.axes is not None:
    axes = [jnp.asarray(valid) for valid in prepared.axes]
  kernels = []
  if plan.spatial:
    kernels.append(spatial_kernel(params, axes, prepared.spatial, plan.axes))
  if plan.bilateral:
    valid = functools.reduce(jnp.multiply.outer, axes).reshape(-1)
    kernels.append(bilateral_kernel(image, params, valid, prepared.bilateral))
  return kernels


def spatial_kernel(
  params: CrfParams,
  axes: Sequence[Array],
  embeddings: Sequence[Embedding],
  plans: Sequence[gaussian.AxisPlan],
) -> Kernel:
  """Smoothness kernel exp(-|p_i - p_j|^2 / 2 spatial_sigma^2).

  Args:
    params: the parameters.
    axes: [n] per spatial axis, 1 for pixels and 0 for padding.
    embeddings: the lattice, if it is known and there is one.
    plans: plan of each axis.
  """
  shape = tuple(map(len, axes))
  weight, sigma = jnp.asarray(params.spatial_weight), jnp.asarray(params.spatial_sigma)
  if params.spatial_filter == "lattice":
    if not embeddings:
      embeddings = [traced_embedding(pixel_corners(shape, 0, sigma), 0, len(shape))]
    return _lattice_kernel(weight, embeddings, params.normalization)
  sigmas = jnp.broadcast_to(sigma, (len(shape),))
  filters = []
  for axis, valid in enumerate(axes):
    # Row sums are products of those along the axes, and so are the factors.
    along = gaussian.axis_filter(len(valid), sigmas[axis], plans[axis])
    one_axis = functools.partial(gaussian.grid_filter, filters=[along])
    filters.append(
      gaussian.scale_filter(along, *_normalizers(one_axis, valid, params.normalization))
    )

  def apply(q: Array) -> Array:
    return gaussian.grid_filter(q.reshape(*shape, -1), filters).reshape(q.shape)

  return Kernel(apply, weight)


def bilateral_kernel(
  image: Array,
  params: CrfParams,
  valid: Array,
  embeddings: Sequence[Embedding],
) -> Kernel:
  """Appearance kernel exp(-|p_i - p_j|^2 / 2 sigma_xy^2 - |I_i - I_j|^2 / 2 sigma_rgb^2).

  Args:
    image: [h w c] or [d h w c].
    params: the parameters.
    valid: [n], 1 for pixels and 0 for padding.
    embeddings: the lattices, if they are known; they are made otherwise.
  """
  shape = image.shape[:-1]
  weight, sigma_rgb = jnp.asarray(params.bilateral_weight), jnp.asarray(params.bilateral_sigma_rgb)
  sigmas = jnp.broadcast_to(jnp.asarray(params.bilateral_sigma_xy), (len(shape),))
  if params.method == "lattice":
    if not embeddings:
      turns = range(params.lattices)
      corners = [pixel_corners(shape, turn, sigmas, sigma_rgb, image) for turn in turns]
      embeddings = [
        traced_embedding(c, turn, len(shape), params.capacity) for turn, c in enumerate(corners)
      ]
    return _lattice_kernel(weight, embeddings, params.normalization)
  if params.method == "exact":
    features = jnp.concatenate([positions(shape, sigmas), colors(image, sigma_rgb)], 1)
    blocks = make_blocks(features, valid, params.tolerance)
    raw: Filter = functools.partial(exact_filter, features=features, blocks=blocks)
  else:
    factors = gaussian.landmark_factors(colors(image, sigma_rgb), params.landmarks)
    matrices = [gaussian.axis_matrix(n, sigmas[i]) for i, n in enumerate(shape)]

    def raw(x: Array) -> Array:
      return gaussian.landmark_filter(x.reshape(*shape, -1), factors, matrices).reshape(x.shape)

  return Kernel(_normalized(raw, valid, params.normalization), weight)


def _normalizers(raw: Filter, valid: Array, normalization: str) -> tuple[Array, Array | None]:
  """Factors [n] before and after a filter that normalize it; the first is 0 for padding."""
  if normalization == "none":
    return valid, None
  sums = jnp.maximum(raw(valid[:, None])[:, 0], 1e-20)
  if normalization == "symmetric":
    return lax.rsqrt(sums) * valid, lax.rsqrt(sums)
  return (valid / sums, None) if normalization == "before" else (valid, 1 / sums)


def _normalized(raw: Filter, valid: Array, normalization: str) -> Filter:
  before, after = _normalizers(raw, valid, normalization)

  def apply(q: Array) -> Array:
    y = raw(q * before[:, None])
    return y if after is None else y * after[:, None]

  return apply


def _lattice_kernel(weight: Array, embeddings: Sequence[Embedding], normalization: str) -> Kernel:
  """Normalized mean of lattice filters; all factors go into the weights, where they cost nothing.

  Padding is on no vertex but the sink, and needs no zeros.
  """
  mean = _lattice_mean(embeddings, None, None)
  everywhere = jnp.ones_like(embeddings[0].weight[0])
  before, after = _normalizers(mean, everywhere, normalization)
  overflow = functools.reduce(jnp.logical_or, [e.lattice.overflow for e in embeddings])
  return Kernel(_lattice_mean(embeddings, before, after), weight, overflow)


def _lattice_mean(
  embeddings: Sequence[Embedding], before: Array | None, after: Array | None
) -> Filter:
  """Mean of lattice filters, with factors [n] before and after it."""
  factor = lattice.scale(len(embeddings[0].weight) - 1) / len(embeddings)
  filters: list[Filter] = []
  for weight, grid in embeddings:
    # Multiplied here, once and not in every iteration.
    splat = weight if before is None else weight * before[None]
    cut = weight * (factor if after is None else (factor * after)[None])
    filters.append(functools.partial(lattice.lattice_filter, splat=splat, cut=cut, lattice=grid))

  def apply(x: Array) -> Array:
    return functools.reduce(jnp.add, [f(x) for f in filters])

  return apply
