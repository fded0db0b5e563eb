"""Upsampling by strided kernels: transposed convolutions, learned or fixed, and bed of nails.

A transposed convolution of kernel k and stride s makes (n - 1) s + k pixels of n. Each input puts a
scaled copy of the kernel s pixels after its neighbor's, and the copies add up:

  out[s i + a] += x[i] @ kernel[a]        for a in 0 .. k - 1
"""

import functools
import itertools
import math
from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.arithmetic import cdiv
from jseg.nn.conv import per_dimension
from jseg.nn.initializers import normal, root_of_inputs
from jseg.nn.layer import KernelLayer
from jseg.types import Array

he_normal_per_tap = normal(lambda shape: root_of_inputs(2)(shape[-2:]))
"""N(0, sqrt(2 / c)): an output pixel of an up-convolution sees one tap, so c inputs."""


def bilinear_kernel(
  key: Array | None, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
) -> Array:
  """Initializer of a transposed convolution that interpolates linearly, channel by channel.

  As in FCN (shelhamer/fcn.berkeleyvision.org, `surgery.py`): a tent of slope 1 / ceil(k / 2). It
  interpolates exactly for kernels 2 s and 2 s - 1, s being the stride.

  Args:
    key: not used.
    shape: shape of the kernel, [kh kw c c], or with any other number of spatial dimensions.
    dtype: dtype of the kernel.
  """
  del key
  *size, c, f = shape
  chex.assert_equal(c, f)
  tent = functools.reduce(np.multiply.outer, map(_tent, size))
  return jnp.asarray(np.multiply.outer(tent, np.eye(c)), dtype)


class UpConv(KernelLayer):
  """Doubles every spatial dimension: [b h w c] -> [b 2h 2w features]; volumes [b d h w c] too.

  out[2i + a, 2j + b] = x[i, j] @ kernel[a, b] + bias: the transposed convolution whose stride is
  its kernel size. Taps never overlap, so this is one matrix product and a reordering. The kernel
  [2 2 c features], or [2 2 2 c features], is PyTorch's with its first two dimensions moved last.

  Attributes:
    features: channels of the output.
    use_bias: whether to add a learned bias.
    kernel_init: initializer of `kernel`.
  """

  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = he_normal_per_tap

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Upsamples x."""
    return self.apply_kernel(
      x,
      (*(2,) * (x.ndim - 2), x.shape[-1], self.features),
      functools.partial(conv_transpose, strides=2),
      init=self.kernel_init,
      use_bias=self.use_bias,
    )


class ConvTranspose(KernelLayer):
  """Transposed convolution, [b h w c] -> [b (h-1)s+kh (w-1)s+kw features]; volumes too.

  Nothing is cropped: what Caffe and PyTorch give without padding. The kernel [kh kw c features] is
  PyTorch's [c features kh kw] with its first two dimensions moved last, and not mirrored.

  Attributes:
    features: channels of the output.
    kernel_size: one size per spatial dimension.
    strides: distance between the copies of the kernel, one number or one per dimension.
    use_bias: whether to add a learned bias.
    kernel_init: initializer of `kernel`; None: N(0, sqrt(2 / n)) with n the number of inputs that
      an output sees, c kh kw / s^2.
  """

  kernel_size: Sequence[int]
  strides: int | Sequence[int] = 1
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Upsamples x."""
    strides = per_dimension(self.strides, x.ndim - 2)
    init = self.kernel_init or normal(root_of_inputs(2 * math.prod(strides)))
    return self.apply_kernel(
      x,
      (*self.kernel_size, x.shape[-1], self.features),
      functools.partial(conv_transpose, strides=strides),
      init=init,
      use_bias=self.use_bias,
    )


def conv_transpose(x: Array, kernel: Array, *, strides: int | Sequence[int]) -> Array:
  """Transposed convolution: one matrix product, or on a TPU XLA's own convolution.

  The stride cuts the output into blocks of s x s pixels. A block sees ceil(k / s) inputs along each
  dimension and nothing else, so a product of those inputs with the kernel gives whole blocks: no
  zeros are put between inputs to be multiplied, and the derivatives are products as well. A TPU
  spends more on putting the blocks in their places than it saves.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    kernel: [kh kw c f], of the dtype of x.
    strides: distance between the copies of the kernel, one number or one per dimension.

  Returns:
    [b h' w' f] with h' = (h - 1) s + kh.
  """
  chex.assert_rank(kernel, x.ndim)
  chex.assert_equal(kernel.shape[-2], x.shape[-1])
  strides = per_dimension(strides, x.ndim - 2)
  blocks = functools.partial(_product_of_blocks, strides=strides)
  native = functools.partial(_dilated, strides=strides)
  return lax.platform_dependent(x, kernel, tpu=native, default=blocks)


def _dilated(x: Array, kernel: Array, *, strides: Sequence[int]) -> Array:
  """As a convolution of the map with zeros between its pixels, which XLA skips."""
  spatial = "DHW"[-len(strides) :]
  size = kernel.shape[:-2]
  return lax.conv_general_dilated(
    x,
    jnp.flip(kernel, range(len(size))),
    (1,) * len(size),
    [(k - 1, k - 1) for k in size],
    lhs_dilation=strides,
    dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
  )


def _product_of_blocks(x: Array, kernel: Array, *, strides: Sequence[int]) -> Array:
  b, *size, c = x.shape
  *kernel_size, _, f = kernel.shape
  rank = len(size)
  reach = [cdiv(k, s) for k, s in zip(kernel_size, strides, strict=True)]
  blocks = [n + m - 1 for n, m in zip(size, reach, strict=True)]

  # Kernel as [inputs of a block, pixels of a block]. Tap a of input i is pixel a % s of the block
  # that is a // s after i.
  missing = [(0, m * s - k) for m, s, k in zip(reach, strides, kernel_size, strict=True)]
  kernel = jnp.pad(kernel, [*missing, (0, 0), (0, 0)])
  kernel = kernel.reshape(*itertools.chain(*zip(reach, strides, strict=True)), c, f)
  kernel = kernel.transpose(*range(0, 2 * rank + 1, 2), *range(1, 2 * rank + 2, 2))
  kernel = kernel.reshape(math.prod(reach) * c, math.prod(strides) * f)

  x = jnp.pad(x, [(0, 0), *((m - 1, m - 1) for m in reach), (0, 0)])
  seen = [
    x[(slice(None), *(slice(m - 1 - t, -t or None) for t, m in zip(tap, reach, strict=True)))]
    for tap in itertools.product(*map(range, reach))
  ]
  y = jnp.concatenate(seen, -1).reshape(-1, kernel.shape[0]) @ kernel

  y = y.reshape(b, *blocks, *strides, f)
  y = y.transpose(0, *itertools.chain(*((i, i + rank) for i in range(1, rank + 1))), 2 * rank + 1)
  y = y.reshape(b, *(q * s for q, s in zip(blocks, strides, strict=True)), f)
  ends = ((n - 1) * s + k for n, s, k in zip(size, strides, kernel_size, strict=True))
  return y[(slice(None), *map(slice, ends))]


def upsample_fixed(x: Array, kernel_size: int, stride: int) -> Array:
  """Transposed convolution with `bilinear_kernel`, which is not a parameter here.

  The kernel is a product of tents and never mixes channels, so each dimension is a sum of
  ceil(kernel_size / stride) scaled copies.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    kernel_size: edge k of the kernel.
    stride: distance s between the copies of the kernel.

  Returns:
    [b h' w' c] of x's dtype with h' = (h - 1) s + k; computed in float32.
  """
  reach = cdiv(kernel_size, stride)
  weights = np.pad(_tent(kernel_size), (0, reach * stride - kernel_size)).reshape(reach, stride)
  y = x.astype(jnp.float32)
  for axis in range(1, x.ndim - 1):
    before, n, after = y.shape[:axis], y.shape[axis], y.shape[axis + 1 :]
    y = jnp.pad(y, [(reach - 1,) * 2 if i == axis else (0, 0) for i in range(x.ndim)])
    # Input q - t of block q, as in `conv_transpose`.
    copies = [
      jnp.expand_dims(
        lax.slice_in_dim(y, reach - 1 - t, 2 * reach - 2 - t + n, axis=axis), axis + 1
      )
      * jnp.expand_dims(weights[t], (*range(axis + 1), *range(axis + 2, x.ndim + 1)))
      for t in range(reach)
    ]
    y = sum(copies[1:], copies[0]).reshape(*before, (n + reach - 1) * stride, *after)
    y = lax.slice_in_dim(y, 0, (n - 1) * stride + kernel_size, axis=axis)
  return y.astype(x.dtype)


def bed_of_nails(x: Array, factor: int = 2) -> Array:
  """Puts each value at the top left of a block of factor x factor pixels that are zero otherwise.

  Args:
    x: [b h w c], or with any other number of spatial dimensions.
    factor: edge of the block in pixels.

  Returns:
    [b h' w' c] with h' = factor h.
  """
  inner = [(0, factor - 1, factor - 1)] * (x.ndim - 2)
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def _tent(size: int) -> np.ndarray:
  """float32 [size]: FCN's `upsample_filt`, 1 in the middle and linear towards 0 past the ends."""
  factor = (size + 1) // 2
  center = factor - 1 if size % 2 else factor - 0.5
  return (1 - np.abs(np.arange(size) - center) / factor).astype(np.float32)
