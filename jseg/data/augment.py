"""Random augmentation of one example on the device, vmapped over a batch in the train step.

  augment = make_augment(size=(128, 128), rotation=10)
  images, labels = jax.vmap(augment)(keys, batch["image"], batch["label"], batch["size"])

In order: brightness, contrast, saturation, hue; then the geometry as one resampling (scale, crop,
rotation, elastic deformation, flip); then blur and noise; clipped to 0..255 and normalised.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jseg.data import colour, resample
from jseg.data.augment3d import make_volume_augment
from jseg.data.normalize import normalize
from jseg.types import IGNORE, InputError

Augment = Callable[..., tuple[jax.Array, ...]]

# The largest value of each knob and what it is; all begin at 0, which switches them off.
_KNOBS = {
  "flip": (1, "a probability"),
  "flip_vertical": (1, "a probability"),
  "rotation": (180, "the largest angle in degrees"),
  "elastic": (math.inf, "a standard deviation in pixels"),
  "blur": (math.inf, "the largest standard deviation in pixels"),
  "brightness": (1, "the largest change of the factor 1"),
  "contrast": (1, "the largest change of the factor 1"),
  "saturation": (1, "the largest change of the factor 1"),
  "hue": (0.5, "the largest turn, 1 being the whole colour circle"),
  "noise": (1, "the largest standard deviation as a share of the full range"),
}

_DRAWS = ("scale", "top", "left", *_KNOBS)


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_knobs(size: Any, scale: Any, knobs: dict[str, Any]) -> None:
  """Raises InputError that names the knob whose value is impossible."""
  known = isinstance(size, Sequence) and len(size) in (2, 3)
  if not known or not all(_is_number(n) and n == int(n) and n > 0 for n in size):
    raise InputError(
      f"augment.size = {size!r} must be two positive whole numbers, the height and width of the "
      "crop in pixels; for example (256, 256). Volumes have three: depth, height and width"
    )
  pair = isinstance(scale, Sequence) and len(scale) == 2
  if not pair or not all(map(_is_number, scale)) or not 0 < scale[0] <= scale[1]:
    raise InputError(
      f"augment.scale = {scale!r} must be two factors, the smallest and the largest, with "
      "0 < smallest <= largest; (1, 1) keeps the size"
    )
  for name, value in knobs.items():
    limit, meaning = _KNOBS[name]
    if not _is_number(value) or not 0 <= value <= limit:
      rule = f"from 0 to {limit:g}" if math.isfinite(limit) else "0 or more"
      raise InputError(
        f"augment.{name} = {value!r} must be a number {rule}, {meaning}; 0 switches it off"
      )
    if value and len(size) == 3 and name in ("saturation", "hue"):
      raise InputError(f"augment.{name} = {value!r} must be 0: volumes have no colours")


def make_augment(
  *,
  size: Sequence[int],
  scale: Sequence[float] = (0.5, 2.0),
  flip: float = 0.5,
  flip_vertical: float = 0.0,
  rotation: float = 0.0,
  elastic: float = 0.0,
  blur: float = 0.0,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  noise: float = 0.0,
) -> Augment:
  """Builds the augmentation of one training example.

  The result is a pure function `augment(key, image, label, size) -> (image, label)`:

    key    a PRNG key; the same key gives the same result, and turning a knob does not change
           what the same key draws for the others.
    image  uint8 [H W c] in 0..255, c = 3 or 1 -> float32 [h w c], normalised.
    label  integer [H W] -> int32 [h w].
    size   int32 [2], the rows and columns from the top left that the example covers; the rest
           of the canvas is never read.

  With `weight` float32 [H W] after `size` it returns that as a third, [h w]: read as the label is,
  0 outside. Not for volumes.

  An image larger than the crop is cropped at random; a smaller one is placed in it at random.
  Where there is no image, the label is IGNORE and the image 0, the mean colour. Labels are read
  by nearest: at scale 1 they are exact.

  A size of three numbers makes the augmentation of volumes: image float32 [D H W c], already
  normalised, -> float32 [d h w c]; label [D H W] -> int32 [d h w]; size int32 [3]. Where knobs mean
  something else for volumes, it says so below; see `jseg.data.augment3d`.

  Args:
    size: height and width of the crop in pixels; or its depth, height and width in voxels.
    scale: smallest and largest factor of the image's size, drawn uniformly. Shrinking filters.
    flip: probability of a left-right flip.
    flip_vertical: probability of a top-bottom flip; in volumes along h, front to back.
    rotation: largest angle, to either side, about the middle of the crop, in degrees; in volumes
      within the slices, about the axis d.
    elastic: standard deviation, in pixels of the crop, of the displacements on a coarse 3x3 grid
      over the crop, with cubic interpolation between (Ronneberger et al. 2015, arXiv:1505.04597,
      section 3.1, where it is 10). Above a tenth of the crop's side, the image folds. In volumes
      the grid has a spacing of 32 voxels (Cicek et al. 2016, arXiv:1606.06650, section 3.2, where
      the deviation is 4).
    blur: largest standard deviation of a Gaussian blur, in pixels.
    brightness: the factor of all values is drawn from 1 +- this. In volumes a shift, drawn from
      +- this, in standard deviations of the whole volume.
    contrast: the factor of the distance to the image's mean luma is drawn from 1 +- this; in
      volumes, of the distance to the volume's mean.
    saturation: the factor of the distance to grey is drawn from 1 +- this. Not on grey images;
      volumes refuse it.
    hue: the turn of the colours is drawn from +- this, in whole turns. Not on grey images; volumes
      refuse it.
    noise: largest standard deviation of Gaussian noise, as a share of the full range 0..255; in
      volumes, of the volume's standard deviation.

  Raises:
    InputError: a knob is out of its range; the message names it as `augment.KNOB`.
  """
  knobs = {
    "flip": flip,
    "flip_vertical": flip_vertical,
    "rotation": rotation,
    "elastic": elastic,
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "noise": noise,
  }
  check_knobs(size, scale, knobs)
  if len(size) == 3:
    return make_volume_augment([int(n) for n in size], scale, knobs)
  height, width = int(size[0]), int(size[1])

  def augment(
    key: jax.Array, image: jax.Array, label: jax.Array, size: jax.Array, *weight: jax.Array
  ) -> tuple[jax.Array, ...]:
    chex.assert_rank([image, label, size], [3, 2, 1])
    chex.assert_equal_shape_prefix([image, label], 2)
    key_draws, key_elastic, key_noise = jax.random.split(key, 3)
    draws = draw(key_draws)
    factor = scale[0] + (scale[1] - scale[0]) * draws["scale"]
    corner = jnp.stack([draws["top"], draws["left"]])
    offset, ratio = resample.place(size, (height, width), factor, corner)

    where = resample.grid(height, width)
    if elastic:
      nodes = elastic * jax.random.normal(key_elastic, (3, 3, 2))
      where = resample.bend(where, nodes, height, width)
    if rotation:
      angle = jnp.deg2rad(_either_side("rotation", knobs, draws))
      where = resample.rotate(where, angle, height, width)
    where = resample.flip(where, draws["flip_vertical"] < flip_vertical, draws["flip"] < flip)
    where = resample.to_source(where, offset, ratio)
    inside = resample.inside(where, size)
    label = resample.read_nearest(label, where, size).astype(jnp.int32)
    label = jnp.where(inside, label, IGNORE)
    weight = tuple(jnp.where(inside, resample.read_nearest(a, where, size), 0.0) for a in weight)
    image = render(image, where, size, ratio, inside, knobs, draws, key_noise)
    return image, label, *weight

  return augment


def draw(key: jax.Array) -> dict[str, jax.Array]:
  """A number in [0, 1) for each knob, and for the place of the crop."""
  # One call for all scalars: a call for each takes a second more to compile.
  return dict(zip(_DRAWS, jax.random.uniform(key, (len(_DRAWS),)), strict=True))


def render(
  image: jax.Array,
  where: resample.Positions,
  size: jax.Array,
  ratio: jax.Array,
  inside: jax.Array,
  knobs: Mapping[str, float],
  draws: Mapping[str, jax.Array],
  key_noise: jax.Array,
) -> jax.Array:
  """Colours, resamples, blurs, adds noise, clips and normalises.

  Args:
    image: uint8 [H W c].
    where: the positions in it of the output's pixels.
    size: int32 [2], what it covers of its canvas.
    ratio: float32 [2], its pixels to one of the output.
    inside: bool [h w], where the output holds the image; elsewhere it is 0.
    knobs: those of `make_augment`.
    draws: of `draw`.
    key_noise: a PRNG key.

  Returns:
    float32 [h w c].
  """
  # Affine in colour, so before resampling is as good as after it, and there it fuses for free:
  # after a warp, XLA would repeat the reads by pixel for every channel and for the mean.
  if any(knobs[name] for name in ("brightness", "contrast", "saturation", "hue")):
    image = colour.adjust(
      image,
      size,
      brightness=1 + _either_side("brightness", knobs, draws),
      contrast=1 + _either_side("contrast", knobs, draws),
      saturation=1 + _either_side("saturation", knobs, draws),
      hue=_either_side("hue", knobs, draws),
    )
  image = resample.read_linear(image, where, size, ratio)
  if knobs["blur"]:
    image = colour.blur(image, knobs["blur"] * draws["blur"])
  if knobs["noise"]:
    level = 255 * knobs["noise"] * draws["noise"]
    # Drawn flat: the generator counts faster along one axis than along three.
    image = image + level * jax.random.normal(key_noise, (image.size,)).reshape(image.shape)
  image = normalize(jnp.clip(image, 0.0, 255.0))
  return jnp.where(inside[..., None], image, 0.0)


def _either_side(
  name: str, knobs: Mapping[str, float], draws: Mapping[str, jax.Array]
) -> jax.Array:
  return knobs[name] * (2 * draws[name] - 1)
