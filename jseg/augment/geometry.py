"""Geometry of augmentation: where each output pixel lies in the source, and reading it there.

Positions are continuous: pixel j has its center at j and covers [j - 1/2, j + 1/2). They come
as y [h 1] and x [1 w], a grid of rows and columns, until a rotation or a deformation makes both
[h w]. `size` [2] is what the image covers of its canvas, from the top left. Nothing outside of it
is ever read: beyond an edge, the edge goes on. `grid`, `place`, `flip`, `to_source`, `inside` and
`read_nearest` take volumes as well: positions are z, y, x then, and sizes have three numbers.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Positions = tuple[jax.Array, ...]


def grid(*size: int) -> Positions:
  """The positions of an image's own pixels: float32 y [h 1], x [1 w]; z, y, x of a volume."""
  rank = len(size)
  return tuple(
    jnp.arange(n, dtype=jnp.float32).reshape([n if j == i else 1 for j in range(rank)])
    for i, n in enumerate(size)
  )


def place(
  size: jax.Array, crop: Sequence[int], factor: jax.Array, draws: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Places a crop in an image that is scaled first.

  Args:
    size: int32 [2] or [3], size of the image.
    crop: size of the crop.
    factor: factor by which the image is scaled first.
    draws: [2] or [3] in [0, 1), the random place along each axis.

  Returns:
    (offset, ratio) for `to_source`: a larger image is cropped, a smaller one lies in the crop.
  """
  scaled = jnp.maximum(jnp.round(size * factor).astype(jnp.int32), 1)
  slack = scaled - jnp.array(crop)
  return jnp.sign(slack) * jnp.floor(draws * (jnp.abs(slack) + 1)), size / scaled


def rotate(positions: Positions, angle: jax.Array, height: int, width: int) -> Positions:
  """Turns positions about the middle of a height x width image; the picture turns clockwise."""
  y, x = positions[0] - (height - 1) / 2, positions[1] - (width - 1) / 2
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return cos * y - sin * x + (height - 1) / 2, sin * y + cos * x + (width - 1) / 2


def elastic(positions: Positions, nodes: jax.Array, height: int, width: int) -> Positions:
  """Moves each position of a height x width image by its displacement.

  `nodes` [n m 2] holds displacements (down, right) in pixels, float32, on a coarse grid over the
  image; in between they are interpolated by cubics.
  """
  moved = jax.image.resize(nodes, (height, width, 2), "cubic")
  return positions[0] + moved[..., 0], positions[1] + moved[..., 1]


def flip(positions: Positions, vertical: jax.Array, horizontal: jax.Array) -> Positions:
  """Reverses the rows and the columns of an output, each if its bool is set."""

  def apply(position: jax.Array) -> jax.Array:
    position = jnp.where(vertical, position[..., ::-1, :], position)
    return jnp.where(horizontal, position[..., ::-1], position)

  return tuple(map(apply, positions))


def to_source(positions: Positions, offset: jax.Array, ratio: jax.Array) -> Positions:
  """From pixels of the output to pixels of the source.

  Args:
    positions: in the output.
    offset: [2] or [3], where the output begins in the scaled source; negative where padding does.
    ratio: float32, as long, source pixels per pixel of the scaled source; at 1 nothing is rounded.
  """
  return tuple((p + 0.5 + o) * r - 0.5 for p, o, r in zip(positions, offset, ratio, strict=True))


def inside(positions: Positions, size: jax.Array) -> jax.Array:
  """Whether each position lies within the image: bool [h w]."""
  along = ((p >= -0.5) & (p < n - 0.5) for p, n in zip(positions, size, strict=True))
  return functools.reduce(operator.and_, along)


def read_nearest(label: jax.Array, positions: Positions, size: jax.Array) -> jax.Array:
  """The value [h w] of the pixel of label [H W] that covers each position."""
  return label[
    tuple(
      jnp.clip(jnp.floor(p + 0.5).astype(jnp.int32), 0, n - 1)
      for p, n in zip(positions, size, strict=True)
    )
  ]


def linear_matrix(position: jax.Array, extent: int, size: jax.Array, ratio: jax.Array) -> jax.Array:
  """Matrix that reads a canvas of `extent` pixels at `position` [n] by linear interpolation.

  The kernel is a triangle of half-width max(ratio, 1): interpolation when enlarging, a low-pass
  filter besides when shrinking. Its rows sum to 1 over the pixels of the image.

  Returns:
    float32 [n extent].
  """
  pixel = jnp.arange(extent, dtype=jnp.float32)[None, :]
  distance = jnp.abs(jnp.clip(position, 0, size - 1)[:, None] - pixel)
  weight = jnp.maximum(0.0, 1 - distance / jnp.maximum(ratio, 1.0))
  weight = jnp.where(pixel < size, weight, 0.0)
  return weight / weight.sum(axis=1, keepdims=True)


def gaussian_matrix(extent: int, sigma: jax.Array) -> jax.Array:
  """Matrix [extent extent] of a Gaussian blur, sigma in pixels; the identity at sigma 0."""
  pixel = jnp.arange(extent, dtype=jnp.float32)
  distance = (pixel[:, None] - pixel[None, :]) / jnp.maximum(sigma, 1e-3)
  weight = jnp.exp(-0.5 * distance**2)
  return weight / weight.sum(axis=1, keepdims=True)


def apply_separable(rows: jax.Array, image: jax.Array, columns: jax.Array) -> jax.Array:
  """Computes rows @ image @ columns^T: [h H], [H W c], [w W] -> float32 [h w c]."""
  # Accelerators would round to bfloat16; the exactness of unit scale is worth the passes.
  highest = jax.lax.Precision.HIGHEST
  image = jnp.einsum("iy,yxc->icx", rows, image.astype(jnp.float32), precision=highest)
  return jnp.einsum("icx,jx->ijc", image, columns, precision=highest)


def read_linear(
  image: jax.Array, positions: Positions, size: jax.Array, ratio: jax.Array
) -> jax.Array:
  """Reads an image at positions by linear interpolation, filtered where it shrinks.

  On a grid this is two matrix products, with no access by pixel. Elsewhere it is a filter by the
  same products, then four reads; together they have the variance of the grid's kernel, and equal
  it where nothing shrinks.

  Args:
    image: uint8 or float [H W c].
    positions: in the image.
    size: int32 [2], what the image covers of its canvas.
    ratio: float32 [2], image pixels per output pixel, along each axis.

  Returns:
    float32 [h w c].
  """
  y, x = positions
  if y.shape[1] == x.shape[0] == 1:
    return _apply_linear(image, y[:, 0], x[0], size, ratio)
  rows, columns = grid(*image.shape[:2])
  return _read_bilinear(_apply_linear(image, rows[:, 0], columns[0], size, ratio), positions, size)


def _apply_linear(
  image: jax.Array, y: jax.Array, x: jax.Array, size: jax.Array, ratio: jax.Array
) -> jax.Array:
  rows = linear_matrix(y, image.shape[0], size[0], ratio[0])
  columns = linear_matrix(x, image.shape[1], size[1], ratio[1])
  return apply_separable(rows, image, columns)


def pixels_around(position: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the pixels before and after positions along an axis of size pixels, and how far
  positions are from the first of them to the second, in 0..1.
  """
  # XLA may compute a position once to find its pixel and once more for its distance, and round it
  # to either side of a whole number: a pixel would be read with the distance of the next. Positions
  # lie on whole numbers wherever hardly anything moves, and this rounds them there.
  position = lax.reduce_precision(
    jnp.clip(position, 0, size - 1), exponent_bits=8, mantissa_bits=20
  )
  before = jnp.floor(position).astype(jnp.int32)
  return before, jnp.minimum(before + 1, size - 1), position - before


def _read_bilinear(image: jax.Array, positions: Positions, size: jax.Array) -> jax.Array:
  (top, bottom, down), (left, right, across) = map(pixels_around, positions, size)
  down, across = down[..., None], across[..., None]
  upper = image[top, left] * (1 - across) + image[top, right] * across
  lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
  return upper * (1 - down) + lower * down
