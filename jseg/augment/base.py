"""What an augmentation is: its settings, a function, and the random numbers that it draws.

To add one, write its function with its settings, as those in `jseg.augment.color`, and name it in
the table of `jseg.augment.image` or `jseg.augment.volume`: its settings become arguments of
`make_augment` and keys of a configuration. The random numbers of all others stay what they were.
"""

import dataclasses
import math
import numbers
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeGuard

import flax.struct
import jax
import numpy as np

from jseg.augment.geometry import Positions
from jseg.lookup import lookup
from jseg.types import Array, InputError, Targets


@flax.struct.dataclass
class Example:
  """One training example, or with another axis in front a batch; what is unknown is None.

  Attributes:
    image: uint8 [h w c] in 0..255, or a volume, float32 [d h w c], normalized; once augmented
      float32, normalized, and 0 where there is no image.
    size: int32 [2] or [3], how much of the canvas the image covers from the top left; the whole
      crop once an image with a label is augmented, in which it may lie anywhere.
    label: integer [h w] or [d h w]; once augmented int32, and IGNORE where there is no image.
    weight: float32 [h w], a weight for each pixel; 0 where there is no image.
    targets: objects of the image.
  """

  image: Array
  size: Array
  label: Array | None = None
  weight: Array | None = None
  targets: Targets | None = None


Augment: TypeAlias = Callable[[Array, Example], Example]
"""`(key, example) -> example`: pure, and the same key gives the same result."""

Values: TypeAlias = Mapping[str, float]
"""Values of all settings by name."""


class Random:
  """The random numbers of one example: every name has a stream of its own.

  So no augmentation changes what the others draw. Names that are given in `uniforms` and `keys` are
  those that drew from one call, in an order of their own, before there were streams.
  """

  def __init__(self, key: Array, uniforms: Mapping[str, Array], keys: Mapping[str, Array]):
    self._key, self._uniforms, self._keys = key, uniforms, keys

  def key(self, name: str) -> Array:
    """Key of a name."""
    if name in self._keys:
      return self._keys[name]
    return jax.random.fold_in(self._key, np.uint32(zlib.crc32(name.encode())))

  def uniform(self, name: str) -> Array:
    """A number in [0, 1); the same at every call with the same name."""
    return self._uniforms[name] if name in self._uniforms else jax.random.uniform(self.key(name))

  def either_side(self, name: str, largest: float) -> Array:
    """A number from -largest to largest, by `uniform`."""
    return largest * (2 * self.uniform(name) - 1)


@dataclasses.dataclass(frozen=True)
class Setting:
  """A setting of an augmentation: a number from 0, which switches it off.

  Attributes:
    meaning: what the number is, for messages.
    limit: largest value.
    default: value if none is given.
  """

  meaning: str
  limit: float = math.inf
  default: float = 0.0


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """An augmentation, which is left out where all its settings are 0.

  Attributes:
    settings: settings of the augmentation by name.
  """

  settings: Mapping[str, Setting]

  def active(self, values: Values) -> bool:
    """Whether any of its settings is not 0."""
    return any(values[name] for name in self.settings)


@dataclasses.dataclass(frozen=True)
class ColorChange(Augmentation):
  """An augmentation of the colors of an image, before it is resampled.

  Attributes:
    apply: `(random, values, image [H W c] in 0..255, size [2]) -> float32 image`, not clipped.
  """

  apply: Callable[[Random, Values, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Warp(Augmentation):
  """An augmentation that moves where the pixels of the crop are read.

  Attributes:
    apply: `(random, values, positions, crop) -> positions`, in pixels of the scaled image, in
      which a crop of that size lies.
    copies: whether pixels stay whole, so that rows and columns can be copied.
  """

  apply: Callable[[Random, Values, Positions, Sequence[int]], Positions]
  copies: bool = False


@dataclasses.dataclass(frozen=True)
class Filter(Augmentation):
  """An augmentation of the resampled crop.

  Attributes:
    apply: `(random, values, image) -> image`, float32 [h w c] in 0..255 and not clipped, or a
      volume, float32 [d h w c], normalized.
  """

  apply: Callable[[Random, Values, Array], Array]


def find_custom(names: Sequence[str | Augment]) -> tuple[tuple[str, Augment], ...]:
  """Imports a user's augmentations, named as "package.module:Name" or given as functions.

  Raises:
    InputError: one of them is neither.
  """
  if isinstance(names, str) or not isinstance(names, Sequence):
    raise InputError(f'custom: {names!r} must be a list, such as ("package.module:Name",)')
  found = []
  for name in names:
    path = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
    function = lookup("custom:", name, {}) if isinstance(name, str) else name
    if not callable(function):
      raise InputError(f"custom: {path} must be a function (key, example) -> example")
    found.append((path, function))
  return tuple(found)


def apply_custom(
  custom: Sequence[tuple[str, Augment]], random: Random, example: Example
) -> Example:
  """Applies a user's augmentations to an augmented example, one after the other.

  Raises:
    InputError: one of them changes the shape of the image.
  """
  for path, function in custom:
    shape = example.image.shape
    example = function(random.key(path), example)
    if example.image.shape != shape:
      raise InputError(
        f"custom: {path} makes {example.image.shape} of an image of shape {shape}; return an "
        "Example with an image of the same shape"
      )
  return example


def check_settings(
  size: object, scale: object, values: Mapping[str, object], settings: Mapping[str, Setting]
) -> None:
  """Raises InputError that names the argument whose value is impossible.

  Args:
    size: size of the crop.
    scale: smallest and largest factor.
    values: values of the settings by name.
    settings: the settings that there are.
  """
  if not (
    isinstance(size, Sequence)
    and len(size) in (2, 3)
    and all(_is_number(n) and n == int(n) and n > 0 for n in size)
  ):
    raise InputError(
      f"size: {size!r} must be two positive whole numbers, the height and width of the crop in "
      "pixels; for example (256, 256). Volumes have three: depth, height and width"
    )
  if not (
    isinstance(scale, Sequence)
    and len(scale) == 2
    and all(map(_is_number, scale))
    and 0 < scale[0] <= scale[1]
  ):
    raise InputError(
      f"scale: {scale!r} must be two factors, the smallest and the largest, with "
      "0 < smallest <= largest; (1, 1) keeps the size"
    )
  for name, value in values.items():
    if name not in settings:
      raise InputError(f"{name}: there is no such augmentation; there are {', '.join(settings)}")
    limit = settings[name].limit
    if not _is_number(value) or not 0 <= value <= limit:
      rule = f"from 0 to {limit:g}" if math.isfinite(limit) else "0 or more"
      raise InputError(
        f"{name}: {value!r} must be a number {rule}, {settings[name].meaning}; 0 switches it off"
      )


def settings_of(*augmentations: Augmentation) -> dict[str, Setting]:
  """All settings of some augmentations by name."""
  return {name: value for each in augmentations for name, value in each.settings.items()}


def defaults(settings: Mapping[str, Setting]) -> dict[str, float]:
  """The default of each setting."""
  return {name: setting.default for name, setting in settings.items()}


def _is_number(value: object) -> TypeGuard[float]:
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
