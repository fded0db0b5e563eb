"""Mean-field inference in the fully connected CRF.

Krähenbühl and Koltun 2011, arXiv:1210.5644, algorithm 1, in the variant of the authors' code and of
pydensecrf: kernels are normalised and the self-term stays in.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf import gaussian, lattice
from jseg.types import Array, InputError

NORMALIZATIONS = ("symmetric", "before", "after", "none")
METHODS = ("lattice", "landmarks", "exact")
SPATIAL_FILTERS = ("exact", "lattice")


@flax.struct.dataclass
class CrfParams:
  """What a dense CRF needs beside logits and image. The defaults are DeepLab V2's.

  Everything without "static" may be an array, traced and differentiated.

  Attributes:
    iterations: static; mean-field steps.
    spatial_weight: how strongly near pixels ask for equal labels: a number, one per class [k], or a
      matrix [k k] that mixes the classes' messages. Plain zeros switch the kernel off.
    spatial_sigma: in pixels; a number or one per spatial axis in array order, (y, x) or (z, y, x).
    bilateral_weight: the same for pixels that are near and of similar colour.
    bilateral_sigma_xy: in pixels; a number or one per spatial axis in array order.
    bilateral_sigma_rgb: in the image's units; a number or one per channel.
    compatibility: cost mu of two labels next to each other: None for Potts (-1 for equal labels),
      [k] for a diagonal, [k k] for a full matrix, mu[l, l'] the cost of l beside l'.
    normalization: static; of each kernel: "symmetric" D^-1/2 K D^-1/2, "before" K D^-1, "after"
      D^-1 K, "none" K, where D holds the row sums of K.
    method: static; filter of the bilateral kernel: "lattice", "landmarks" or "exact".
    spatial_filter: static; "exact", or "lattice" as in pydensecrf.
    landmarks: static; number of colours that `method="landmarks"` interpolates between.
    capacity: static; number of vertices that the lattice can hold under jit. By default as many as
      could ever be needed, which costs memory; `lattice_size` says how many an image needs.
  """

  iterations: int = flax.struct.field(pytree_node=False, default=10)
  spatial_weight: Any = 3.0
  spatial_sigma: Any = 1.0
  bilateral_weight: Any = 4.0
  bilateral_sigma_xy: Any = 67.0
  bilateral_sigma_rgb: Any = 3.0
  compatibility: Any = None
  normalization: str = flax.struct.field(pytree_node=False, default="symmetric")
  method: str = flax.struct.field(pytree_node=False, default="lattice")
  spatial_filter: str = flax.struct.field(pytree_node=False, default="exact")
  landmarks: int = flax.struct.field(pytree_node=False, default=128)
  capacity: int | None = flax.struct.field(pytree_node=False, default=None)


def dense_crf(logits: Any, image: Any, params: CrfParams | None = None, *, ndim: int = 2) -> Array:
  """Mean-field marginals of the dense CRF.

  Called with plain arrays it looks at the image to size the lattice, checks all values and compiles
  by itself; under jit, grad or vmap everything is static and values can't be checked.

  Args:
    logits: [h w k] (volumes: [d h w k]), or with a leading batch axis, whose images are worked
      through one by one.
    image: [h w c], the same sizes; colours usually in 0..255. Any number of channels.
    params: the CRF's parameters.
    ndim: number of spatial dimensions, 3 for volumes.

  Returns:
    float32, shaped as logits, summing to 1 over classes. NaN everywhere if under jit the lattice
    overflowed its capacity.

  Raises:
    InputError: shapes or settings that don't go together; unless traced, also NaN or +inf in logits
      or image, bandwidths that aren't positive, and a lattice too fine for its 64-bit keys.
  """
  return jnp.exp(log_marginals(logits, image, params, ndim=ndim))


def log_marginals(
  logits: Any, image: Any, params: CrfParams | None = None, *, ndim: int = 2
) -> Array:
  """Logarithm of `dense_crf`, to be used as logits: finite where q underflows."""
  params = CrfParams() if params is None else params
  logits, image = (x if isinstance(x, jax.core.Tracer) else np.asarray(x) for x in (logits, image))
  traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((logits, image, params)))
  check_settings(params)
  _check_shapes(logits, image, params, ndim)
  _check_values(logits, image, params)
  dtype = jnp.promote_types(jax.dtypes.canonicalize_dtype(logits.dtype), jnp.float32)
  radii = _radii(params, ndim)
  off = (_is_zero(params.spatial_weight), _is_zero(params.bilateral_weight))
  logits, image = jnp.asarray(logits, dtype), jnp.asarray(image, dtype)
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)

  def one(pair: tuple[Array, Array]) -> Array:
    if traced:
      return _log_marginals(*pair, params, None, None, radii, off)
    return _sized(*pair, params, radii, off)

  if logits.ndim == ndim + 1:
    return one((logits, image))
  if traced:
    return lax.map(one, (logits, image))
  return jnp.stack([one(pair) for pair in zip(logits, image, strict=True)])


def lattice_size(image: Array, params: CrfParams | None = None) -> int:
  """Number of vertices of the bilateral lattice of one image [h w c] or volume [d h w c]."""
  params = CrfParams() if params is None else params
  image = jnp.asarray(image, jnp.float32)
  points = _sorted(image, params)
  if not bool(points.fits):
    raise _too_fine(params)
  return int(points.size)


def check_settings(params: CrfParams) -> None:
  """Raises InputError for static settings that mean nothing."""
  for name, value, choices in (
    ("normalization", params.normalization, NORMALIZATIONS),
    ("method", params.method, METHODS),
    ("spatial_filter", params.spatial_filter, SPATIAL_FILTERS),
  ):
    if value not in choices:
      raise InputError(f"CRF: {name} {value!r} is not known; choose {', '.join(choices)}")
  if params.iterations < 0:
    raise InputError(f"CRF: iterations {params.iterations} must be 0 or more; 10 is usual")
  if params.landmarks < 1:
    raise InputError(f"CRF: landmarks {params.landmarks} must be 1 or more; 128 is usual")


def _check_shapes(logits: Any, image: Any, params: CrfParams, ndim: int) -> None:
  if logits.ndim not in (ndim + 1, ndim + 2) or image.ndim != logits.ndim:
    raise InputError(
      f"CRF: logits {logits.shape} and image {image.shape} must both have {ndim + 1} dimensions, "
      f"or {ndim + 2} with a batch; grey images need a channel axis, and volumes ndim=3"
    )
  if logits.shape[:-1] != image.shape[:-1]:
    raise InputError(
      f"CRF: logits {logits.shape} and image {image.shape} must agree in all but the last "
      "dimension; resize the logits to the image"
    )
  if 0 in logits.shape or 0 in image.shape:
    raise InputError(f"CRF: logits {logits.shape} and image {image.shape} must not be empty")
  classes = logits.shape[-1]
  for name in ("spatial_weight", "bilateral_weight", "compatibility"):
    value = getattr(params, name)
    allowed = [(classes,), (classes, classes)] + [()] * (name != "compatibility")
    if value is not None and np.shape(value) not in allowed:
      raise InputError(
        f"CRF: {name} has shape {np.shape(value)}; for {classes} classes it must be one of "
        f"{allowed}"
      )
  for name, length, what in (
    ("spatial_sigma", ndim, "spatial axis"),
    ("bilateral_sigma_xy", ndim, "spatial axis"),
    ("bilateral_sigma_rgb", image.shape[-1], "channel"),
  ):
    if np.shape(getattr(params, name)) not in ((), (length,)):
      raise InputError(
        f"CRF: {name} has shape {np.shape(getattr(params, name))}; give one number, or one for "
        f"each {what}: {length}"
      )


def _check_values(logits: Any, image: Any, params: CrfParams) -> None:
  """Checks whatever isn't traced."""
  for name in ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
    value = getattr(params, name)
    if _known(value) and not (np.all(np.asarray(value) > 0) and np.all(np.isfinite(value))):
      raise InputError(f"CRF: {name} {value} must be positive; a weight of 0 switches a kernel off")
  for name in ("spatial_weight", "bilateral_weight", "compatibility"):
    value = getattr(params, name)
    if value is not None and _known(value) and not np.all(np.isfinite(value)):
      raise InputError(f"CRF: {name} {value} must be finite")
  if _known(logits):
    top = logits.max(-1)  # NaN if any is
    if not np.all(np.isfinite(top)):
      raise InputError(
        f"CRF: {int((~np.isfinite(top)).sum())} pixels have logits that are NaN or +inf, or -inf "
        "for every class; a class can be ruled out by -inf, a certain one have a large number"
      )
  if _known(image) and not np.all(np.isfinite(image)):
    raise InputError("CRF: the image holds NaN or infinite values; replace them")


def _known(x: Any) -> bool:
  return not isinstance(x, jax.core.Tracer)


def _is_zero(weight: Any) -> bool:
  return _known(weight) and not np.any(np.asarray(weight))


def _radii(params: CrfParams, ndim: int) -> tuple[int, ...] | None:
  if not _known(params.spatial_sigma):
    return None
  sigmas = np.broadcast_to(np.asarray(params.spatial_sigma), (ndim,))
  return tuple(min(math.ceil(gaussian.SIGMAS * s), 10**6) for s in sigmas)


def _too_fine(params: CrfParams) -> InputError:
  return InputError(
    f"CRF: bandwidths {params.bilateral_sigma_xy} and {params.bilateral_sigma_rgb} need more "
    'lattice cells than 64-bit keys can name; use larger ones, fewer channels, or method="exact"'
  )


def _features(image: Array, params: CrfParams) -> Array:
  """[n, spatial axes + channels] in standard deviations."""
  shape = image.shape[:-1]
  place = _scaled_grid(shape, params.bilateral_sigma_xy, image.dtype)
  return jnp.concatenate([place, _scaled_colours(image, params)], 1)


def _scaled_grid(shape: Sequence[int], sigma: Any, dtype: Any) -> Array:
  # Columns in the order x, y, z: rounding then is pydensecrf's too.
  grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
  sigmas = jnp.broadcast_to(jnp.asarray(sigma, dtype), (len(shape),))
  return (jnp.asarray(grid, dtype) / sigmas[None])[:, ::-1]


def _scaled_colours(image: Array, params: CrfParams) -> Array:
  channels = image.shape[-1]
  sigmas = jnp.broadcast_to(jnp.asarray(params.bilateral_sigma_rgb, image.dtype), (channels,))
  return image.reshape(-1, channels) / sigmas[None]


@jax.jit
def _sorted(image: Array, params: CrfParams) -> lattice.SortedPoints:
  return lattice.sort_points(_features(image, params))


def _sized(logits: Array, image: Array, params: CrfParams, radii: Any, off: Any) -> Array:
  """Runs one image, sizing its lattice first."""
  points = sizes = None
  if params.method == "lattice" and not off[1]:
    points = _sorted(image, params)
    fits, *counts = jax.device_get((points.fits, points.size, points.rows, points.spill))
    if not fits:
      raise _too_fine(params)
    n, corners = points.vertex.shape
    sizes = lattice.fit_sizes(n, corners - 1, *map(int, counts))
  return _compiled(logits, image, params, points, sizes, radii, off)


def _log_marginals(
  logits: Array,
  image: Array,
  params: CrfParams,
  points: lattice.SortedPoints | None,
  sizes: lattice.Sizes | None,
  radii: tuple[int, ...] | None,
  off: tuple[bool, bool],
) -> Array:
  """One image, everything static."""
  shape, classes = logits.shape[:-1], logits.shape[-1]
  unary = jax.nn.log_softmax(logits).reshape(-1, classes)
  kernels = []
  overflow = jnp.zeros((), bool)
  if not off[0]:
    message, flag = _spatial(shape, params, radii, unary.dtype)
    overflow |= flag
    kernels.append((params.spatial_weight, message))
  if not off[1]:
    message, flag = _bilateral(image, params, sizes, points)
    overflow |= flag
    kernels.append((params.bilateral_weight, message))

  def step(log_q: Array, _: None) -> tuple[Array, None]:
    q = jnp.exp(log_q)
    total = jnp.zeros_like(q)
    for weight, message in kernels:
      total = total + _mix(message(q), weight)
    if params.compatibility is not None:
      total = -_mix(total, params.compatibility)
    return jax.nn.log_softmax(unary + total), None

  log_q = unary
  if kernels and params.iterations:
    log_q = lax.scan(step, unary, None, length=params.iterations)[0]
  log_q = jnp.where(overflow, jnp.nan, log_q)
  return log_q.reshape(*shape, classes)


_compiled = jax.jit(_log_marginals, static_argnums=(4, 5, 6))


def _mix(message: Array, weight: Array) -> Array:
  if weight.ndim == 2:
    return jnp.dot(message, weight.T, precision=lax.Precision.HIGHEST)
  return message * (weight if weight.ndim == 0 else weight[None])


def _normalizers(
  raw: Any, n: int, dtype: Any, normalization: str
) -> tuple[Array | None, Array | None]:
  """Factors [n 1] before and after a filter of [n c] arrays."""
  if normalization == "none":
    return None, None
  sums = jnp.maximum(raw(jnp.ones((n, 1), dtype)), 1e-20)
  if normalization == "symmetric":
    return lax.rsqrt(sums), lax.rsqrt(sums)
  return (1 / sums, None) if normalization == "before" else (None, 1 / sums)


def _normalized(raw: Any, n: int, dtype: Any, normalization: str) -> Any:
  before, after = _normalizers(raw, n, dtype, normalization)

  def message(q: Array) -> Array:
    y = raw(q if before is None else q * before)
    return y if after is None else y * after

  return message


def _spatial(
  shape: Sequence[int], params: CrfParams, radii: Any, dtype: Any
) -> tuple[Any, Array | bool]:
  n = math.prod(shape)
  if params.spatial_filter == "lattice":
    points = lattice.sort_points(_scaled_grid(shape, params.spatial_sigma, dtype))
    return _on_lattice(points, lattice.safe_sizes(n, len(shape)), params.normalization)
  sigmas = jnp.broadcast_to(jnp.asarray(params.spatial_sigma, dtype), (len(shape),))

  def raw(x: Array) -> Array:
    return gaussian.grid_filter(x.reshape(*shape, -1), sigmas, radii).reshape(n, -1)

  return _normalized(raw, n, dtype, params.normalization), False


def _bilateral(
  image: Array,
  params: CrfParams,
  sizes: lattice.Sizes | None,
  points: lattice.SortedPoints | None,
) -> tuple[Any, Array | bool]:
  shape, dtype = image.shape[:-1], image.dtype
  n = math.prod(shape)
  if params.method == "lattice":
    if points is None:
      points = lattice.sort_points(_features(image, params))
    if sizes is None:
      sizes = lattice.safe_sizes(n, points.vertex.shape[1] - 1)
      if params.capacity is not None:
        sizes = sizes._replace(capacity=min(params.capacity, sizes.capacity))
        sizes = sizes._replace(rows=min(sizes.rows, sizes.capacity + sizes.rows // 8))
    return _on_lattice(points, sizes, params.normalization)
  if params.method == "exact":
    features = _features(image, params)
    return _normalized(
      lambda x: gaussian.exact_filter(x, features), n, dtype, params.normalization
    ), False
  factors = gaussian.landmark_factors(_scaled_colours(image, params), params.landmarks)
  sigmas = jnp.broadcast_to(jnp.asarray(params.bilateral_sigma_xy, dtype), (len(shape),))
  matrices = [gaussian.axis_matrix(m, sigmas[i]) for i, m in enumerate(shape)]
  return _normalized(
    lambda x: gaussian.landmark_filter(x.reshape(*shape, -1), factors, matrices).reshape(n, -1),
    n,
    dtype,
    params.normalization,
  ), False


def _on_lattice(
  points: lattice.SortedPoints, sizes: lattice.Sizes, normalization: str
) -> tuple[Any, Array]:
  """Normalised filter; its factors go into the weights, so that they cost nothing."""
  grid = lattice.make_lattice(points, sizes)
  weight = points.weight
  n, size = weight.shape
  cut = weight * lattice.scale(size - 1)

  def tables(a: Array, b: Array) -> tuple[Array, Array]:
    return lax.stop_gradient((lattice.table_weights(grid, a), lattice.table_weights(grid, b)))

  before, after = _normalizers(
    lambda x: lattice.lattice_filter(x, weight, cut, tables(weight, cut), grid),
    n,
    weight.dtype,
    normalization,
  )
  splat = weight if before is None else weight * before
  cut = cut if after is None else cut * after
  both = tables(splat, cut)
  return lambda x: lattice.lattice_filter(x, splat, cut, both, grid), grid.overflow
