"""Mean-field inference in the fully connected CRF.

Krähenbühl and Koltun 2011, arXiv:1210.5644, algorithm 1, in the variant of the authors' code and of
pydensecrf: kernels are normalised and the self-term stays in.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf import gaussian, lattice
from jseg.crf.stages import filled
from jseg.types import Array, InputError

NORMALIZATIONS = ("symmetric", "before", "after", "none")
METHODS = ("lattice", "landmarks", "exact")
SPATIAL_FILTERS = ("half", "exact", "lattice")
MAX_LATTICES = 6
"""How many ways there are to turn the lattice of a grey image; others have more."""
_ARRAYS = (
  *("spatial_weight", "spatial_sigma", "bilateral_weight", "bilateral_sigma_xy"),
  *("bilateral_sigma_rgb", "compatibility"),
)


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
    spatial_filter: static; "half" resolution from sigmas of 2.5 pixels on, where that is within 2 %
      of the exact kernel; "exact"; or "lattice", as in pydensecrf. Under jit, where sigmas aren't
      known, "half" is exact.
    lattices: static; number of lattices, differently turned, whose kernels are averaged. Two are
      closer to the exact kernel and cost twice the time.
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
  spatial_filter: str = flax.struct.field(pytree_node=False, default="half")
  lattices: int = flax.struct.field(pytree_node=False, default=1)
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
  return _marginals(logits, image, params, ndim, log=False)


def log_marginals(
  logits: Any, image: Any, params: CrfParams | None = None, *, ndim: int = 2
) -> Array:
  """Logarithm of `dense_crf`, to be used as logits: finite where q underflows."""
  return _marginals(logits, image, params, ndim, log=True)


def _marginals(logits: Any, image: Any, params: CrfParams | None, ndim: int, *, log: bool) -> Array:
  params = CrfParams() if params is None else params
  logits, image = (x if isinstance(x, jax.core.Tracer) else np.asarray(x) for x in (logits, image))
  traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((logits, image, params)))
  check_settings(params)
  _check_shapes(logits, image, params, ndim)
  _check_values(logits, image, params)
  dtype = jnp.promote_types(jax.dtypes.canonicalize_dtype(logits.dtype), jnp.float32)
  plan = _plan(params, ndim)
  off = (_is_zero(params.spatial_weight), _is_zero(params.bilateral_weight))
  logits, image = (
    jnp.asarray(x, dtype) if traced else np.asarray(x, dtype) for x in (logits, image)
  )
  # Tuples and lists become arrays, which a tree map would only look into.
  values = {name: getattr(params, name) for name in _ARRAYS}
  arrays: Any = {name: jnp.asarray(x, dtype) for name, x in values.items() if x is not None}
  params = dataclasses.replace(params, **arrays)

  single = logits.ndim == ndim + 1
  if traced:

    def infer(pair: tuple[Array, Array]) -> Array:
      return _infer(*pair, params, Known(), plan, off, log)

    return infer((logits, image)) if single else lax.map(infer, (logits, image))
  begin = functools.partial(_sized, params=params, plan=plan, off=off, log=log)
  if single:
    return begin(logits, image)()
  # The host finds an image's lattice while the device is at work on the image before.
  found, begun = [], begin(logits[0], image[0])
  for pair in zip(logits[1:], image[1:], strict=True):
    following = begin(*pair)
    found.append(begun())
    begun = following
  return jnp.stack([*found, begun()])


def lattice_size(image: Any, params: CrfParams | None = None) -> int:
  """Number of vertices of the bilateral lattice of one image [h w c] or volume [d h w c].

  That of the largest, if there are several.
  """
  params = CrfParams() if params is None else params
  check_settings(params)
  image = np.asarray(image, np.float32)
  sigmas = jnp.float32(params.bilateral_sigma_xy), jnp.float32(params.bilateral_sigma_rgb)
  sizes = []
  for turn in range(params.lattices):
    corners = _corners(image.shape[:-1], turn, *sigmas, image)
    corner, order = np.asarray(corners.corner), np.asarray(corners.order)
    found = _host_lattice(corner, order, turn, image.ndim - 1, params)
    sizes.append(int(found.vertex.max()) + 1)
  return max(sizes)


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
  if not 1 <= params.lattices <= MAX_LATTICES:
    raise InputError(
      f"CRF: lattices {params.lattices} must be 1 to {MAX_LATTICES}; 2 are more exact than 1"
    )
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


def _plan(params: CrfParams, ndim: int) -> tuple[gaussian.AxisPlan, ...] | None:
  if not _known(params.spatial_sigma):
    return None
  sigmas = np.broadcast_to(np.asarray(params.spatial_sigma), (ndim,))
  return tuple(gaussian.plan_axis(float(s), half=params.spatial_filter == "half") for s in sigmas)


_Weighted = tuple[Array, lattice.Lattice]


class Known(NamedTuple):
  """What is found out about an image before anything is compiled for it.

  Attributes:
    axes: [n] for each spatial axis, 1 for pixels and 0 for padding; None under jit, where there is
      no padding.
    spatial: weights [D n] and lattice of the spatial kernel, if it is on one.
    bilateral: the same of the bilateral kernel, of which there may be several.
  """

  axes: tuple[Array, ...] | None = None
  spatial: Sequence[_Weighted] = ()
  bilateral: Sequence[_Weighted] = ()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _corners(
  shape: tuple[int, ...], turn: int, sigma_xy: Array, sigma_rgb: Any = None, image: Any = None
) -> lattice.Corners:
  """Simplices of the pixels by place, or by place and colour; features in the order of a turn."""
  # The lattice depends a little on the order of features. pydensecrf's is x, y for images, and that
  # of the array for what its `create_pairwise_bilateral` makes.
  features = _places(shape, sigma_xy)
  features = features[:, ::-1] if len(shape) == 2 else features
  if image is not None:
    colours = _scaled(image.reshape(-1, image.shape[-1]), sigma_rgb)
    features = jnp.concatenate([features, colours], 1)
  return lattice.barycentric(features[:, _turned(features.shape[1], turn)])


def _turned(d: int, turn: int) -> np.ndarray:
  """Order of the features of the nth lattice: as they are, reversed, and rotations of both.

  The lattice has no such symmetries, so that its errors differ.
  """
  return np.roll(np.arange(d)[:: -1 if turn % 2 else 1], turn // 2)


def _major(d: int, turn: int, ndim: int) -> list[int]:
  """Where a turn puts the features that are a place, rows before columns, as pixels are.

  None where there are many features, the names of whose vertices need all bits of a key.
  """
  at = np.argsort(_turned(d, turn))[: ndim if d <= 6 else 0]
  return [int(i) for i in (at[::-1] if ndim == 2 else at)]


def _host_lattice(
  corner: np.ndarray, order: np.ndarray, turn: int, ndim: int, params: CrfParams, *padding: Any
) -> lattice.Lattice:
  """`lattice.host_lattice` of a turn.

  Raises:
    InputError: it is too fine.
  """
  found = lattice.host_lattice(corner, order, _major(len(corner) - 1, turn, ndim), *padding)
  if found is None:
    raise InputError(
      f"CRF: bandwidths {params.bilateral_sigma_xy} and {params.bilateral_sigma_rgb} need more "
      'lattice cells than 64-bit keys can name; use larger ones, fewer channels, or method="exact"'
    )
  return found


def _places(shape: Sequence[int], sigma: Array) -> Array:
  """Coordinates [n, spatial axes] in standard deviations."""
  axes = [lax.broadcasted_iota(sigma.dtype, shape, i).reshape(-1) for i in range(len(shape))]
  return _scaled(jnp.stack(axes, 1), sigma)


def _scaled(x: Array, sigma: Array) -> Array:
  return x / jnp.broadcast_to(sigma, x.shape[1:])[None]


def _round_up(n: int) -> int:
  """The next number with four leading bits, so that images of many sizes share few programs."""
  step = 1 << max(n.bit_length() - 4, 0)
  return -(-n // step) * step


def _sized(
  logits: np.ndarray,
  image: np.ndarray,
  params: CrfParams,
  plan: Any,
  off: tuple[bool, bool],
  log: bool,
) -> Callable[[], Array]:
  """Begins one image, padded to one of few sizes; what is returned finds its lattices and runs it.

  Until then other images' work may go on.
  """
  shape = image.shape[:-1]
  padded = tuple(map(_round_up, shape))
  inside = tuple(map(slice, shape))
  if padded != shape:
    unpadded, logits = logits, filled((*padded, logits.shape[-1]), 0, logits.dtype)
    logits[inside] = unpadded
    margin = [(0, m - n) for m, n in zip(padded, shape, strict=True)]
    image = np.pad(image, [*margin, (0, 0)], mode="edge")
  spatial, bilateral = [], []
  if params.spatial_filter == "lattice" and not off[0]:
    spatial = [_corners(padded, 0, params.spatial_sigma)]
  if params.method == "lattice" and not off[1]:
    sigmas = params.bilateral_sigma_xy, params.bilateral_sigma_rgb
    bilateral = [_corners(padded, turn, *sigmas, image) for turn in range(params.lattices)]

  def find(corners: lattice.Corners, turn: int) -> _Weighted:
    place = np.arange(math.prod(padded)).reshape(padded)[inside].reshape(-1)
    corner, order = (
      np.asarray(x).reshape(-1, *padded)[:, *inside].reshape(len(x), -1)
      for x in (corners.corner, corners.order)
    )
    size = math.prod(padded)
    return corners.weight, _host_lattice(corner, order, turn, len(shape), params, place, size)

  def run() -> Array:
    axes = tuple((np.arange(m) < n).astype(image.dtype) for m, n in zip(padded, shape, strict=True))
    both = (
      [find(corners, i) for i, corners in enumerate(kernel)] for kernel in (spatial, bilateral)
    )
    q = _compiled(logits, image, params, Known(axes, *both), plan, off, log)
    return q if padded == shape else q[inside]

  return run


def _infer(
  logits: Array,
  image: Array,
  params: CrfParams,
  known: Known,
  plan: tuple[gaussian.AxisPlan, ...] | None,
  off: tuple[bool, bool],
  log: bool,
) -> Array:
  """One image, everything static."""
  shape, classes = logits.shape[:-1], logits.shape[-1]
  unary = jax.nn.log_softmax(logits).reshape(-1, classes)
  axes = known.axes or tuple(jnp.ones(n, unary.dtype) for n in shape)
  valid = functools.reduce(jnp.multiply.outer, axes).reshape(-1)
  kernels = []
  overflow = jnp.zeros((), bool)
  if not off[0]:
    message, flag = _spatial(params, known.spatial, axes, valid, plan)
    overflow |= flag
    kernels.append((params.spatial_weight, message))
  if not off[1]:
    message, flag = _bilateral(image, params, known.bilateral, valid)
    overflow |= flag
    kernels.append((params.bilateral_weight, message))
  mu = params.compatibility

  def step(scores: Array, _: None) -> tuple[Array, None]:
    q = jax.nn.softmax(scores)
    total = jnp.zeros_like(q)
    for weight, message in kernels:
      total = total + _mix(message(q), weight)
    return unary + (total if mu is None else -_mix(total, mu)), None

  scores = unary
  if kernels and params.iterations:
    scores = lax.scan(step, unary, None, length=params.iterations)[0]
  q = jax.nn.log_softmax(scores) if log else jax.nn.softmax(scores)
  return jnp.where(overflow, jnp.nan, q).reshape(*shape, classes)


_compiled = jax.jit(_infer, static_argnums=(4, 5, 6))


def _mix(message: Array, weight: Array) -> Array:
  if weight.ndim == 2:
    return jnp.dot(message, weight.T, precision=lax.Precision.HIGHEST)
  return message * (weight if weight.ndim == 0 else weight[None])


def _normalizers(raw: Any, valid: Array, normalization: str) -> tuple[Array, Array | None]:
  """Factors [n] before and after a filter of [n c] arrays; the first is 0 for padding."""
  if normalization == "none":
    return valid, None
  sums = jnp.maximum(raw(valid[:, None])[:, 0], 1e-20)
  if normalization == "symmetric":
    return lax.rsqrt(sums) * valid, lax.rsqrt(sums)
  return (valid / sums, None) if normalization == "before" else (valid, 1 / sums)


def _normalized(raw: Any, valid: Array, normalization: str) -> Any:
  before, after = _normalizers(raw, valid, normalization)

  def message(q: Array) -> Array:
    y = raw(q * before[:, None])
    return y if after is None else y * after[:, None]

  return message


def _spatial(
  params: CrfParams,
  known: Sequence[_Weighted],
  axes: Sequence[Array],
  valid: Array,
  plan: Sequence[gaussian.AxisPlan] | None,
) -> tuple[Any, Array | bool]:
  shape = tuple(map(len, axes))
  if params.spatial_filter == "lattice":
    known = known or [_found(_corners(shape, 0, params.spatial_sigma), 0, len(shape))]
    return _on_lattices(known, params.normalization)
  sigmas = jnp.broadcast_to(params.spatial_sigma, (len(shape),))
  filters = []
  for axis, inside in enumerate(axes):
    # Row sums are products of those along the axes, and so are the factors.
    f = gaussian.axis_filter(len(inside), sigmas[axis], plan[axis] if plan else None)
    factors = _normalizers(
      lambda x, f=f: gaussian.grid_filter(x, [f]), inside, params.normalization
    )
    filters.append(gaussian.scale_filter(f, *factors))

  def message(q: Array) -> Array:
    return gaussian.grid_filter(q.reshape(*shape, -1), filters).reshape(q.shape)

  return message, False


def _bilateral(
  image: Array,
  params: CrfParams,
  known: Sequence[_Weighted],
  valid: Array,
) -> tuple[Any, Array | bool]:
  shape = image.shape[:-1]
  sigmas = jnp.broadcast_to(params.bilateral_sigma_xy, (len(shape),))
  colours = _scaled(image.reshape(-1, image.shape[-1]), params.bilateral_sigma_rgb)
  if params.method == "lattice":
    if not known:
      turns = range(params.lattices)
      corners = [_corners(shape, i, sigmas, params.bilateral_sigma_rgb, image) for i in turns]
      known = [_found(c, i, len(shape), params.capacity) for i, c in enumerate(corners)]
    return _on_lattices(known, params.normalization)
  if params.method == "exact":
    features = jnp.concatenate([_places(shape, sigmas), colours], 1)
    exact = functools.partial(gaussian.exact_filter, features=features)
    return _normalized(exact, valid, params.normalization), False
  factors = gaussian.landmark_factors(colours, params.landmarks)
  matrices = [gaussian.axis_matrix(m, sigmas[i]) for i, m in enumerate(shape)]

  def raw(x: Array) -> Array:
    return gaussian.landmark_filter(x.reshape(*shape, -1), factors, matrices).reshape(x.shape)

  return _normalized(raw, valid, params.normalization), False


def _found(
  corners: lattice.Corners, turn: int, ndim: int, capacity: int | None = None
) -> _Weighted:
  """Weights and lattice under jit, with room for any image if no capacity is given."""
  bound = corners.weight.size
  fixed = lax.stop_gradient(corners)
  major = _major(len(corners.weight) - 1, turn, ndim)
  return corners.weight, lattice.make_lattice(fixed, major, min(capacity or bound, bound))


def _on_lattices(known: Sequence[_Weighted], normalization: str) -> tuple[Any, Array]:
  """Normalised mean of filters; all factors go into the weights, so that they cost nothing."""
  factor = lattice.scale(len(known[0][0]) - 1) / len(known)

  def mean(before: Array | None, after: Array | None) -> Any:
    ahead = [w if before is None else w * before[None] for w, _ in known]
    back = [w * factor if after is None else w * (factor * after)[None] for w, _ in known]
    grids = [grid for _, grid in known]

    def message(x: Array) -> Array:
      terms = map(lattice.lattice_filter, [x] * len(known), ahead, back, grids)
      return functools.reduce(jnp.add, terms)

    return message

  # Padding is on no vertex but the sink, and needs no zeros.
  everywhere = jnp.ones_like(known[0][0][0])
  overflow = functools.reduce(jnp.logical_or, [grid.overflow for _, grid in known])
  return mean(*_normalizers(mean(None, None), everywhere, normalization)), overflow
