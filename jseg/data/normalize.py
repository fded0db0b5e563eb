"""The one preprocessing of the library: RGB, [0, 1], ImageNet mean and standard deviation."""

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _mean_std(image: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation in units of 0..255, shaped to broadcast against `image`."""
  channels = image.shape[-1] if image.ndim else 0
  if channels not in (1, 3):
    raise ValueError(
      f"an image of shape {image.shape} must end in 3 (RGB) or 1 (grey) channels; "
      "drop an alpha channel or add the channel axis"
    )
  shape = (1,) * (image.ndim - 1) + (channels,)
  mean, std = (
    255 * np.broadcast_to(value if channels == 3 else np.mean(value), shape)
    for value in (IMAGENET_MEAN, IMAGENET_STD)
  )
  return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)


def normalize(image: jax.Array | np.ndarray) -> jax.Array:
  """What every network is fed.

  Grey images take the mean of the three means and the mean of the three deviations.

  Args:
    image: uint8 or float [... c] in 0..255, c = 3 (RGB) or 1 (grey).

  Returns:
    float32 [... c]; 0 is the mean colour of ImageNet.

  Raises:
    ValueError: c is neither 3 nor 1.
  """
  mean, std = _mean_std(image)
  return (jnp.asarray(image, jnp.float32) - mean) / std


def denormalize(image: jax.Array | np.ndarray) -> jax.Array:
  """Inverse of `normalize`: float [... c] -> float32 [... c] in 0..255.

  Raises:
    ValueError: c is neither 3 nor 1.
  """
  mean, std = _mean_std(image)
  return jnp.asarray(image, jnp.float32) * std + mean


def prepare(image: jax.Array, size: jax.Array) -> jax.Array:
  """Evaluation's counterpart of augmentation: normalises, and sets the padding to 0.

  Args:
    image: uint8 or float [b h w c] in 0..255, covering its canvas from the top left. Volumes
      [b d h w c] stay as they are: they were normalised when prepared, and their padding is 0.
    size: int32 [b 2], rows and columns that the image covers.

  Returns:
    float32 [b h w c]. Padding is the mean colour, as in training.
  """
  if image.ndim == 5:
    return image.astype(jnp.float32)
  _, height, width, _ = image.shape
  rows = jnp.arange(height)[None, :] < size[:, :1]
  columns = jnp.arange(width)[None, :] < size[:, 1:]
  inside = rows[:, :, None] & columns[:, None, :]
  return jnp.where(inside[..., None], normalize(image), 0.0)
