"""Convolution: one function whose arithmetic is chosen by shape and platform.

Networks call `Conv` and never the framework's convolution, so a faster form reaches all of them:

  * a 1x1 kernel is a matrix product (a strided one slices first), and so is a kernel of the size of
    the map, but for a TPU;
  * taps that see nothing but padding are cut off, on every platform: an atrous kernel whose rate
    exceeds the feature map is a 1x1;
  * on CPU an atrous kernel that spends much of its work in padding is a sum of shifted
    products over the part of the map that each tap really covers;
  * on CPU the kernel's gradient is a matrix product of unrolled columns, a few images at a time, so
    that the columns stay in cache. XLA's own form runs at a third of the speed of the forward pass;
  * on CPU a convolution of volumes is one of their slices, the depth's taps side by side. XLA has
    no fast form for three dimensions there.

The platform is that of the lowering (`jax.lax.platform_dependent`), not of the process: a program
exported for GPU on a CPU machine holds the form for GPU, and the choice survives pmap and vmap.
Derivatives: reverse mode, once. Forward mode (`jax.jvp`, and with it second derivatives) raises
JAX's error for `custom_vjp` unless the kernel is 1x1.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypedDict

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jseg.arithmetic import cdiv
from jseg.nn.barrier import after
from jseg.nn.layer import KernelLayer
from jseg.nn.once import traced_once
from jseg.types import Array

Padding: TypeAlias = str | int | Sequence[tuple[int, int]]
Pairs: TypeAlias = tuple[tuple[int, int], ...]
Ints: TypeAlias = tuple[int, ...]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""N(0, sqrt(2 / fan_in)) (He et al. 2015, arXiv:1502.01852), not truncated."""

# Below this share of work outside of padding, shifted products beat a dense convolution.
_SPARSE = 0.7
# Each tap is a product, a slice and a sum to compile.
_MOST_TAPS = 9
# With fewer input channels than this the columns are too narrow for a good matrix product.
_NARROW = 16
# Pixels up to which images share a matrix product: with fewer, adding the products up costs more.
_SHARED = 8192
# Numbers of an intermediate result, float32, that stay in a CPU's last cache until they are used.
_CACHED = 3 * 2**20


class Conv(KernelLayer):
  """Convolution, [b h w c] -> [b h' w' features]; volumes [b d h w c] with three kernel sizes.

  Attributes:
    features: channels of the output.
    kernel_size: one size per spatial dimension.
    strides: step of the output grid, one number or one per dimension.
    padding: "SAME" (output size is ceil(size / stride)), "VALID" (none), the same number of
      pixels on every side, or (before, after) per dimension.
    dilation: distance between taps (the rate of an atrous convolution).
    groups: number of parts of the channels that are convolved separately; divides c and features.
    use_bias: whether to add a learned bias. Omit it before a norm, which has its own.
    kernel_init: initializer of `kernel` [kh kw c/groups features].
  """

  kernel_size: Sequence[int]
  strides: int | Sequence[int] = 1
  padding: Padding = "SAME"
  dilation: int | Sequence[int] = 1
  groups: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = he_normal

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Convolves x and adds the bias."""
    convolve = functools.partial(
      conv, strides=self.strides, padding=self.padding, dilation=self.dilation
    )

    def convolve_groups(x: Array, kernel: Array) -> Array:
      if self.groups == 1:
        return convolve(x, kernel)
      # Groups are few and wide, so each is worth a product of its own.
      inputs, kernels = (jnp.split(a, self.groups, axis=-1) for a in (x, kernel))
      return jnp.concatenate(list(map(convolve, inputs, kernels)), axis=-1)

    return self.apply_kernel(
      x,
      (*self.kernel_size, x.shape[-1] // self.groups, self.features),
      convolve_groups,
      init=self.kernel_init,
      use_bias=self.use_bias,
    )


def conv(
  x: Array,
  kernel: Array,
  *,
  strides: int | Sequence[int] = 1,
  padding: Padding = "SAME",
  dilation: int | Sequence[int] = 1,
) -> Array:
  """Cross-correlates x with a kernel.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    kernel: [kh kw c f], of the dtype of x.
    strides: step of the output grid, one number or one per dimension.
    padding: "SAME", "VALID", one number for every side, or (before, after) per dimension.
    dilation: distance between taps, one number or one per dimension.

  Returns:
    [b h' w' f] with h' = floor((h + padding - dilation (kh - 1) - 1) / stride) + 1.
  """
  chex.assert_rank(kernel, x.ndim)
  chex.assert_equal(kernel.shape[-2], x.shape[-1])
  rank = x.ndim - 2
  strides, dilation = per_dimension(strides, rank), per_dimension(dilation, rank)
  pads = _explicit_padding(padding, x.shape[1:-1], kernel.shape[:rank], strides, dilation)
  kernel, pads = _cut_dead_taps(kernel, x.shape[1:-1], strides, pads, dilation)
  if kernel.shape[:rank] == x.shape[1:-1] and not any(map(any, pads)):
    # One output pixel, so a fully connected layer.
    one = (1,) * rank
    x, kernel = x.reshape(x.shape[0], *one, -1), kernel.reshape(*one, -1, kernel.shape[-1])
    strides = one
  return _convolve(x, kernel, strides=strides, pads=pads, dilation=dilation)


@traced_once("strides", "pads", "dilation")
def _convolve(x: Array, kernel: Array, *, strides: Ints, pads: Pairs, dilation: Ints) -> Array:
  if math.prod(kernel.shape[:-2]) == 1:
    return _pointwise(x, kernel, strides, pads)
  return _conv(x, kernel, strides, pads, dilation)


def _pointwise(x: Array, kernel: Array, strides: Ints, pads: Pairs) -> Array:
  """A kernel of one tap, as a matrix product; on a TPU as XLA's own convolution.

  A TPU lays maps out for its convolutions, and a product's [pixels channels] would be a copy.
  """
  geometry = _Geometry(strides=strides, pads=pads, dilation=(1,) * len(strides))
  return lax.platform_dependent(
    x,
    kernel,
    tpu=functools.partial(_dense, **geometry),
    default=functools.partial(_product, strides=strides, pads=pads),
  )


def _product(x: Array, kernel: Array, *, strides: Ints, pads: Pairs) -> Array:
  if any(lo or hi for lo, hi in pads):
    edges = [(0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
  x = x[(slice(None), *(slice(None, None, s) for s in strides))]
  flat = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[-2:])
  return flat.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, strides: Ints, pads: Pairs, dilation: Ints) -> Array:
  """Convolution with strides, padding and dilation given per dimension."""
  geometry = _Geometry(strides=strides, pads=pads, dilation=dilation)
  dense = functools.partial(_dense, **geometry)
  if _is_sparse(x, kernel, **geometry):
    taps = functools.partial(_shifted_products, **geometry)
    return lax.platform_dependent(x, kernel, cpu=taps, default=dense)
  if _is_stack(strides):
    slices = functools.partial(_convolve_slices, **geometry)
    return lax.platform_dependent(x, kernel, cpu=slices, default=dense)
  return dense(x, kernel)


def _conv_forward(
  x: Array, kernel: Array, strides: Ints, pads: Pairs, dilation: Ints
) -> tuple[Array, tuple[Array, Array]]:
  return _conv(x, kernel, strides, pads, dilation), (x, kernel)


def _conv_backward(
  strides: Ints, pads: Pairs, dilation: Ints, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  geometry = _Geometry(strides=strides, pads=pads, dilation=dilation)

  def dense(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(functools.partial(_dense, **geometry), x, kernel)[1](dy)

  def shifted(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(functools.partial(_shifted_products, **geometry), x, kernel)[1](dy)

  def late(kernel: Array, dkernel: Array) -> Array:
    # XLA would mirror all kernels at the start. A large x, kept or computed again for the kernel's
    # gradient, should be gone before its own gradient comes, which is as large.
    return after(kernel, [dkernel if kernel.size <= x.size else dy])

  def columns(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    # A bfloat16 product rounds once, at the end; a sum over images would round every time.
    dkernel = _kernel_gradient(x, kernel.shape, dy, **geometry).astype(kernel.dtype)
    kernel = late(kernel, dkernel)
    if math.prod(strides) == 1:
      return _input_gradient(_dense, x.shape, kernel, dy, pads=pads, dilation=dilation), dkernel
    return dense(x, kernel, dy)[0], dkernel

  def slices(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    dkernel = _kernel_gradient_of_slices(x, kernel.shape, dy, **geometry).astype(kernel.dtype)
    kernel = late(kernel, dkernel)
    if any(s > 1 for s in strides):
      return dense(x, kernel, dy)[0], dkernel
    dx = _input_gradient(_convolve_slices, x.shape, kernel, dy, pads=pads, dilation=dilation)
    return dx, dkernel

  if _is_sparse(x, kernel, **geometry):
    return lax.platform_dependent(x, kernel, dy, cpu=shifted, default=dense)
  if _is_stack(strides):
    return lax.platform_dependent(x, kernel, dy, cpu=slices, default=dense)
  if x.shape[-1] >= _NARROW:
    return lax.platform_dependent(x, kernel, dy, cpu=columns, default=dense)
  return dense(x, kernel, dy)


_conv.defvjp(_conv_forward, _conv_backward)


class _Geometry(TypedDict):
  """Arguments of a convolution, one per dimension."""

  strides: Ints
  pads: Pairs
  dilation: Ints


def _dense(
  x: Array,
  kernel: Array,
  *,
  strides: Ints,
  pads: Pairs,
  dilation: Ints,
  sums: jax.typing.DTypeLike | None = None,
) -> Array:
  spatial = "DHW"[-len(strides) :]
  layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    pads,
    rhs_dilation=dilation,
    dimension_numbers=layout,
    preferred_element_type=sums,
  )


def _convolve_slices(
  x: Array, kernel: Array, *, strides: Ints, pads: Pairs, dilation: Ints
) -> Array:
  """A convolution of volumes, depth stride 1, from convolutions of slices.

  The depth's taps lie side by side in the channels of the slices' results, so that a slice is
  unrolled once for all taps; shifted by their tap, the results add up. It goes through a few
  slices at a time, whose results stay in cache.
  """
  (b, d), (taps, *size, c, f) = x.shape[:2], kernel.shape
  flat = _Geometry(strides=strides[1:], pads=pads[1:], dilation=dilation[1:])
  beside = jnp.moveaxis(kernel, 0, -2).reshape(*size, c, taps * f)
  plane = _output_size(x.shape[2:-1], tuple(size), **flat)
  together = _largest_divisor(d, _CACHED // (b * math.prod(plane) * taps * f))
  # Tap t of slice i counts for output i + before - t rate; a later slice may complete it.
  reach, (before, after) = dilation[0] * (taps - 1), pads[0]
  zero = jnp.zeros((), jnp.float32)

  def add_slices(open_sums: Array, some: Array) -> tuple[Array, Array]:
    y = _dense(some.reshape(-1, *some.shape[2:]), beside, **flat, sums=jnp.float32)
    y = y.reshape(b, together, *plane, taps, f)
    total = lax.pad(open_sums, zero, _along_depth(y.ndim - 1, 0, together))
    for t in range(taps):
      later = dilation[0] * t
      total += lax.pad(y[..., t, :], zero, _along_depth(y.ndim - 1, reach - later, later))
    return total[:, together:], total[:, :together].astype(x.dtype)

  chunks = jnp.moveaxis(x.reshape(b, -1, together, *x.shape[2:]), 1, 0)
  last, complete = lax.scan(add_slices, jnp.zeros((b, reach, *plane, f)), chunks)
  y = jnp.moveaxis(complete, 0, 1).reshape(b, d, *plane, f)
  y = jnp.concatenate([y, last.astype(x.dtype)], axis=1)
  return lax.pad(y, jnp.zeros((), y.dtype), _along_depth(y.ndim, before - reach, after - reach))


def _along_depth(rank: int, before: int, after: int) -> list[tuple[int, int, int]]:
  """Edges for `lax.pad` of volumes [b d ...], along the depth alone."""
  return [(0, 0, 0), (before, after, 0), *[(0, 0, 0)] * (rank - 2)]


def _largest_divisor(n: int, most: int) -> int:
  """The largest divisor of n that is at most `most`; 1 if there is no other."""
  return max(i for i in range(1, n + 1) if n % i == 0 and i <= max(most, 1))


def _input_gradient(
  convolve: Callable[..., Array],
  shape: Sequence[int],
  kernel: Array,
  dy: Array,
  *,
  pads: Pairs,
  dilation: Ints,
) -> Array:
  """Gradient of the input for strides of 1: a convolution by the mirrored kernel.

  JAX's own is the same with its kernel's channels swapped by name, for which XLA has only its slow
  form inside of loops.
  """
  rank = len(pads)
  mirrored = lax.rev(kernel, range(rank)).swapaxes(-1, -2)
  edges = tuple(
    (d * (k - 1) - lo, n - out + lo)
    for d, k, (lo, _), n, out in zip(
      dilation, kernel.shape[:rank], pads, shape[1:-1], dy.shape[1:-1], strict=True
    )
  )
  return convolve(dy, mirrored, strides=(1,) * rank, pads=edges, dilation=dilation)


def _shifted_products(
  x: Array, kernel: Array, *, strides: Ints, pads: Pairs, dilation: Ints
) -> Array:
  """The sum over taps of a product over the outputs for which the tap is not in padding."""
  rank = len(strides)
  out = _output_size(x.shape[1:-1], kernel.shape[:rank], strides, pads, dilation)
  total = None
  for tap in itertools.product(*map(range, kernel.shape[:rank])):
    shift = [t * d - lo for t, d, (lo, _) in zip(tap, dilation, pads, strict=True)]
    spans = [
      _covered(n, o, s, step)
      for n, o, s, step in zip(x.shape[1:-1], out, shift, strides, strict=True)
    ]
    if any(first >= last for first, last in spans):
      continue
    part = x[
      (
        slice(None),
        *(
          slice(first * step + s, (last - 1) * step + s + 1, step)
          for (first, last), s, step in zip(spans, shift, strides, strict=True)
        ),
      )
    ]
    product = part.reshape(-1, part.shape[-1]) @ kernel[tap]
    edges = [(first, o - last) for (first, last), o in zip(spans, out, strict=True)]
    product = jnp.pad(product.reshape(*part.shape[:-1], -1), [(0, 0), *edges, (0, 0)])
    total = product if total is None else total + product
  assert total is not None, "a kernel whose taps all lie in padding"
  return total


def _kernel_gradient(
  x: Array, shape: Sequence[int], dy: Array, *, strides: Ints, pads: Pairs, dilation: Ints
) -> Array:
  """Gradient of the kernel as one matrix product per image, or per several small ones.

  Unrolling x over all taps would write kh kw times its size. Where the stride is 1 only the last
  dimension's taps are unrolled on x and the others on dy, mirrored: kw times x and kh times dy.

  Args:
    x: [b h w c].
    shape: shape of the kernel, [kh kw c f].
    dy: gradient of the output, [b h' w' f].
    strides: step of the output grid, per dimension.
    pads: (before, after) per dimension.
    dilation: distance between taps, per dimension.

  Returns:
    float32 [kh kw c f].
  """
  rank = len(strides)
  size, out, taps = x.shape[1:-1], dy.shape[1:-1], shape[:rank]
  split = rank - 1 if math.prod(strides) == 1 and x.shape[-1] >= _NARROW else 0
  zero = jnp.zeros((), x.dtype)

  x_edges = [(0, 0, 0)] * (split + 1) + [(lo, hi, 0) for lo, hi in pads[split:]] + [(0, 0, 0)]
  x_slices = [
    (slice(None),) * (split + 1)
    + tuple(
      slice(t * d, t * d + (o - 1) * s + 1, s)
      for t, d, o, s in zip(tap, dilation[split:], out[split:], strides[split:], strict=True)
    )
    for tap in itertools.product(*map(range, taps[split:]))
  ]
  # Tap t of dy, seen from x's position p, is dy[p + before - t dilation].
  dy_edges = (
    [(0, 0, 0)]
    + [
      (d * (k - 1) - lo, d * (k - 1) - hi, 0)
      for k, d, (lo, hi) in zip(taps[:split], dilation[:split], pads[:split], strict=True)
    ]
    + [(0, 0, 0)] * (rank - split + 1)
  )
  dy_slices = [
    (
      slice(None),
      *(
        slice((k - 1 - t) * d, (k - 1 - t) * d + n)
        for t, k, d, n in zip(tap, taps[:split], dilation[:split], size[:split], strict=True)
      ),
    )
    for tap in itertools.product(*map(range, taps[:split]))
  ]

  c, f = shape[-2:]
  n_x, n_dy = len(x_slices), len(dy_slices)
  b = x.shape[0]
  together = _largest_divisor(b, 1 + (_SHARED - 1) // math.prod(out))

  # The loop slices the batch itself: to `lax.scan` over parts of it XLA gives copies of x and dy.
  def add_images(i: Array, total: Array) -> Array:
    part, dpart = (lax.dynamic_slice_in_dim(a, i * together, together) for a in (x, dy))
    part, dpart = lax.pad(part, zero, x_edges), lax.pad(dpart, zero, dy_edges)
    part = jnp.concatenate([part[s] for s in x_slices], axis=-1)
    dpart = jnp.concatenate([dpart[s] for s in dy_slices], axis=-1)
    part, dpart = part.reshape(-1, part.shape[-1]), dpart.reshape(-1, dpart.shape[-1])
    return total + jnp.dot(part.T, dpart, preferred_element_type=jnp.float32)

  zeros = jnp.zeros((n_x * c, n_dy * f), jnp.float32)
  total = lax.fori_loop(0, b // together, add_images, zeros)
  return total.reshape(n_x, c, n_dy, f).transpose(2, 0, 1, 3).reshape(shape)


def _kernel_gradient_of_slices(
  x: Array, shape: Sequence[int], dy: Array, *, strides: Ints, pads: Pairs, dilation: Ints
) -> Array:
  """Gradient of the kernel of volumes, depth stride 1: that of the slices, float32 [kd kh kw c f].

  The depth's taps of dy lie side by side in its channels.
  """
  d, (taps, *flat_shape, f) = x.shape[1], shape
  edges = [(0, 0, 0)] * dy.ndim
  reach, (before, after) = dilation[0] * (taps - 1), pads[0]
  # As in `_kernel_gradient`: tap t of dy is dy[p + before - t dilation].
  edges[1] = (reach - before, reach - after, 0)
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), edges)
  starts = [reach - t * dilation[0] for t in range(taps)]
  dy = jnp.concatenate([dy[:, start : start + d] for start in starts], axis=-1)
  x, dy = (a.reshape(-1, *a.shape[2:]) for a in (x, dy))
  flat = _Geometry(strides=strides[1:], pads=pads[1:], dilation=dilation[1:])
  dkernel = _kernel_gradient(x, (*flat_shape, taps * f), dy, **flat)
  return jnp.moveaxis(dkernel.reshape(*flat_shape, taps, f), -2, 0)


def per_dimension(value: int | Sequence[int], rank: int) -> Ints:
  """One number, or one per dimension, as a tuple of one per dimension."""
  return (value,) * rank if isinstance(value, int) else tuple(value)


def _explicit_padding(
  padding: Padding, size: Ints, kernel_size: Ints, strides: Ints, dilation: Ints
) -> Pairs:
  if isinstance(padding, str):
    extent = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    padding = lax.padtype_to_pads(size, extent, strides, padding)
  elif isinstance(padding, int):
    padding = [(padding, padding)] * len(size)
  return tuple((int(lo), int(hi)) for lo, hi in padding)


def _output_size(size: Ints, kernel_size: Ints, strides: Ints, pads: Pairs, dilation: Ints) -> Ints:
  return tuple(
    (n + lo + hi - d * (k - 1) - 1) // s + 1
    for n, k, s, (lo, hi), d in zip(size, kernel_size, strides, pads, dilation, strict=True)
  )


def _covered(size: int, out: int, shift: int, stride: int) -> tuple[int, int]:
  """The range of outputs o for which 0 <= o stride + shift < size."""
  return max(0, cdiv(-shift, stride)), min(out, (size - 1 - shift) // stride + 1)


def _cut_dead_taps(
  kernel: Array, size: Ints, strides: Ints, pads: Pairs, dilation: Ints
) -> tuple[Array, Pairs]:
  """Cuts off outer taps that see only padding, together with that padding."""
  rank = len(size)
  out = _output_size(size, kernel.shape[:rank], strides, pads, dilation)
  cuts, trimmed = [], []
  for axis, (lo, hi) in enumerate(pads):
    taps, d = kernel.shape[axis], dilation[axis]
    spans = [_covered(size[axis], out[axis], t * d - lo, strides[axis]) for t in range(taps)]
    live = [t for t, (first, last) in enumerate(spans) if first < last] or [0, taps - 1]
    cuts.append(slice(live[0], live[-1] + 1))
    trimmed.append((lo - live[0] * d, hi - (taps - 1 - live[-1]) * d))
  return kernel[tuple(cuts)], tuple(trimmed)


def _is_stack(strides: Ints) -> bool:
  """Whether a convolution of volumes keeps their slices, so that one of slices does its work."""
  return len(strides) == 3 and strides[0] == 1


def _is_sparse(x: Array, kernel: Array, *, strides: Ints, pads: Pairs, dilation: Ints) -> bool:
  """Whether shifted products beat a dense convolution, which would compute much padding."""
  rank = len(strides)
  if math.prod(kernel.shape[:rank]) > _MOST_TAPS:
    return False
  out = _output_size(x.shape[1:-1], kernel.shape[:rank], strides, pads, dilation)
  share = 1.0
  for axis, (lo, _) in enumerate(pads):
    taps, n, d, s = kernel.shape[axis], x.shape[1 + axis], dilation[axis], strides[axis]
    spans = [_covered(n, out[axis], t * d - lo, s) for t in range(taps)]
    share *= sum(max(0, last - first) for first, last in spans) / (taps * max(1, out[axis]))
  return share < _SPARSE
