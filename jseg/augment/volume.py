"""Random augmentation of one volume on the device; `make_augment` with three sizes comes here.

In order: the geometry as one resampling (scale, crop, warps); then filters; then a user's own.
Volumes are normalized when they are prepared, so that one unit of intensity is the standard
deviation of the whole volume, and 0 its mean.
"""

import itertools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from jseg.arithmetic import cdiv
from jseg.augment import geometry, warps
from jseg.augment.base import (
  Augment,
  Augmentation,
  Example,
  Filter,
  Random,
  Setting,
  Values,
  Warp,
  apply_custom,
)
from jseg.augment.geometry import Positions
from jseg.types import IGNORE

_SPACING = 32  # of the grid of elastic displacements, in voxels

# These drew from one call when there were no others; for a new one see `Random`.
_FIRST = (
  "scale",
  "front",
  "top",
  "left",
  "flip",
  "flip_vertical",
  "rotation",
  "blur",
  "contrast",
  "brightness",
  "noise",
)


def make_volume_augment(
  crop: Sequence[int],
  scale: Sequence[float],
  values: Values,
  custom: Sequence[tuple[str, Augment]] = (),
) -> Augment:
  """Builds the augmentation of one volume; see `make_augment`, which checks the arguments.

  Args:
    crop: depth, height and width of the result.
    scale: smallest and largest factor, the same for all axes.
    values: values of all settings by name.
    custom: a user's own augmentations.
  """
  chosen = [each for each in VOLUME_AUGMENTATIONS if each.active(values)]
  moving = [each for each in chosen if isinstance(each, Warp)]
  filters = [each for each in chosen if isinstance(each, Filter)]
  # Only crops and flips: whole slices, rows and columns are copied.
  copied = tuple(scale) == (1, 1) and all(each.copies for each in moving)

  def augment(key: jax.Array, example: Example) -> Example:
    image, label, size = example.image, example.label, example.size
    assert label is not None
    chex.assert_rank([image, label, size], [4, 3, 1])
    chex.assert_equal_shape_prefix([image, label], 3)
    random = _make_random(key)
    factor = scale[0] + (scale[1] - scale[0]) * random.uniform("scale")
    corner = jnp.stack([random.uniform(name) for name in ("front", "top", "left")])
    offset, ratio = geometry.place(size, crop, factor, corner)
    where = geometry.grid(*crop)
    for warp in moving:
      where = warp.apply(random, values, where, crop)
    where = geometry.to_source(where, offset, ratio)
    inside = geometry.inside(where, size)
    if copied:
      image, label = _take(image, where, size), _take(label, where, size)
    else:
      label = geometry.read_nearest(label, where, size)
      image = _read_linear(image, where, size, ratio, filtered=scale[0] < 1)
    for change in filters:
      image = change.apply(random, values, image)
    result = Example(
      image=jnp.where(inside[..., None], image.astype(jnp.float32), 0.0),
      size=jnp.array(crop, jnp.int32),
      label=jnp.where(inside, label.astype(jnp.int32), IGNORE),
    )
    return apply_custom(custom, random, result)

  return augment


def _make_random(key: jax.Array) -> Random:
  key_draws, key_elastic, key_noise = jax.random.split(key, 3)
  uniforms = dict(zip(_FIRST, jax.random.uniform(key_draws, (len(_FIRST),)), strict=True))
  return Random(key, uniforms, {"elastic": key_elastic, "noise": key_noise})


def node_counts(size: Sequence[int]) -> tuple[int, ...]:
  """How many nodes, 32 voxels apart, reach across each axis."""
  return tuple(cdiv(n - 1, _SPACING) + 1 for n in size)


def elastic(positions: Positions, nodes: jax.Array) -> Positions:
  """Moves each position of a grid by its displacement.

  Args:
    positions: positions of the crop, as from `geometry.grid`.
    nodes: float32 [n m l 3], displacements along z, y and x in voxels on a grid of `node_counts`
      nodes, 32 voxels apart and centered on the volume; in between they are interpolated by cubics.

  Returns:
    Positions, each [d h w].
  """
  size = [p.size for p in positions]
  ends = jnp.array([_SPACING * (n - 1) for n in nodes.shape[:3]])
  # Node k lies at voxel 32 k - (its grid's overhang); centers of pixels are at halves here.
  shift = 0.5 - _SPACING / 2 - (ends - jnp.array(size) + 1) / 2
  moved = jax.image.scale_and_translate(
    nodes, (*size, 3), (0, 1, 2), jnp.full(3, float(_SPACING)), shift, "cubic", antialias=False
  )
  return tuple(p + moved[..., i] for i, p in enumerate(positions))


def _take(array: jax.Array, where: Positions, size: jax.Array) -> jax.Array:
  """Reads at a grid of whole positions."""
  for axis, (p, n) in enumerate(zip(where, size, strict=True)):
    index = jnp.clip(jnp.round(p).astype(jnp.int32), 0, n - 1)
    array = jnp.take(array, index.ravel(), axis, mode="clip")
  return array


def _read_linear(
  image: jax.Array, where: Positions, size: jax.Array, ratio: jax.Array, filtered: bool
) -> jax.Array:
  """Linear interpolation [d h w c] of image [D H W c], filtered beforehand where it may shrink.

  As `geometry.read_linear`, with a third axis.
  """
  axes = tuple(zip(image.shape[:3], size, ratio, strict=True))
  if all(p.size == p.shape[i] for i, p in enumerate(where)):
    return _apply_axes(
      [geometry.linear_matrix(p.ravel(), *axis) for p, axis in zip(where, axes, strict=True)], image
    )
  if filtered:
    own = geometry.grid(*image.shape[:3])
    image = _apply_axes(
      [geometry.linear_matrix(p.ravel(), *axis) for p, axis in zip(own, axes, strict=True)], image
    )
  lower, upper, share = zip(*map(geometry.pixels_around, where, size), strict=True)
  total = jnp.zeros(())
  for corner in itertools.product((0, 1), repeat=3):
    index = tuple(up if bit else low for bit, low, up in zip(corner, lower, upper, strict=True))
    weight = [s if bit else 1 - s for bit, s in zip(corner, share, strict=True)]
    total = total + image[index] * (weight[0] * weight[1] * weight[2])[..., None]
  return total


def _apply_axes(matrices: Sequence[jax.Array], image: jax.Array) -> jax.Array:
  """Multiplies each axis of [D H W c] by its matrix, [d D], [h H], [w W]: float32 [d h w c]."""
  slices, rows, columns = matrices
  highest = jax.lax.Precision.HIGHEST  # see `geometry.apply_separable`
  image = jnp.einsum("iz,zyxc->iyxc", slices, image.astype(jnp.float32), precision=highest)
  image = jnp.einsum("jy,iyxc->ijxc", rows, image, precision=highest)
  return jnp.einsum("kx,ijxc->ijkc", columns, image, precision=highest)


def _elastic(
  random: Random, values: Values, positions: Positions, crop: Sequence[int]
) -> Positions:
  nodes = jax.random.normal(random.key("elastic"), (*node_counts(crop), 3))
  return elastic(positions, values["elastic"] * nodes)


def _blur(random: Random, values: Values, image: jax.Array) -> jax.Array:
  sigma = values["blur"] * random.uniform("blur")
  return _apply_axes([geometry.gaussian_matrix(n, sigma) for n in image.shape[:3]], image)


def _contrast(random: Random, values: Values, image: jax.Array) -> jax.Array:
  return image * (1 + random.either_side("contrast", values["contrast"]))


def _brightness(random: Random, values: Values, image: jax.Array) -> jax.Array:
  return image + random.either_side("brightness", values["brightness"])


def _noise(random: Random, values: Values, image: jax.Array) -> jax.Array:
  noise = jax.random.normal(random.key("noise"), (image.size,)).reshape(image.shape)
  return image + values["noise"] * random.uniform("noise") * noise


ELASTIC = Warp(
  {"elastic": Setting("the standard deviation of the displacements in voxels")}, _elastic
)
"""Displacements as in `jseg.augment.warps.ELASTIC`, on a grid with a spacing of 32 voxels (Cicek et
al. 2016, arXiv:1606.06650, section 3.2, where the deviation is 4).
"""

BLUR = Filter({"blur": Setting("the largest standard deviation in voxels")}, _blur)
"""A Gaussian blur whose standard deviation is drawn from 0 to `blur` voxels."""

CONTRAST = Filter(
  {"contrast": Setting("the largest relative change of the contrast", limit=1)}, _contrast
)
"""The factor of the distance to the volume's mean is drawn from 1 +- `contrast`."""

BRIGHTNESS = Filter(
  {"brightness": Setting("the largest shift, in standard deviations of the volume", limit=1)},
  _brightness,
)
"""A shift drawn from +- `brightness`, in standard deviations of the whole volume."""

NOISE = Filter(
  {"noise": Setting("the largest standard deviation, in those of the volume", limit=1)}, _noise
)
"""Gaussian noise whose deviation is drawn from 0 to `noise`, in deviations of the volume."""

VOLUME_AUGMENTATIONS: tuple[Augmentation, ...] = (
  ELASTIC,
  warps.ROTATION,
  warps.FLIP,
  BLUR,
  CONTRAST,
  BRIGHTNESS,
  NOISE,
)
"""The augmentations of volumes; within a stage they are applied in this order."""
