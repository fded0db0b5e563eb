"""Boxes (y0 x0 y1 x1) in pixels, with pixel edges as coordinates, and deltas (dy dx dh dw)."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jseg.types import Array

# Largest log growth of a box, as in Detectron and torchvision: a 16 pixel anchor to 1000 pixels.
_MAX_LOG_GROWTH = math.log(1000 / 16)


def box_area(boxes: Array) -> Array:
  """Area float32 [...] of boxes [... 4]; 0 where a side is negative."""
  return _product(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0))


def has_sides(boxes: Array, length: float) -> Array:
  """Whether both sides of boxes [... 4] are at least `length` pixels long, bool [...]."""
  return ((boxes[..., 2:] - boxes[..., :2]) >= length).all(-1)


def intersection(a: Array, b: Array) -> Array:
  """Area [... n m] that each of the boxes a [... n 4] shares with each of b [... m 4]."""
  a, b = a[..., :, None, :], b[..., None, :, :]
  low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
  return _product(jnp.maximum(high - low, 0))


def _product(sides: Array) -> Array:
  """Product [...] of two sides [... 2].

  `jnp.prod` is a reduction: of anchors, which are constants, XLA computes it while it compiles, and
  takes seconds.
  """
  return sides[..., 0] * sides[..., 1]


def iou(a: Array, b: Array) -> Array:
  """Intersection over union [... n m] of a [... n 4] and b [... m 4]; 0 if both are empty."""
  shared = intersection(a, b)
  union = box_area(a)[..., :, None] + box_area(b)[..., None, :] - shared
  return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def clip_boxes(boxes: Array, size: Array) -> Array:
  """Boxes [... 4] clipped to an image whose (height, width) is `size` [2]."""
  return jnp.clip(boxes, 0, jnp.broadcast_to(jnp.tile(size, 2), boxes.shape).astype(boxes.dtype))


def encode_boxes(boxes: Array, references: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
  """Deltas from references to boxes (Girshick et al. 2014, arXiv:1311.2524, appendix C).

  Args:
    boxes: [... 4].
    references: [... 4], anchors or regions.
    weights: factors of the deltas (dy dx dh dw).

  Returns:
    [... 4]: shift of the center in sides of the reference and logarithm of the growth, times
    `weights`. Sides below .001 pixels count as .001, so that nothing is infinite.
  """
  center, size = _center_and_size(boxes)
  origin, unit = _center_and_size(references)
  size, unit = jnp.maximum(size, 1e-3), jnp.maximum(unit, 1e-3)
  deltas = jnp.concatenate([(center - origin) / unit, jnp.log(size / unit)], -1)
  return deltas * _align(weights, deltas)


def decode_boxes(
  deltas: Array, references: Array, weights: Sequence[float] = (1, 1, 1, 1)
) -> Array:
  """Boxes [... 4] from deltas; inverse of `encode_boxes`. A side grows at most 62.5-fold."""
  origin, unit = _center_and_size(references)
  deltas = deltas / _align(weights, deltas)
  center = deltas[..., :2] * unit + origin
  half = jnp.exp(jnp.minimum(deltas[..., 2:], _MAX_LOG_GROWTH)) * unit / 2
  return jnp.concatenate([center - half, center + half], -1)


def _center_and_size(boxes: Array) -> tuple[Array, Array]:
  size = boxes[..., 2:] - boxes[..., :2]
  return boxes[..., :2] + size / 2, size


def _align(weights: Sequence[float], like: Array) -> np.ndarray:
  return np.asarray(weights, np.float32).reshape((1,) * (like.ndim - 1) + (4,))
