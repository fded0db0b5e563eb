"""Color, blur and noise: augmentations of an image [h w c] in 0..255.

All are linear, and none clips, so that they may be ordered by what is cheap.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jseg.augment import geometry
from jseg.augment.base import ColorChange, Filter, Random, Setting, Values
from jseg.types import InputError

# A color is its luma (NTSC weights) and its chroma. In the plane of chroma, spanned by the I
# and Q of YIQ, the angle is the hue and the length the saturation.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_LUMA = _FROM_YIQ @ np.diag([1, 0, 0]) @ _TO_YIQ
_CHROMA = _FROM_YIQ @ np.diag([0, 1, 1]) @ _TO_YIQ
_QUARTER_TURN = _FROM_YIQ @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _TO_YIQ


def _mix(matrix: jax.Array | np.ndarray, image: jax.Array) -> jax.Array:
  """Applies a matrix [d c] to every pixel; as sums that fuse, being too small for a product."""
  channels = range(image.shape[-1])
  return jnp.stack([sum(row[c] * image[..., c] for c in channels) for row in matrix], axis=-1)


def adjust(
  image: jax.Array,
  size: jax.Array,
  *,
  brightness: jax.Array | float = 1.0,
  contrast: jax.Array | float = 1.0,
  saturation: jax.Array | float = 1.0,
  hue: jax.Array | float = 0.0,
) -> jax.Array:
  """Changes brightness, contrast, saturation and hue: one affine map of all colors.

  Args:
    image: uint8 or float [h w c]. Only colors (c = 3) have saturation and hue; the luma of other
      channels is their mean.
    size: int32 [2], what the image covers of its canvas; the rest has no part in the mean.
    brightness: factor of all values.
    contrast: factor of the distance to the mean luma of the image; 0 is a flat gray.
    saturation: factor of the distance to the pixel's own luma; 0 is a gray picture.
    hue: turn of the chroma, in whole turns.

  Returns:
    float32 [h w c], not clipped.
  """
  image = image.astype(jnp.float32)
  if image.shape[-1] == 3:
    luma = _mix(_TO_YIQ[:1], image)[..., 0]
  else:
    luma = image[..., 0] if image.shape[-1] == 1 else image.mean(-1)
  inside = geometry.inside(geometry.grid(*luma.shape), size)
  mean_luma = jnp.where(inside, luma, 0.0).sum() / inside.sum()
  if image.shape[-1] == 3:
    cos, sin = jnp.cos(2 * jnp.pi * hue), jnp.sin(2 * jnp.pi * hue)
    image = _mix(_LUMA + saturation * (cos * _CHROMA + sin * _QUARTER_TURN), image)
  return brightness * (contrast * image + (1 - contrast) * mean_luma)


def check_channels(values: Values, channels: int) -> None:
  """Refuses settings that only colors have.

  Args:
    values: values of all settings by name.
    channels: channels of the images.

  Raises:
    InputError: naming the setting.
  """
  for name in ("saturation", "hue"):
    if channels != 3 and values.get(name):
      raise InputError(
        f"{name}: {values[name]!r} must be 0: images of {channels} channel(s) have no colors"
      )


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
  """Gaussian blur, sigma in pixels; the image itself at sigma 0.

  At the borders the weights are those of the pixels there are, scaled to sum to 1.
  """
  height, width, _ = image.shape
  rows, columns = geometry.gaussian_matrix(height, sigma), geometry.gaussian_matrix(width, sigma)
  return geometry.apply_separable(rows, image, columns)


def _adjust(random: Random, values: Values, image: jax.Array, size: jax.Array) -> jax.Array:
  return adjust(
    image,
    size,
    brightness=1 + random.either_side("brightness", values["brightness"]),
    contrast=1 + random.either_side("contrast", values["contrast"]),
    saturation=1 + random.either_side("saturation", values["saturation"]),
    hue=random.either_side("hue", values["hue"]),
  )


ADJUSTMENT = ColorChange(
  {
    "brightness": Setting("the largest relative change of the brightness", limit=1),
    "contrast": Setting("the largest relative change of the contrast", limit=1),
    "saturation": Setting("the largest relative change of the saturation", limit=1),
    "hue": Setting("the largest turn, 1 being the whole color circle", limit=0.5),
  },
  _adjust,
)
"""Brightness, contrast, saturation and hue. The factors of all values, of the distance to the
image's mean luma and of the distance to gray are drawn from 1 +- their settings, the turn of the
colors from +- hue, in whole turns. Gray images have no saturation and hue, nor have other channels.
"""


def _blur(random: Random, values: Values, image: jax.Array) -> jax.Array:
  return blur(image, values["blur"] * random.uniform("blur"))


BLUR = Filter({"blur": Setting("the largest standard deviation in pixels")}, _blur)
"""A Gaussian blur whose standard deviation is drawn from 0 to `blur` pixels."""


def _noise(random: Random, values: Values, image: jax.Array) -> jax.Array:
  level = 255 * values["noise"] * random.uniform("noise")
  # Drawn flat: the generator counts faster along one axis than along three.
  return image + level * jax.random.normal(random.key("noise"), (image.size,)).reshape(image.shape)


NOISE = Filter(
  {"noise": Setting("the largest standard deviation as a share of the full range", limit=1)}, _noise
)
"""Gaussian noise whose standard deviation is drawn from 0 to `noise`, in shares of 0..255."""
