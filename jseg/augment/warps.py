"""Random warps of the crop: elastic deformation, rotation, flips."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jseg.augment import geometry
from jseg.augment.base import Random, Setting, Values, Warp
from jseg.augment.geometry import Positions


def _elastic(
  random: Random, values: Values, positions: Positions, crop: Sequence[int]
) -> Positions:
  nodes = values["elastic"] * jax.random.normal(random.key("elastic"), (3, 3, 2))
  return geometry.elastic(positions, nodes, *crop)


ELASTIC = Warp(
  {"elastic": Setting("the standard deviation of the displacements in pixels")}, _elastic
)
"""Displacements on a coarse 3x3 grid over the crop, with cubic interpolation between; `elastic` is
their standard deviation in pixels of the crop (Ronneberger et al. 2015, arXiv:1505.04597, section
3.1, where it is 10). Above a tenth of the crop's side, the image folds.
"""


def _rotation(
  random: Random, values: Values, positions: Positions, crop: Sequence[int]
) -> Positions:
  angle = jnp.deg2rad(random.either_side("rotation", values["rotation"]))
  return (*positions[:-2], *geometry.rotate(positions[-2:], angle, *crop[-2:]))


ROTATION = Warp({"rotation": Setting("the largest angle in degrees", limit=180)}, _rotation)
"""A rotation about the middle of the crop, by up to `rotation` degrees to either side; in volumes
within the slices, about the axis d.
"""


def _flip(random: Random, values: Values, positions: Positions, crop: Sequence[int]) -> Positions:
  del crop
  vertical, horizontal = (random.uniform(n) < values[n] for n in ("flip_vertical", "flip"))
  return geometry.flip(positions, vertical, horizontal)


FLIP = Warp(
  {
    "flip": Setting("the probability of a left-right flip", limit=1, default=0.5),
    "flip_vertical": Setting("the probability of a top-bottom flip", limit=1),
  },
  _flip,
  copies=True,
)
"""A left-right flip with probability `flip`, and a top-bottom flip with probability
`flip_vertical`; in volumes along w and along h, front to back.
"""
