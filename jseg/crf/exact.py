"""The exact Gaussian filter of scattered points, block by block; no matrix is ever stored.

Like attention without the maximum of its softmax. O(n^2 (d + c)) operations, O(n (d + c)) memory.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.arithmetic import cdiv
from jseg.crf import exact_tpu
from jseg.crf.blocks import Blocks, kernel
from jseg.crf.stages import stored
from jseg.types import Array

GROUP = 4
"""Number of blocks that a step of the loop over a row's blocks takes, but on TPUs."""


@jax.custom_vjp
def exact_filter(x: Array, features: Array, blocks: Blocks) -> Array:
  """Multiplies the kernel matrix exp(-|f_i - f_j|^2 / 2) by x.

  Args:
    x: [n c] values; those of points that don't count are taken for 0.
    features: [n d] in standard deviations.
    blocks: `make_blocks` of the features.

  Returns:
    [n c]; 0 for points that don't count. Its derivatives by x and by the features are exact but for
    the pairs of blocks that are left out.
  """
  y = _by_platform(
    _sorted(x, blocks),
    _sorted(features, blocks),
    blocks.keep,
    tpu=exact_tpu.weighted_sums,
    default=_weighted_sums,
  )
  return _unsorted(y, blocks)


_Saved: TypeAlias = tuple[Array, Array, Blocks]


def _forward(x: Array, features: Array, blocks: Blocks) -> tuple[Array, _Saved]:
  return exact_filter(x, features, blocks), (x, features, blocks)


def _backward(saved: _Saved, g: Array) -> tuple[Array, Array, Blocks]:
  x, features, blocks = saved
  by_features = _by_platform(
    _sorted(g, blocks),
    _sorted(x, blocks),
    _sorted(features, blocks),
    blocks.keep,
    tpu=exact_tpu.by_features,
    default=_by_features,
  )
  none = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), blocks)
  # The matrix is its own transpose.
  return exact_filter(g, features, blocks), _unsorted(by_features, blocks), none


def _by_platform(*args: Array, tpu: Callable[..., Array], default: Callable[..., Array]) -> Array:
  # JAX can't lower a Pallas kernel within a program for several platforms, as exported ones are.
  if jax.default_backend() != "tpu":
    return default(*args)
  return lax.platform_dependent(*args, tpu=tpu, default=default)


exact_filter.defvjp(_forward, _backward)


def _sorted(x: Array, blocks: Blocks) -> Array:
  """[n c] -> [r b c]."""
  x = jnp.where(blocks.used[:, None], x[blocks.order], 0)
  return x.reshape(len(blocks.keep), -1, x.shape[1])


def _unsorted(y: Array, blocks: Blocks) -> Array:
  """[r b c] -> [n c]."""
  y = jnp.where(blocks.used[:, None], y.reshape(len(blocks.used), -1), 0)
  return y[blocks.place]


def _weighted_sums(x: Array, features: Array, keep: Array) -> Array:
  """sum_j K_ij x_j of blocks [r b c]."""

  def add(row: tuple[Array, ...], others: tuple[Array, ...]) -> Array:
    return jnp.dot(_kernel(row[0], others[0]), others[1], precision=lax.Precision.HIGHEST)

  return _by_rows(add, (features, x), keep, x.shape[2])


def _by_features(g: Array, x: Array, features: Array, keep: Array) -> Array:
  """Derivative of sum_ij g_i K_ij x_j by the features of blocks [r b d]."""

  def add(row: tuple[Array, ...], others: tuple[Array, ...]) -> Array:
    (a, left, _), (b, _, right) = row, others
    both = _kernel(a, b) * jnp.dot(left, right.T, precision=lax.Precision.HIGHEST)
    differences = (q[None] - p[:, None] for p, q in zip(a.T, b.T, strict=True))
    return jnp.stack([(both * difference).sum(1) for difference in differences], 1)

  left, right = jnp.concatenate([g, x], 2), jnp.concatenate([x, g], 2)
  return _by_rows(add, (features, left, right), keep, features.shape[2])


def _kernel(a: Array, b: Array) -> Array:
  return stored(kernel, a.T, b.T)  # Fused with the product, it is computed for every column.


def _by_rows(
  add: Callable[[tuple[Array, ...], tuple[Array, ...]], Array],
  blocks: tuple[Array, ...],
  keep: Array,
  width: int,
) -> Array:
  """Sums up add(block, others) over the kept others of each block: [r b width]."""
  count, size = blocks[0].shape[:2]
  steps = cdiv(count, GROUP)
  others = jnp.pad(jnp.argsort(~keep, axis=1), ((0, 0), (0, steps * GROUP - count)))

  def row(block: tuple[tuple[Array, ...], Array, Array]) -> Array:
    here, there, kept = block

    def step(i: Array, total: Array) -> Array:
      at = lax.dynamic_slice_in_dim(there, i * GROUP, GROUP)
      fits = (i * GROUP + lax.iota(jnp.int32, GROUP) < kept)[:, None, None]
      chosen = [b[at] for b in blocks]
      features, *values = chosen
      masked = (features, *(jnp.where(fits, v, 0) for v in values))
      return total + add(here, tuple(v.reshape(GROUP * size, -1) for v in masked))

    start = jnp.zeros((size, width), blocks[0].dtype)
    return lax.fori_loop(0, cdiv(kept, GROUP), step, start)

  return lax.map(row, (blocks, others, keep.sum(1)))
