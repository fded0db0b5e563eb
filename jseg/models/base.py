"""The base class of the networks, and what networks of images share."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from jseg.nn import Layer, resize_bilinear
from jseg.types import IGNORE, Arguments, Array


class Network(Layer):
  """A segmentation network; subclasses implement `__call__(image, *, train=False)`.

  Class attributes tell the rest of the library what the network is for. A subclass overrides those
  that differ.

  Attributes:
    TINY: arguments that make the network small enough for tests.
    AUX_WEIGHTS: default loss weight of each auxiliary output, by name.
    ndim: 2 for images, 3 for volumes.
    colors_only: its first layer computes with colors or gray in 0..255, so that images of other
      channels have no meaning to it.
    MAX_CLASSES: largest number of classes; masks of classes are bytes, of which one value means
      "ignore". None: any number.
    task: name of the task that trains and evaluates the network (`jseg.tasks`).
    num_classes: number of classes k, background included.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {}
  AUX_WEIGHTS: ClassVar[Mapping[str, float]] = {}
  ndim: ClassVar[int] = 2
  colors_only: ClassVar[bool] = False
  task: ClassVar[str] = "semantic"
  MAX_CLASSES: ClassVar[int | None] = IGNORE

  num_classes: int

  def training_labels(self, label: Array) -> Array:
    """Returns the part of [b h w] labels or weights that the training logits are compared with.

    Networks without padding crop it; by default it is the whole.
    """
    return label

  @classmethod
  def upgrade(cls, arguments: Arguments) -> Arguments:
    """Translates arguments that an earlier version of the network was configured with.

    Runs keep their configuration; this is what lets an old one be loaded. A subclass that renames
    an argument says so here.

    Args:
      arguments: arguments by name, of this version or an earlier one.

    Returns:
      The same in terms of this version; what is unknown is passed through.
    """
    return dict(arguments)


def renamed(arguments: Arguments, **names: str) -> dict[str, Any]:
  """Renames arguments, for `Network.upgrade`: `renamed(arguments, old="new")`."""
  return {names.get(name, name): value for name, value in arguments.items()}


def depth_to_backbone(arguments: Arguments) -> Arguments:
  """Replaces the ResNet's `depth`, for `Network.upgrade`: depth=50 -> backbone="resnet50"."""
  renewed = renamed(arguments, depth="backbone")
  if "depth" in arguments:
    renewed["backbone"] = f"resnet{arguments['depth']}"
  return renewed


def pad_to_corners(image: Array, stride: int, value: float = 0) -> Array:
  """Pads [b h w ...] below and to the right to stride n + 1 pixels.

  A map of that stride then has n + 1 elements, whose corners lie on the image's.

  Args:
    image: image, or labels [b h w].
    stride: stride of the map.
    value: what the padding holds.
  """
  edges = [(0, (1 - n) % stride) for n in image.shape[1:3]]
  rest = [(0, 0)] * (image.ndim - 3)
  return jnp.pad(image, [(0, 0), *edges, *rest], constant_values=value)


def cover_image(scores: Array, size: tuple[int, ...], corners: int | None = None) -> Array:
  """Interpolates scores to the image, bilinearly and in float32.

  Args:
    scores: [b h' w' k].
    size: height and width of the image.
    corners: stride of scores that lie corners on corners on an image that `pad_to_corners` has
      padded; None: pixels' edges lie on each other, without padding.

  Returns:
    Logits float32 [b h w k].
  """
  height, width = size
  scores = scores.astype(jnp.float32)
  if corners is None:
    return resize_bilinear(scores, (height, width))
  padded = tuple(n + (1 - n) % corners for n in (height, width))
  return resize_bilinear(scores, padded, align_corners=True)[:, :height, :width]
