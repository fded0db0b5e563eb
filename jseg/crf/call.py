"""Calls of the dense CRF: checks of arrays, padding, lattices on the host, compiled programs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.arithmetic import cdiv
from jseg.crf.embedding import Embedding, host_embedding, pixel_corners
from jseg.crf.kernels import Plan, PreparedImage, make_kernels, make_plan
from jseg.crf.lattice import Corners
from jseg.crf.mean_field import mean_field
from jseg.crf.params import (
  EXACT_PIXELS,
  SIGMAS,
  WEIGHTS,
  CrfParams,
  check_params,
  check_shapes,
  is_traced,
)
from jseg.crf.stages import filled
from jseg.types import Array, InputError

_T = TypeVar("_T")
Normalize: TypeAlias = Callable[[Array], Array]
"""Softmax or log-softmax over the last axis."""
_COMPILED_FOR = {"tpu": "tpu", "cuda": "gpu", "rocm": "gpu"}
"""Kinds of devices by the names that programs are compiled for."""


def dense_crf(
  logits: jax.typing.ArrayLike,
  image: jax.typing.ArrayLike,
  params: CrfParams | None = None,
  *,
  ndim: int = 2,
) -> Array:
  """Computes mean-field marginals of the dense CRF.

  Called with plain arrays it sizes the lattice by the image, checks all values, and compiles its
  programs itself. Under jit, grad or vmap all sizes are static and values cannot be checked.

  Args:
    logits: [h w k] (volumes: [d h w k]), or the same with a leading batch axis; images of a batch
      are processed one after the other.
    image: [h w c] of the same sizes, usually colors in 0..255; any number of channels.
    params: the CRF's parameters; the defaults if None.
    ndim: number of spatial axes, 3 for volumes.

  Returns:
    float32, shaped like logits, summing to 1 over classes. All NaN if under jit the lattice has
    more vertices than `CrfParams.capacity`.

  Raises:
    InputError: shapes or parameters that do not fit each other; unless traced, also logits or
      image with NaN or +inf, colors of 0 to 1 with a bandwidth for 0 to 255, and bandwidths too
      small for the lattice's 64-bit keys.
  """
  return _marginals(logits, image, params, ndim, jax.nn.softmax)


def log_marginals(
  logits: jax.typing.ArrayLike,
  image: jax.typing.ArrayLike,
  params: CrfParams | None = None,
  *,
  ndim: int = 2,
) -> Array:
  """Computes the logarithm of `dense_crf`, which again are logits: finite where q underflows."""
  return _marginals(logits, image, params, ndim, jax.nn.log_softmax)


def lattice_size(image: jax.typing.ArrayLike, params: CrfParams | None = None) -> int:
  """Counts the vertices of the bilateral lattice of an image, of the largest if there are several.

  Args:
    image: [h w c] or [d h w c].
    params: the CRF's parameters; the defaults if None.

  Raises:
    InputError: parameters that `dense_crf` refuses, too.
  """
  params = CrfParams() if params is None else params
  check_params(params)
  image = np.asarray(image, np.float32)
  shape = image.shape[:-1]
  corners = _bilateral_corners(image, _with_arrays(params, jnp.float32))
  embeddings = _host_embeddings(corners, params, shape, shape)
  return max(int(e.lattice.vertex.max()) + 1 for e in embeddings)


def infer(
  logits: Array,
  image: Array,
  params: CrfParams,
  prepared: PreparedImage,
  *,
  plan: Plan,
  normalize: Normalize,
) -> Array:
  """Runs mean field on one image, in static shapes.

  Args:
    logits: [h w k] or [d h w k].
    image: [h w c] or [d h w c].
    params: the parameters; those that are not static are arrays.
    prepared: what the host has found out about the image.
    plan: static; what was decided by concrete values.
    normalize: static; softmax or log-softmax.

  Returns:
    Normalized marginals, shaped like logits; NaN if a lattice is incomplete.
  """
  unary = jax.nn.log_softmax(logits).reshape(-1, logits.shape[-1])
  kernels = make_kernels(image, params, prepared, plan)
  mu = None if params.compatibility is None else jnp.asarray(params.compatibility)
  q = normalize(mean_field(unary, kernels, mu, params.iterations))
  overflow = functools.reduce(
    jnp.logical_or, [kernel.overflow for kernel in kernels], jnp.zeros((), bool)
  )
  return jnp.where(overflow, jnp.nan, q).reshape(logits.shape)


_compiled = jax.jit(infer, static_argnames=("plan", "normalize"))


def _marginals(
  logits: jax.typing.ArrayLike,
  image: jax.typing.ArrayLike,
  params: CrfParams | None,
  ndim: int,
  normalize: Normalize,
) -> Array:
  params = CrfParams() if params is None else params
  x, pixels = _on_host(logits), _on_host(image)
  check_params(params)
  _check_arrays(x, pixels, ndim)
  check_shapes(params, classes=x.shape[-1], channels=pixels.shape[-1], ndim=ndim)
  _check_colors(pixels, params, ndim)
  dtype = jnp.promote_types(jax.dtypes.canonicalize_dtype(x.dtype), jnp.float32)
  plan = make_plan(params, ndim)
  traced = any(map(is_traced, jax.tree.leaves((x, pixels, params))))
  params = _with_arrays(params, dtype)
  batched = x.ndim == ndim + 2
  size = math.prod(pixels.shape[-ndim - 1 : -1])
  if traced:
    both = jnp.asarray(x, dtype), jnp.asarray(pixels, dtype)
    return _traced(both, params, plan, normalize, size=size, batched=batched)
  params = dataclasses.replace(params, method=_method(params, size, _platform()))
  x, pixels = np.asarray(x, dtype), np.asarray(pixels, dtype)
  if not batched:
    return _finish(_start(x, pixels, params, plan), params, plan, normalize)
  started = (_start(*pair, params, plan) for pair in zip(x, pixels, strict=True))
  return jnp.stack([_finish(one, params, plan, normalize) for one in _one_ahead(started)])


def _traced(
  both: tuple[Array, Array],
  params: CrfParams,
  plan: Plan,
  normalize: Normalize,
  *,
  size: int,
  batched: bool,
) -> Array:
  """Marginals of logits and image, or of a batch of both, in the form of the program's target."""

  def by(method: str) -> Callable[..., Array]:
    def all_images(logits: Array, image: Array, params: CrfParams) -> Array:
      params = dataclasses.replace(params, method=method)

      def one(pair: tuple[Array, Array]) -> Array:
        return infer(*pair, params, PreparedImage(), plan=plan, normalize=normalize)

      return lax.map(one, (logits, image)) if batched else one((logits, image))

    return all_images

  default = _method(params, size, "cpu")
  here = {name: _method(params, size, kind) for name, kind in _COMPILED_FOR.items()}
  others = {name: by(method) for name, method in here.items() if method != default}
  if not others:
    return by(default)(*both, params)
  return lax.platform_dependent(*both, params, default=by(default), **others)


def _method(params: CrfParams, size: int, platform: str) -> str:
  """The filter that is used on a platform for images of so many pixels."""
  if params.method != "auto":
    return params.method
  return "exact" if size <= EXACT_PIXELS.get(platform, 0) else "lattice"


def _platform() -> str:
  """Where programs run that nobody has placed."""
  return next(iter(jnp.zeros(()).devices())).platform


def _on_host(x: jax.typing.ArrayLike) -> Array | np.ndarray:
  """Makes a NumPy array of whatever is not traced."""
  return x if isinstance(x, jax.core.Tracer) else np.asarray(x)


def _check_arrays(logits: Array | np.ndarray, image: Array | np.ndarray, ndim: int) -> None:
  """Checks the shapes of logits and image, and the values of whichever is not traced."""
  shapes = f"logits, image: the shapes {logits.shape} and {image.shape}"
  if logits.ndim not in (ndim + 1, ndim + 2) or image.ndim != logits.ndim:
    raise InputError(
      f"{shapes} must both have {ndim + 1} dimensions, or {ndim + 2} with a batch; gray images "
      "need a channel axis, and volumes ndim=3"
    )
  if logits.shape[:-1] != image.shape[:-1]:
    raise InputError(
      f"{shapes} must agree in all but the last dimension; resize the logits to the image"
    )
  if 0 in logits.shape or 0 in image.shape:
    raise InputError(f"{shapes} must not be empty")
  if not is_traced(logits):
    wrong = ~np.isfinite(logits.max(-1))  # the maximum is NaN if any is
    if wrong.any():
      raise InputError(
        f"logits: {int(wrong.sum())} pixels have NaN or +inf, or -inf for every class; rule a "
        "class out by -inf, and give a certain one a large number"
      )
  if not is_traced(image) and not np.all(np.isfinite(image)):
    raise InputError("image: it has NaN or infinite values; replace them")


def _check_colors(image: Array | np.ndarray, params: CrfParams, ndim: int) -> None:
  """Refuses colors of 0 to 1 with a bandwidth for 0 to 255, to which all of them are one color."""
  sigma = params.bilateral_sigma_rgb
  if ndim != 2 or image.shape[-1] not in (1, 3) or is_traced(image) or is_traced(sigma):
    return
  if not np.issubdtype(image.dtype, np.floating) or np.min(sigma) < 1:
    return
  lowest, highest = float(image.min()), float(image.max())
  if 0 <= lowest < highest <= 1:
    raise InputError(
      f"image: its colors lie in {lowest:.3g} to {highest:.3g}, all within bilateral_sigma_rgb, "
      f"{sigma!s}; give colors in 0..255, or divide bilateral_sigma_rgb by 255"
    )


def _with_arrays(params: CrfParams, dtype: jax.typing.DTypeLike) -> CrfParams:
  """Makes arrays of all fields that are not static; a tree map would only look into lists."""
  values = {name: getattr(params, name) for name in (*SIGMAS, *WEIGHTS, "compatibility")}
  arrays: dict[str, Any] = {n: jnp.asarray(x, dtype) for n, x in values.items() if x is not None}
  return dataclasses.replace(params, **arrays)


class _Started(NamedTuple):
  """An image whose simplices the device has been asked for.

  Attributes:
    logits: padded logits.
    image: padded image.
    shape: sizes without padding.
    spatial: simplices of the spatial kernel, if it is on a lattice.
    bilateral: simplices of the bilateral kernel, one per lattice.
  """

  logits: np.ndarray
  image: np.ndarray
  shape: tuple[int, ...]
  spatial: Sequence[Corners]
  bilateral: Sequence[Corners]


def _start(logits: np.ndarray, image: np.ndarray, params: CrfParams, plan: Plan) -> _Started:
  """Pads an image to one of few sizes, and asks the device for its simplices without waiting."""
  shape = image.shape[:-1]
  padded = tuple(map(_round_up, shape))
  if padded != shape:
    unpadded, logits = logits, filled((*padded, logits.shape[-1]), 0, logits.dtype)
    logits[tuple(map(slice, shape))] = unpadded
    margin = [(0, m - n) for m, n in zip(padded, shape, strict=True)]
    image = np.pad(image, [*margin, (0, 0)], mode="edge")
  spatial: list[Corners] = []
  bilateral: list[Corners] = []
  if params.spatial_filter == "lattice" and plan.spatial:
    spatial = [pixel_corners(padded, 0, params.spatial_sigma)]
  if params.method == "lattice" and plan.bilateral:
    bilateral = _bilateral_corners(image, params)
  return _Started(logits, image, shape, spatial, bilateral)


def _finish(started: _Started, params: CrfParams, plan: Plan, normalize: Normalize) -> Array:
  """Finds the lattices of an image on the host, and starts its inference on the device."""
  shape, padded = started.shape, started.image.shape[:-1]
  bandwidths = f"spatial_sigma: {params.spatial_sigma!s}"
  spatial = [host_embedding(c, 0, padded, shape, bandwidths) for c in started.spatial]
  bilateral = _host_embeddings(started.bilateral, params, padded, shape)
  dtype = started.image.dtype
  axes = tuple((np.arange(m) < n).astype(dtype) for m, n in zip(padded, shape, strict=True))
  prepared = PreparedImage(axes, spatial, bilateral)
  q = _compiled(started.logits, started.image, params, prepared, plan=plan, normalize=normalize)
  return q if padded == shape else q[tuple(map(slice, shape))]


def _bilateral_corners(image: np.ndarray, params: CrfParams) -> list[Corners]:
  sigmas = params.bilateral_sigma_xy, params.bilateral_sigma_rgb
  return [pixel_corners(image.shape[:-1], turn, *sigmas, image) for turn in range(params.lattices)]


def _host_embeddings(
  corners: Sequence[Corners],
  params: CrfParams,
  padded: tuple[int, ...],
  shape: tuple[int, ...],
) -> list[Embedding]:
  bandwidths = (
    f"bilateral_sigma_xy, bilateral_sigma_rgb: {params.bilateral_sigma_xy!s} and "
    f"{params.bilateral_sigma_rgb!s}"
  )
  return [host_embedding(c, turn, padded, shape, bandwidths) for turn, c in enumerate(corners)]


def _one_ahead(items: Iterable[_T]) -> Iterator[_T]:
  """Yields each item after taking the next one.

  The device works on an image while the host finds the lattice of the one before.
  """
  items = iter(items)
  current = next(items)
  for following in items:
    yield current
    current = following
  yield current


def _round_up(n: int) -> int:
  """The next number with four leading bits, so that images of many sizes share few programs."""
  step = 1 << max(n.bit_length() - 4, 0)
  return cdiv(n, step) * step
