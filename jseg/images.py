"""What images are to the networks: RGB in [0, 1] without ImageNet's mean and deviation.

Channels that aren't colors, as those of scientific images, have a mean and deviation of their own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SAMPLE = 2**20  # pixels of an image that its picture's black and white are taken from


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Mean and standard deviation of each channel over a training split.

  Attributes:
    mean: one number for each channel, 1 being the upper end of 0..255.
    deviation: likewise; above 0.
  """

  mean: Sequence[float]
  deviation: Sequence[float]


class Rows(Protocol):
  """An image [h w c]: an array, or what reads its rows when they are asked for."""

  @property
  def shape(self) -> tuple[int, ...]:
    """(h, w, c)."""

  @property
  def dtype(self) -> np.dtype:
    """Type of its numbers."""

  def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def _mean_std(
  image: jax.Array | np.ndarray, statistics: Statistics | None
) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation in units of 0..255, shaped to broadcast against `image`."""
  channels = image.shape[-1] if image.ndim else 0
  if statistics is not None:
    if len(statistics.mean) != channels:
      raise ValueError(
        f"an image of shape {image.shape} must end in the {len(statistics.mean)} channels that "
        "there are statistics of"
      )
    shape = (1,) * (image.ndim - 1) + (channels,)
    mean, std = (
      255 * np.reshape(values, shape) for values in (statistics.mean, statistics.deviation)
    )
    return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
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


def normalize(image: jax.Array | np.ndarray, statistics: Statistics | None = None) -> jax.Array:
  """Brings an image to what every network is fed.

  Gray images take the mean of ImageNet's three means and the mean of its three deviations.

  Args:
    image: uint8 or float [... c] in 0..255; without statistics, c = 3 (RGB) or 1 (gray).
    statistics: mean and deviation of each channel; None: those of ImageNet.

  Returns:
    float32 [... c]; 0 is the mean.

  Raises:
    ValueError: c is neither 3 nor 1, or not the number of channels of the statistics.
  """
  mean, std = _mean_std(image, statistics)
  return (jnp.asarray(image, jnp.float32) - mean) / std


def denormalize(image: jax.Array | np.ndarray, statistics: Statistics | None = None) -> jax.Array:
  """Inverse of `normalize`: float [... c] -> float32 [... c] in 0..255.

  Raises:
    ValueError: c is neither 3 nor 1, or not the number of channels of the statistics.
  """
  mean, std = _mean_std(image, statistics)
  return jnp.asarray(image, jnp.float32) * std + mean


def network_picture(
  image: np.ndarray, statistics: Statistics | None = None, bands: Sequence[int] = ()
) -> np.ndarray:
  """Makes a picture of an image as a network is fed it: float [h w c] -> uint8 [h w 3] or [h w 1].

  Args:
    image: what `normalize` returned.
    statistics: as for `normalize`; with them the picture is stretched, as by `picture`.
    bands: as for `picture`.
  """
  numbers = np.asarray(denormalize(image, statistics))
  if statistics is None:
    return numbers.round().clip(0, 255).astype(np.uint8)
  return picture(numbers, bands)


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


def prepare(image: jax.Array, size: jax.Array, statistics: Statistics | None = None) -> jax.Array:
  """What a network is fed in evaluation: normalizes images and sets their padding to 0.

  Args:
    image: uint8 or float [b h w c] in 0..255, covering its canvas from the top left. Volumes
      [b d h w c] stay as they are: they were normalized when prepared, and their padding is 0.
    size: int32 [b 2], the rows and columns that each image covers.
    statistics: as for `normalize`.

  Returns:
    float32 [b h w c]. Padding is 0, the mean color, as in training.
  """
  if image.ndim == 5:
    return image.astype(jnp.float32)
  valid = valid_area(size, *image.shape[1:3])
  return jnp.where(valid[..., None], normalize(image, statistics), 0.0)


def picture(image: np.ndarray, bands: Sequence[int] = ()) -> np.ndarray:
  """Makes a picture of an image of any channels.

  Args:
    image: uint8 [h w 3] or [h w 1], or float [h w c].
    bands: the channels that are shown, three (as red, green and blue) or one; empty: the first
      three, of fewer than three the first.

  Returns:
    uint8 images as they are; of floats uint8 [h w 3] or [h w 1], where black and white are half a
    percent of each shown channel's pixels (see `make_picture`).
  """
  return make_picture(image, bands)(image)


def make_picture(image: Rows, bands: Sequence[int] = ()) -> Callable[[np.ndarray], np.ndarray]:
  """Makes `draw(part [m n c]) -> picture`, by which all parts of an image are pictured alike.

  Args:
    image: as for `picture`; only some of its rows are read. Of more than a million pixels, black
      and white are percentiles of about a million, in rows evenly spaced.
    bands: as for `picture`.
  """
  if image.dtype == np.uint8:
    return lambda part: part
  height, width, channels = image.shape
  shown = list(bands) or ([0, 1, 2] if channels >= 3 else [0])
  rows = np.linspace(0, height - 1, min(height, max(1, _SAMPLE // width))).astype(int).tolist()
  sample = np.concatenate([image[row : row + 1][..., shown] for row in rows])
  low, high = np.percentile(sample.astype(np.float32), (0.5, 99.5), axis=(0, 1))

  def draw(part: np.ndarray) -> np.ndarray:
    values = part[..., shown].astype(np.float32)
    return ((values - low) * 255 / np.maximum(high - low, 1e-3)).clip(0, 255).astype(np.uint8)

  return draw
