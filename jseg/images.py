"""What images are to the networks: RGB in [0, 1] without ImageNet's mean and deviation."""

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
      f"an image of shape {image.shape} must end in 3 (RGB) or 1 (gray) channels; "
      "drop an alpha channel or add the channel axis"
    )
  shape = (1,) * (image.ndim - 1) + (channels,)
  mean, std = (
    255 * np.broadcast_to(value if channels == 3 else np.mean(value), shape)
    for value in (IMAGENET_MEAN, IMAGENET_STD)
  )
  return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)


def normalize(image: jax.Array | np.ndarray) -> jax.Array:
  """Brings an image to what every network is fed.

  Gray images take the mean of the three means and the mean of the three deviations.

  Args:
    image: uint8 or float [... c] in 0..255, c = 3 (RGB) or 1 (gray).

  Returns:
    float32 [... c]; 0 is the mean color of ImageNet.

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


def valid_area(size: jax.Array, height: int, width: int) -> jax.Array:
  """Where each image of a batch covers its canvas.

  Args:
    size: int32 [b 2], the rows and columns, from the top left, that each image covers.
    height: height of the canvas in pixels.
    width: width of the canvas in pixels.

  Returns:
    bool [b height width].
  """
  rows = jnp.arange(height)[None, :] < size[:, :1]
  columns = jnp.arange(width)[None, :] < size[:, 1:]
  return rows[:, :, None] & columns[:, None, :]


def prepare(image: jax.Array, size: jax.Array) -> jax.Array:
  """What a network is fed in evaluation: normalizes images and sets their padding to 0.

  Args:
    image: uint8 or float [b h w c] in 0..255, covering its canvas from the top left. Volumes
      [b d h w c] stay as they are: they were normalized when prepared, and their padding is 0.
    size: int32 [b 2], the rows and columns that each image covers.

  Returns:
    float32 [b h w c]. Padding is 0, the mean color, as in training.
  """
  if image.ndim == 5:
    return image.astype(jnp.float32)
  valid = valid_area(size, *image.shape[1:3])
  return jnp.where(valid[..., None], normalize(image), 0.0)
