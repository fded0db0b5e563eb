"""Convolution: one function whose arithmetic is chosen by shape and platform.

Networks call `Conv` and never the framework's convolution, so a faster form reaches all of them:

  * a 1x1 kernel is a matrix product (a strided one slices first), and so is a kernel of the size of
    the map, but for a TPU;
  * taps that see nothing but padding are cut off, on every platform: an atrous kernel whose rate
    exceeds the feature map is a 1x1;
  * on CPU an atrous kernel that spends much of its work in padding is a sum of shifted
    products over the part of the map that each tap really covers;
  * on CPU the kernel's gradient is a sum of matrix products of unrolled columns, of a part of the
    batch at a time, so that the columns stay in cache. XLA's own form runs at a third of the speed
    of the forward pass;
  * on CPU a convolution of volumes is one of their slices, the depth's taps side by side. XLA has
    no fast form for three dimensions there;
  * on CPU a kernel of three taps along the first axis takes half of its products (`winograd`), if
    it is large enough and float32; so do both of its gradients.

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
from jseg.barrier import after, computed_after
from jseg.nn import winograd
from jseg.nn.cut import cut
from jseg.nn.initializers import he_normal
from jseg.nn.layer import KernelLayer
from jseg.nn.once import traced_once
from jseg.types import Array

Padding: TypeAlias = str | int | Sequence[tuple[int, int]]
Pairs: TypeAlias = tuple[tuple[int, int], ...]
Ints: TypeAlias = tuple[int, ...]

# Below this share of work outside of padding, shifted products beat a dense convolution.
_SPARSE = 0.7
# Each tap is a product, a slice and a sum to compile.
_MOST_TAPS = 9
# With fewer input channels than this the columns are too narrow for a good matrix product.
_NARROW = 16
# Numbers of an intermediate result, float32, that stay in a CPU's cache until they are used.
_CACHED = 2**20
# Pixels of a matrix product of a kernel's gradient: with fewer, adding the products up costs more.
_FEWEST = 512
# Winograd's form pays from here on (docs/performance.md, "Half of the products"). Its sums are in
# proportion to the channels in and out, c + f, and what it saves is in proportion to c f: the least
# c f / (c + f).
_WIDE = 16
# Its tiles may jut out of the map: the largest share of the products that may be left.
_FEW_PRODUCTS = 0.75
# Outputs of an image: with fewer, mixing the kernel takes as long.
_FEWEST_OUTPUTS = 256
# Products of an image times c f / (c + f), as wide convolutions save a larger share of theirs: with
# less, hundreds of steps save no more than compiling the form takes.
_WORTH_COMPILING = 2**34
# Columns of dy in its products for the kernel's gradient (of volumes, taps of height x f):
# with fewer, unrolling the columns of x takes as long.
_WIDE_GRADIENT = 128


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
  x = cut(x, slice(None), *(slice(None, None, s) for s in strides))
  flat = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[-2:])
  return flat.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, strides: Ints, pads: Pairs, dilation: Ints) -> Array:
  """Convolution with strides, padding and dilation given per dimension."""
  geometry = _Geometry(strides=strides, pads=pads, dilation=dilation)
  return _conv_by_platform(x, kernel, geometry, _form_on_cpu(x, kernel, **geometry))


def _conv_forward(
  x: Array, kernel: Array, strides: Ints, pads: Pairs, dilation: Ints
) -> tuple[Array, tuple[Array, Array]]:
  geometry = _Geometry(strides=strides, pads=pads, dilation=dilation)
  form = _form_on_cpu(x, kernel, **geometry)
  if form is _convolve_tiles:
    form = functools.partial(form, once=True)
  return _conv_by_platform(x, kernel, geometry, form), (x, kernel)


def _conv_by_platform(
  x: Array, kernel: Array, geometry: "_Geometry", on_cpu: Callable[..., Array]
) -> Array:
  dense = functools.partial(_dense, **geometry)
  if on_cpu is _dense:
    return dense(x, kernel)
  return lax.platform_dependent(x, kernel, cpu=functools.partial(on_cpu, **geometry), default=dense)


def _conv_backward(
  strides: Ints, pads: Pairs, dilation: Ints, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  geometry = _Geometry(strides=strides, pads=pads, dilation=dilation)

  def dense(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(functools.partial(_dense, **geometry), x, kernel)[1](dy)

  def shifted(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(functools.partial(_shifted_products, **geometry), x, kernel)[1](dy)

  def columns(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    # A bfloat16 product rounds once, at the end; a sum over images would round every time.
    dy_columns = math.prod(kernel.shape[1 : len(strides) - 1]) * kernel.shape[-1]
    halved = dy_columns >= _WIDE_GRADIENT and _saves_products(x, kernel, **geometry)
    gradient = _kernel_gradient_of_tiles if halved else _kernel_gradient
    dkernel = gradient(x, kernel.shape, dy, **geometry).astype(kernel.dtype)
    # XLA would mirror all kernels at the start. A large x, kept or computed again for the kernel's
    # gradient, should be gone before its own gradient comes, which is as large.
    first = dkernel if kernel.size <= x.size else dy
    if math.prod(strides) > 1:
      return dense(x, after(kernel, [first]), dy)[0], dkernel
    return _input_gradient(x.shape, kernel, dy, first=first, pads=pads, dilation=dilation), dkernel

  if _is_sparse(x, kernel, **geometry):
    return lax.platform_dependent(x, kernel, dy, cpu=shifted, default=dense)
  if x.shape[-1] >= _NARROW or _is_stack(strides):
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
  sums_in = _dtype_of_sums(x)
  beside = jnp.moveaxis(kernel, 0, -2).reshape(*size, c, taps * f)
  plane = _output_size(x.shape[2:-1], tuple(size), **flat)
  some = _largest_divisor(d, _CACHED // (b * math.prod(plane) * taps * f))
  # Tap t of slice i counts for sum i + first[t]. So a part of the slices adds to `reach` sums more
  # than it has slices; later slices complete those. From one edge to the next the same taps count.
  reach, (before, after) = dilation[0] * (taps - 1), pads[0]
  first = [reach - dilation[0] * t for t in range(taps)]
  edges = sorted({0, reach, some, *first, *(place + some for place in first)})

  def add_slices(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
    complete, open_sums = sums
    slices = lax.dynamic_slice_in_dim(x, i * some, some, axis=1)
    y = _dense(slices.reshape(-1, *slices.shape[2:]), beside, **flat, sums=sums_in)
    y = y.reshape(b, some, *plane, taps, f)
    still_open = [open_sums[:, :0]]
    for lo, hi in itertools.pairwise(edges):
      parts = [
        y[:, lo - place : hi - place, ..., t, :]
        for t, place in enumerate(first)
        if place <= lo and hi <= place + some
      ]
      if hi <= reach:
        parts.append(open_sums[:, lo:hi])
      total = sum(parts, jnp.zeros((b, hi - lo, *plane, f), sums_in))
      if lo >= some:
        still_open.append(total)
      else:
        total = total.astype(x.dtype)
        complete = lax.dynamic_update_slice_in_dim(complete, total, i * some + lo, axis=1)
    return complete, jnp.concatenate(still_open, axis=1)

  complete = jnp.zeros((b, d + reach, *plane, f), x.dtype)
  open_sums = jnp.zeros((b, reach, *plane, f), sums_in)
  complete, last = lax.fori_loop(0, d // some, add_slices, (complete, open_sums))
  complete = lax.dynamic_update_slice_in_dim(complete, last.astype(x.dtype), d, axis=1)
  along_depth = [(0, 0, 0), (before - reach, after - reach, 0), *[(0, 0, 0)] * (x.ndim - 2)]
  return lax.pad(complete, jnp.zeros((), x.dtype), along_depth)


def _convolve_tiles(
  x: Array,
  kernel: Array,
  *,
  strides: Ints,
  pads: Pairs,
  dilation: Ints,
  once: bool = False,
) -> Array:
  """A convolution of three taps and stride 1 along the first axis, by half of the products."""
  geometry = _Geometry(strides=strides, pads=pads, dilation=dilation)

  def kernels(first: Array) -> list[Array]:
    # XLA would mix all kernels of a network at the start.
    return computed_after([first], winograd.mix_taps, kernel)

  return _convolve_mixtures(x, kernels, once=once, **geometry)


def _convolve_mixtures(
  x: Array,
  kernels: Callable[[Array], Sequence[Array]],
  *,
  strides: Ints,
  pads: Pairs,
  dilation: Ints,
  once: bool,
) -> Array:
  """As `_convolve_tiles`, with `kernels` as for `winograd.convolve`."""
  flat = _Geometry(strides=strides[1:], pads=pads[1:], dilation=dilation[1:])
  rest = functools.partial(_dense, **flat)
  return winograd.convolve(x, kernels, rest, pads=pads[0], dilation=dilation[0], once=once)


def _kernel_gradient_of_tiles(
  x: Array, shape: Sequence[int], dy: Array, *, strides: Ints, pads: Pairs, dilation: Ints
) -> Array:
  """As `_kernel_gradient`, by half of the products; for what `_convolve_tiles` convolves."""
  flat = _Geometry(strides=strides[1:], pads=pads[1:], dilation=dilation[1:])

  def rest(x: Array, dy: Array) -> Array:
    return _kernel_gradient(x, shape[1:], dy, **flat)

  # XLA would mix the rows of x as soon as it has them, and keep the mixtures until dy comes.
  x = after(x, [dy])
  return winograd.kernel_gradient(x, dy, rest, before=pads[0][0], dilation=dilation[0])


def _largest_divisor(n: int, most: int) -> int:
  """The largest divisor of n that is at most `most`; 1 if there is no other."""
  return max(i for i in range(1, n + 1) if n % i == 0 and i <= max(most, 1))


def _input_gradient(
  shape: Sequence[int], kernel: Array, dy: Array, *, first: Array, pads: Pairs, dilation: Ints
) -> Array:
  """Gradient of the input for strides of 1: a convolution by the mirrored kernel.

  JAX's own is the same with its kernel's channels swapped by name, for which XLA has only its slow
  form inside of loops. The kernel is mirrored after `first`, and by itself: XLA takes three times
  as long to swap channels and do anything else at once.
  """
  rank = len(pads)
  edges = tuple(
    (d * (k - 1) - lo, n - out + lo)
    for d, k, (lo, _), n, out in zip(
      dilation, kernel.shape[:rank], pads, shape[1:-1], dy.shape[1:-1], strict=True
    )
  )
  geometry = _Geometry(strides=(1,) * rank, pads=edges, dilation=dilation)

  def mirror(kernel: Array) -> Array:
    return lax.rev(kernel, range(rank)).swapaxes(-1, -2)

  def mirrored_mixtures(kernel: Array) -> list[Array]:
    return [mixture.swapaxes(-1, -2) for mixture in winograd.mix_taps(lax.rev(kernel, range(rank)))]

  form = _form_on_cpu(dy, jax.eval_shape(mirror, kernel), **geometry)
  if form is _convolve_tiles:
    kernels = computed_after([first], mirrored_mixtures, kernel)
    return _convolve_mixtures(dy, lambda _: kernels, once=True, **geometry)
  return form(dy, computed_after([first], mirror, kernel), **geometry)


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
    places = [
      slice(first * step + s, (last - 1) * step + s + 1, step)
      for (first, last), s, step in zip(spans, shift, strides, strict=True)
    ]
    part = cut(x, slice(None), *places)
    product = part.reshape(-1, part.shape[-1]) @ kernel[tap]
    edges = [(first, o - last) for (first, last), o in zip(spans, out, strict=True)]
    product = jnp.pad(product.reshape(*part.shape[:-1], -1), [(0, 0), *edges, (0, 0)])
    total = product if total is None else total + product
  assert total is not None, "a kernel whose taps all lie in padding"
  return total


def _kernel_gradient(
  x: Array, shape: Sequence[int], dy: Array, *, strides: Ints, pads: Pairs, dilation: Ints
) -> Array:
  """Gradient of the kernel as matrix products of unrolled columns, a part of the batch at a time.

  A part is a few rows, slices or images, whose columns stay in cache. Unrolling x over all taps
  would make kh kw times its size of columns. So the taps of leading dimensions of stride 1 are
  unrolled on dy, mirrored: kw times x and kh times dy.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    shape: shape of the kernel, [kh kw c f].
    dy: gradient of the output, [b h' w' f].
    strides: step of the output grid, per dimension.
    pads: (before, after) per dimension.
    dilation: distance between taps, per dimension.

  Returns:
    [kh kw c f], float32; float64 if x is.
  """
  rank, (c, f) = len(strides), shape[-2:]
  split = _leading_ones(strides[:-1]) if c >= _NARROW else 0
  # The batch is one more dimension, of one tap. Those up to `split` are unrolled on dy.
  strides, dilation, pads, taps = (1, *strides), (1, *dilation), ((0, 0), *pads), (1, *shape[:rank])
  reach = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
  on_dy, on_x = range(split + 1), range(split + 1, rank + 1)
  n_dy, n_x = (math.prod(taps[axis] for axis in axes) for axes in (on_dy, on_x))

  places = (*x.shape[: split + 1], *dy.shape[split + 1 : -1])
  part = _part(places, max(_CACHED // (n_x * c + n_dy * f), _FEWEST))
  counts = [cdiv(n, some) for n, some in zip(places, part, strict=True)]

  # Tap t of dy, seen from x's place p, is dy[p + before - t dilation]. Rows are cheaper to pad part
  # by part.
  def padded(a: Array, edges: Sequence[tuple[int, int]]) -> Array:
    return lax.pad(a, jnp.zeros((), a.dtype), [(lo, hi, 0) for lo, hi in [*edges, (0, 0)]])

  sums_in, none = _dtype_of_sums(x), [(0, 0)] * (rank + 1)
  dy_edges = [(r - lo, r - hi) for r, (lo, hi) in zip(reach, pads, strict=True)]
  x = padded(x, [*none[: split + 1], *pads[split + 1 : -1], (0, 0)])
  dy = padded(dy, [*dy_edges[: split + 1], *none[split + 1 :]])

  def unroll(a: Array, at: Sequence[Array], axes: range, steps: Ints, *, mirror: bool) -> Array:
    """Columns of a part: for each of its places what every tap of some axes sees of `a`."""
    spans = [(some - 1) * step + 1 for some, step in zip(part, steps, strict=True)]
    window = [span + (axis in axes) * reach[axis] for axis, span in enumerate(spans)]
    start = [i * step for i, step in zip(at, steps, strict=True)]
    a = lax.dynamic_slice(a, (*start, 0), (*window[:-1], *a.shape[-2:]))
    a = padded(a, [*none[:-1], pads[-1] if rank in axes else (0, 0)])
    seen = []
    for tap in itertools.product(*(range(taps[axis]) for axis in axes)):
      first = [0] * len(part)
      for axis, t in zip(axes, tap, strict=True):
        first[axis] = dilation[axis] * (taps[axis] - 1 - t if mirror else t)
      ends = zip(first, spans, steps, strict=True)
      seen.append(cut(a, *(slice(lo, lo + span, step) for lo, span, step in ends)))
    return jnp.concatenate(seen, axis=-1).reshape(math.prod(part), -1)

  def add_part(i: Array, total: Array) -> Array:
    at, new = [jnp.zeros_like(i)] * len(part), jnp.array(True)
    for axis in reversed(range(len(part))):
      if counts[axis] == 1:
        continue  # no arithmetic to compile
      n, some = places[axis], part[axis]
      at[axis], i = lax.rem(i, counts[axis]) * some, lax.div(i, counts[axis])
      if n % some:
        # The last part begins early enough to end at the edge; what was counted is left out.
        due, at[axis] = at[axis], jnp.minimum(at[axis], n - some)
        new &= lax.broadcasted_iota(due.dtype, part, axis) >= due - at[axis]
    columns = unroll(x, at, on_x, strides, mirror=False)
    dcolumns = unroll(dy, at, on_dy, (1,) * (rank + 1), mirror=True)
    if new.ndim:
      dcolumns = jnp.where(new.reshape(-1, 1), dcolumns, 0)
    return total + jnp.dot(columns.T, dcolumns, preferred_element_type=sums_in)

  zeros = jnp.zeros((n_x * c, n_dy * f), sums_in)
  total = lax.fori_loop(0, math.prod(counts), add_part, zeros)
  return total.reshape(n_x, c, n_dy, f).transpose(2, 0, 1, 3).reshape(shape)


def _dtype_of_sums(x: Array) -> jnp.dtype:
  return jnp.promote_types(x.dtype, jnp.float32)


def _leading_ones(strides: Ints) -> int:
  return len(list(itertools.takewhile(lambda s: s == 1, strides)))


def _part(places: Ints, most: int) -> Ints:
  """A part of a grid that has about so many places, but whole rows: a size per axis."""
  part, left = [places[-1]], most // places[-1]
  for n in reversed(places[:-1]):
    some = _largest_divisor(n, left)
    if 2 * some < min(left, n):
      some = cdiv(n, cdiv(n, left))  # the last part overlaps with the one before
    part.insert(0, some)
    left //= n  # nothing, unless n is whole
  return tuple(part)


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


def _form_on_cpu(
  x: Array, kernel: Array, *, strides: Ints, pads: Pairs, dilation: Ints
) -> Callable[..., Array]:
  """The function that computes a convolution on a CPU."""
  geometry = _Geometry(strides=strides, pads=pads, dilation=dilation)
  if _is_sparse(x, kernel, **geometry):
    return _shifted_products
  if _saves_products(x, kernel, **geometry):
    return _convolve_tiles
  return _convolve_slices if _is_stack(strides) else _dense


def _saves_products(x: Array, kernel: Array, *, strides: Ints, pads: Pairs, dilation: Ints) -> bool:
  """Whether Winograd's form saves more products than its sums cost."""
  if x.dtype != jnp.float32 or strides[0] != 1 or kernel.shape[0] != winograd.TAPS or x.ndim < 4:
    return False
  rank, (c, f) = len(strides), kernel.shape[-2:]
  out = _output_size(x.shape[1:-1], kernel.shape[:rank], strides, pads, dilation)
  return (
    c * f >= _WIDE * (c + f)
    and math.prod(out) >= _FEWEST_OUTPUTS
    and math.prod(out) * kernel.size * c * f >= _WORTH_COMPILING * (c + f)
    and winograd.share_of_products(out[0], dilation[0]) <= _FEW_PRODUCTS
  )


def _is_stack(strides: Ints) -> bool:
  """Whether a convolution of volumes keeps their slices, so that one of slices does its work."""
  return len(strides) == 3 and strides[0] == 1


def _is_sparse(x: Array, kernel: Array, *, strides: Ints, pads: Pairs, dilation: Ints) -> bool:
  """Whether shifted products beat a dense convolution, which would compute much padding.

  Without a rate only a tiny map is mostly padding, and its convolution takes no time.
  """
  rank = len(strides)
  if max(dilation) == 1 or math.prod(kernel.shape[:rank]) > _MOST_TAPS:
    return False
  out = _output_size(x.shape[1:-1], kernel.shape[:rank], strides, pads, dilation)
  share = 1.0
  for axis, (lo, _) in enumerate(pads):
    taps, n, d, s = kernel.shape[axis], x.shape[1 + axis], dilation[axis], strides[axis]
    spans = [_covered(n, out[axis], t * d - lo, s) for t in range(taps)]
    share *= sum(max(0, last - first) for first, last in spans) / (taps * max(1, out[axis]))
  return share < _SPARSE
