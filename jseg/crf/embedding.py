"""Pixels as points on the permutohedral lattice: their features, and the lattice around them."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.crf import lattice
from jseg.crf.lattice_tables import host_lattice, make_lattice
from jseg.types import Array, InputError


class Embedding(NamedTuple):
  """The n pixels of an image on a lattice.

  Attributes:
    weight: [D n] barycentric weights.
    lattice: the vertices around the pixels.
  """

  weight: Array
  lattice: lattice.Lattice


def positions(shape: Sequence[int], sigma: Array) -> Array:
  """Coordinates of the pixels [n, spatial axes] in standard deviations."""
  axes = [lax.broadcasted_iota(sigma.dtype, shape, i).reshape(-1) for i in range(len(shape))]
  return _scaled(jnp.stack(axes, 1), sigma)


def colors(image: Array, sigma: Array) -> Array:
  """Colors of the pixels [n c] in standard deviations."""
  return _scaled(image.reshape(-1, image.shape[-1]), sigma)


def _scaled(x: Array, sigma: Array) -> Array:
  return x / jnp.broadcast_to(sigma, x.shape[1:])[None]


@functools.partial(jax.jit, static_argnums=(0, 1))
def pixel_corners(
  shape: tuple[int, ...],
  turn: int,
  sigma_xy: Array,
  sigma_rgb: Array | None = None,
  image: Array | None = None,
) -> lattice.Corners:
  """Finds the simplex of each pixel, by position or by position and color.

  Args:
    shape: static; sizes of the image, without channels.
    turn: static; number of the orientation of the lattice, 0 to MAX_LATTICES - 1.
    sigma_xy: spatial bandwidths in pixels, [] or [spatial axes].
    sigma_rgb: color bandwidths, [] or [c]; None without an image.
    image: [*shape c]; None for the spatial kernel.
  """
  # The lattice depends a little on the order of features. pydensecrf's is x, y for images, and that
  # of the array for what its `create_pairwise_bilateral` makes.
  features = positions(shape, sigma_xy)
  features = features[:, ::-1] if len(shape) == 2 else features
  if image is not None and sigma_rgb is not None:
    features = jnp.concatenate([features, colors(image, sigma_rgb)], 1)
  return lattice.barycentric(features[:, _feature_order(features.shape[1], turn)])


def _feature_order(d: int, turn: int) -> np.ndarray:
  """Order of the d features of a turn: as they are, reversed, and the rotations of both.

  The lattice is not symmetric in its features, so that the errors of the turns differ.
  """
  return np.roll(np.arange(d)[:: -1 if turn % 2 else 1], turn // 2)


def _major_features(d: int, turn: int, ndim: int) -> list[int]:
  """Numbers of the features that are coordinates, rows before columns like pixels in memory.

  Empty for more than 6 features: their vertices need all bits of a key.
  """
  at = np.argsort(_feature_order(d, turn))[: ndim if d <= 6 else 0]
  return [int(i) for i in (at[::-1] if ndim == 2 else at)]


def host_embedding(
  corners: lattice.Corners,
  turn: int,
  padded: tuple[int, ...],
  shape: tuple[int, ...],
  bandwidths: str,
) -> Embedding:
  """Builds the lattice of an image with NumPy.

  Args:
    corners: `pixel_corners` of the padded image.
    turn: number of the orientation that `corners` were made with.
    padded: sizes of the padded image.
    shape: sizes of the image; pixels beyond are on no vertex.
    bandwidths: names and values of the bandwidths, for the error message.

  Raises:
    InputError: the bandwidths are too small for 64-bit keys.
  """
  inside = tuple(map(slice, shape))
  size = math.prod(padded)
  place = np.arange(size).reshape(padded)[inside].reshape(-1)
  corner, order = (
    np.asarray(x).reshape(-1, *padded)[:, *inside].reshape(len(x), -1)
    for x in (corners.corner, corners.order)
  )
  major = _major_features(len(corner) - 1, turn, len(shape))
  found = host_lattice(corner, order, major, place, size)
  if found is None:
    raise InputError(
      f"{bandwidths} need more lattice cells than 64-bit keys can name; use larger bandwidths, "
      'fewer channels, or method="exact"'
    )
  return Embedding(corners.weight, found)


def traced_embedding(
  corners: lattice.Corners,
  turn: int,
  ndim: int,
  capacity: int | None = None,
) -> Embedding:
  """Builds the lattice of an image under jit.

  Args:
    corners: `pixel_corners` of the image.
    turn: number of the orientation that `corners` were made with.
    ndim: number of spatial axes.
    capacity: number of vertices to make room for; None for as many as any image can need.
  """
  bound = corners.weight.size
  fixed = lax.stop_gradient(corners)
  major = _major_features(len(corners.weight) - 1, turn, ndim)
  found = make_lattice(fixed, major, min(capacity or bound, bound))
  return Embedding(corners.weight, found)
