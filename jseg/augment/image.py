"""Random augmentation of one image with its label on the device, vmapped in the train step.

  augment = make_augment(size=(128, 128), rotation=10)
  batch = jax.vmap(augment)(keys, Example(image=images, label=labels, size=sizes))

In order: changes of color; then the geometry as one resampling (scale, crop, warps); then filters;
clipped to 0..255 and normalized; then a user's own.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from jseg.augment import color, geometry, warps
from jseg.augment.base import (
  Augment,
  Augmentation,
  ColorChange,
  Example,
  Filter,
  Random,
  Values,
  Warp,
  apply_custom,
  check_settings,
  defaults,
  find_custom,
  settings_of,
)
from jseg.augment.volume import VOLUME_AUGMENTATIONS, make_volume_augment
from jseg.images import Statistics, normalize
from jseg.types import IGNORE, InputError

IMAGE_AUGMENTATIONS: tuple[Augmentation, ...] = (
  color.ADJUSTMENT,
  warps.ELASTIC,
  warps.ROTATION,
  warps.FLIP,
  color.BLUR,
  color.NOISE,
)
"""The augmentations of images; within a stage they are applied in this order."""

# These drew from one call when there were no others; for a new one see `Random`.
_FIRST = (
  "scale",
  "top",
  "left",
  "flip",
  "flip_vertical",
  "rotation",
  "elastic",
  "blur",
  "brightness",
  "contrast",
  "saturation",
  "hue",
  "noise",
)


def arguments() -> dict[str, object]:
  """The arguments of `make_augment` but `size`, and their defaults."""
  every = defaults(settings_of(*IMAGE_AUGMENTATIONS, *VOLUME_AUGMENTATIONS))
  return {"scale": (0.5, 2.0), **every, "custom": ()}


def make_augment(
  *,
  size: Sequence[int],
  scale: Sequence[float] = (0.5, 2.0),
  custom: Sequence[str | Augment] = (),
  statistics: Statistics | None = None,
  **settings: float,
) -> Augment:
  """Builds the augmentation of one training example.

  The result is a pure function `augment(key, example) -> example`. The same key gives the same
  result, and no setting changes what the same key draws for the others.

  An image larger than the crop is cropped at random; a smaller one is placed in it at random. What
  the example's `size` doesn't cover of its canvas is never read. Where there is no image, the label
  is IGNORE, the weight 0, and the image 0, the mean color. Labels are read by nearest neighbor: at
  scale 1 they are exact.

  Args:
    size: height and width of the crop in pixels; or its depth, height and width in voxels, which
      makes the augmentation of volumes (`jseg.augment.volume`).
    scale: smallest and largest factor of the image's size, drawn uniformly. Shrinking filters.
    custom: augmentations of your own, applied last, in this order: functions
      `(key, example) -> example`, or "package.module:Name" of such. They get normalized images
      (`jseg.images.denormalize` inverts that) and return images of the same shape.
    statistics: mean and deviation of each channel; None: ImageNet's, of RGB or gray images.
    **settings: strengths of the augmentations in `IMAGE_AUGMENTATIONS`, where they are described:
      flip, flip_vertical, rotation, elastic, blur, brightness, contrast, saturation, hue, noise; of
      volumes, those of `jseg.augment.volume.VOLUME_AUGMENTATIONS`. 0 switches one off.

  Raises:
    InputError: an argument is out of its range, or is none of these kinds of data.
  """
  table = settings_of(*IMAGE_AUGMENTATIONS, *VOLUME_AUGMENTATIONS)
  values = {**defaults(table), **settings}
  check_settings(size, scale, values, table)
  kind, own = ("volumes", VOLUME_AUGMENTATIONS) if len(size) == 3 else ("images", None)
  available = settings_of(*(own or IMAGE_AUGMENTATIONS))
  for name, value in values.items():
    if value and name not in available:
      raise InputError(f"{name}: {value!r} must be 0: {kind} have no such augmentation")
  if statistics is not None:
    color.check_channels(values, len(statistics.mean))
  crop, functions = tuple(map(int, size)), find_custom(custom)
  if len(crop) == 3:
    return make_volume_augment(crop, scale, values, functions)
  chosen = [each for each in IMAGE_AUGMENTATIONS if each.active(values)]

  def augment(key: jax.Array, example: Example) -> Example:
    assert example.label is not None
    chex.assert_rank([example.image, example.label, example.size], [3, 2, 1])
    chex.assert_equal_shape_prefix([example.image, example.label], 2)
    random = make_random(key)
    factor = scale[0] + (scale[1] - scale[0]) * random.uniform("scale")
    corner = jnp.stack([random.uniform("top"), random.uniform("left")])
    offset, ratio = geometry.place(example.size, crop, factor, corner)
    where = geometry.grid(*crop)
    for each in chosen:
      if isinstance(each, Warp):
        where = each.apply(random, values, where, crop)
    where = geometry.to_source(where, offset, ratio)
    inside = geometry.inside(where, example.size)
    label = geometry.read_nearest(example.label, where, example.size).astype(jnp.int32)
    weight = example.weight
    if weight is not None:
      weight = jnp.where(inside, geometry.read_nearest(weight, where, example.size), 0.0)
    result = Example(
      image=render(example, where, ratio, inside, chosen, values, random, statistics),
      size=jnp.array(crop, jnp.int32),
      label=jnp.where(inside, label, IGNORE),
      weight=weight,
    )
    return apply_custom(functions, random, result)

  return augment


def make_random(key: jax.Array) -> Random:
  """The random numbers of an image."""
  key_draws, key_elastic, key_noise = jax.random.split(key, 3)
  return Random(key, first_draws(key_draws), {"elastic": key_elastic, "noise": key_noise})


def first_draws(key: jax.Array) -> dict[str, jax.Array]:
  """The numbers in [0, 1) that are drawn in one call."""
  # A call for each takes a second more to compile.
  return dict(zip(_FIRST, jax.random.uniform(key, (len(_FIRST),)), strict=True))


def render(
  example: Example,
  where: geometry.Positions,
  ratio: jax.Array,
  inside: jax.Array,
  chosen: Sequence[Augmentation],
  values: Values,
  random: Random,
  statistics: Statistics | None = None,
) -> jax.Array:
  """Changes colors, resamples, filters, clips and normalizes.

  Args:
    example: the example, with an image uint8 [H W c], or float32 in 0..255.
    where: positions in the image of the output's pixels.
    ratio: float32 [2], pixels of the image per pixel of the output.
    inside: bool [h w], where the output holds the image; elsewhere it is 0.
    chosen: augmentations; others than changes of color and filters are passed over.
    values: values of all settings.
    random: random numbers of the example.
    statistics: as for `make_augment`.

  Returns:
    float32 [h w c].
  """
  # Affine in color, so before resampling is as good as after it, and there it fuses for free:
  # after a warp, XLA would repeat the reads by pixel for every channel and for the mean.
  image = example.image
  for each in chosen:
    if isinstance(each, ColorChange):
      image = each.apply(random, values, image, example.size)
  image = geometry.read_linear(image, where, example.size, ratio)
  for each in chosen:
    if isinstance(each, Filter):
      image = each.apply(random, values, image)
  image = normalize(jnp.clip(image, 0.0, 255.0), statistics)
  return jnp.where(inside[..., None], image, 0.0)
