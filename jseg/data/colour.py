"""Photometry of augmentation: adjustments of an image [h w c] in 0..255, given their strengths.

All are linear, and none clips, so that they may be ordered by what is cheap.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jseg.data import resample

# A colour is its luma (NTSC weights) and its chroma. In the plane of chroma, spanned by the I
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
  """Changes brightness, contrast, saturation and hue: one affine map of all colours.

  Args:
    image: uint8 or float [h w c]. Grey images (c = 1) know no saturation and hue.
    size: int32 [2], what the image covers of its canvas; the rest has no part in the mean.
    brightness: factor of all values.
    contrast: factor of the distance to the mean luma of the image; 0 is a flat grey.
    saturation: factor of the distance to the pixel's own luma; 0 is a grey picture.
    hue: turn of the chroma, in whole turns.

  Returns:
    float32 [h w c], not clipped.
  """
  image = image.astype(jnp.float32)
  luma = image[..., 0] if image.shape[-1] == 1 else _mix(_TO_YIQ[:1], image)[..., 0]
  inside = resample.inside(resample.grid(*luma.shape), size)
  mean_luma = jnp.where(inside, luma, 0.0).sum() / inside.sum()
  if image.shape[-1] == 3:
    cos, sin = jnp.cos(2 * jnp.pi * hue), jnp.sin(2 * jnp.pi * hue)
    image = _mix(_LUMA + saturation * (cos * _CHROMA + sin * _QUARTER_TURN), image)
  return brightness * (contrast * image + (1 - contrast) * mean_luma)


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
  """Gaussian blur, sigma in pixels; the image itself at sigma 0.

  At the borders the weights are those of the pixels there are, scaled to sum to 1.
  """
  height, width, _ = image.shape
  rows, columns = resample.gaussian_matrix(height, sigma), resample.gaussian_matrix(width, sigma)
  return resample.apply_separable(rows, image, columns)
