"""Random augmentation of one volume on the device; `make_augment` with three sizes comes here.

In order: the geometry as one resampling (scale, crop, rotation, elastic deformation, flip); then
blur, contrast, brightness and noise. Volumes are normalised when they are prepared, so that one
unit of intensity is the standard deviation of the whole volume, and 0 its mean.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

from jseg.data import resample
from jseg.data.resample import Positions
from jseg.types import IGNORE

_DRAWS = (
  *("scale", "front", "top", "left", "flip", "flip_vertical", "rotation"),
  *("blur", "contrast", "brightness", "noise"),
)
_SPACING = 32  # of the grid of elastic displacements, in voxels


def make_volume_augment(
  crop: Sequence[int], scale: Sequence[float], knobs: Mapping[str, float]
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """Builds the augmentation of one volume; see `make_augment`, which checks the arguments.

  Args:
    crop: depth, height and width of the result.
    scale: smallest and largest factor, the same for all axes.
    knobs: values of the others by name.
  """
  height, width = crop[1:]
  warped = bool(knobs["elastic"] or knobs["rotation"])

  def augment(
    key: jax.Array, image: jax.Array, label: jax.Array, size: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    chex.assert_rank([image, label, size], [4, 3, 1])
    chex.assert_equal_shape_prefix([image, label], 3)
    key_draws, key_elastic, key_noise = jax.random.split(key, 3)
    draws = dict(zip(_DRAWS, jax.random.uniform(key_draws, (len(_DRAWS),)), strict=True))

    def either_side(name: str) -> jax.Array:
      return knobs[name] * (2 * draws[name] - 1)

    factor = scale[0] + (scale[1] - scale[0]) * draws["scale"]
    corner = jnp.stack([draws["front"], draws["top"], draws["left"]])
    offset, ratio = resample.place(size, crop, factor, corner)

    where = resample.grid(*crop)
    if knobs["elastic"]:
      nodes = jax.random.normal(key_elastic, (*node_counts(crop), 3))
      where = bend(where, knobs["elastic"] * nodes)
    if knobs["rotation"]:
      angle = jnp.deg2rad(either_side("rotation"))
      where = (where[0], *resample.rotate(where[1:], angle, height, width))
    vertical, horizontal = (draws[name] < knobs[name] for name in ("flip_vertical", "flip"))
    where = resample.flip(where, vertical, horizontal)
    where = resample.to_source(where, offset, ratio)
    inside = resample.inside(where, size)
    if not warped and tuple(scale) == (1, 1):
      # Only crops and flips: whole slices, rows and columns are copied.
      image, label = (_take(array, where, size) for array in (image, label))
    else:
      label = resample.read_nearest(label, where, size)
      image = _read_linear(image, where, size, ratio, filtered=scale[0] < 1)
    if knobs["blur"]:
      sigma = knobs["blur"] * draws["blur"]
      image = _apply_axes([resample.gaussian_matrix(n, sigma) for n in crop], image)
    if knobs["contrast"]:
      image = image * (1 + either_side("contrast"))
    if knobs["brightness"]:
      image = image + either_side("brightness")
    if knobs["noise"]:
      noise = jax.random.normal(key_noise, (image.size,)).reshape(image.shape)
      image = image + knobs["noise"] * draws["noise"] * noise
    label = jnp.where(inside, label.astype(jnp.int32), IGNORE)
    return jnp.where(inside[..., None], image.astype(jnp.float32), 0.0), label

  return augment


def node_counts(size: Sequence[int]) -> tuple[int, ...]:
  """How many nodes, 32 voxels apart, reach across each axis."""
  return tuple(-(-(n - 1) // _SPACING) + 1 for n in size)


def bend(positions: Positions, nodes: jax.Array) -> Positions:
  """Moves each position of a grid by its displacement.

  Args:
    positions: of `resample.grid`.
    nodes: float32 [n m l 3], displacements along z, y and x in voxels on a grid of `node_counts`
      nodes, 32 voxels apart and centred on the volume; in between they are interpolated by cubics.

  Returns:
    Positions, each [d h w].
  """
  size = [p.size for p in positions]
  ends = jnp.array([_SPACING * (n - 1) for n in nodes.shape[:3]])
  # Node k lies at voxel 32 k - (its grid's overhang); centres of pixels are at halves here.
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

  As `resample.read_linear`, with a third axis.
  """
  axes = tuple(zip(image.shape[:3], size, ratio, strict=True))
  if all(p.size == p.shape[i] for i, p in enumerate(where)):
    return _apply_axes(
      [resample.linear_matrix(p.ravel(), *axis) for p, axis in zip(where, axes, strict=True)], image
    )
  if filtered:
    own = resample.grid(*image.shape[:3])
    image = _apply_axes(
      [resample.linear_matrix(p.ravel(), *axis) for p, axis in zip(own, axes, strict=True)], image
    )
  where = tuple(jnp.clip(p, 0, n - 1) for p, n in zip(where, size, strict=True))
  lower = [jnp.floor(p).astype(jnp.int32) for p in where]
  upper = [jnp.minimum(i + 1, n - 1) for i, n in zip(lower, size, strict=True)]
  share = [p - i for p, i in zip(where, lower, strict=True)]
  total = jnp.zeros(())
  for corner in itertools.product((0, 1), repeat=3):
    index = tuple(up if bit else low for bit, low, up in zip(corner, lower, upper, strict=True))
    weight = [s if bit else 1 - s for bit, s in zip(corner, share, strict=True)]
    total = total + image[index] * (weight[0] * weight[1] * weight[2])[..., None]
  return total


def _apply_axes(matrices: Sequence[jax.Array], image: jax.Array) -> jax.Array:
  """Multiplies each axis of [D H W c] by its matrix, [d D], [h H], [w W]: float32 [d h w c]."""
  slices, rows, columns = matrices
  highest = jax.lax.Precision.HIGHEST  # see `resample.apply_separable`
  image = jnp.einsum("iz,zyxc->iyxc", slices, image.astype(jnp.float32), precision=highest)
  image = jnp.einsum("jy,iyxc->ijxc", rows, image, precision=highest)
  return jnp.einsum("kx,ijxc->ijkc", columns, image, precision=highest)
