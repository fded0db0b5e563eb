"""Random augmentation of an image with its objects on the device, vmapped in the train step.

  augment = make_instance_augment(size=(256, 256), scale=(0.5, 2))
  batch = jax.vmap(augment)(keys, Example(image=images, size=sizes, targets=targets))

Masks are never resampled: scaling and cropping move only the frames that they lie in.
"""

import dataclasses
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from jseg.augment import geometry, warps
from jseg.augment.base import (
  Augment,
  Augmentation,
  ColorChange,
  Example,
  Filter,
  Random,
  apply_custom,
  check_settings,
  defaults,
  find_custom,
  settings_of,
)
from jseg.augment.color import check_channels
from jseg.augment.image import IMAGE_AUGMENTATIONS, first_draws, render
from jseg.images import Statistics
from jseg.types import InputError, Targets

OBJECT_AUGMENTATIONS: tuple[Augmentation, ...] = (
  *(each for each in IMAGE_AUGMENTATIONS if isinstance(each, ColorChange | Filter)),
  warps.FLIP,  # the one warp that boxes follow
)
"""The augmentations of images with objects."""

_LEAST_AREA = 1.0  # pixels that must be seen of an object, or it is none


def instance_arguments() -> dict[str, object]:
  """The arguments of `make_instance_augment` but `size`, and their defaults."""
  return {"scale": (0.8, 1.25), **defaults(settings_of(*OBJECT_AUGMENTATIONS)), "custom": ()}


def make_instance_augment(
  *,
  size: Sequence[int],
  scale: Sequence[float] = (0.8, 1.25),
  custom: Sequence[str | Augment] = (),
  statistics: Statistics | None = None,
  **settings: float,
) -> Augment:
  """Builds the augmentation of one training example of the instance task.

  The result is a pure function `augment(key, example) -> example`, of examples with `targets`.

  An image larger than the crop is cropped at random; a smaller one stays at the top left, and the
  rest is 0, the mean color. Boxes become those of what is left of each mask, to a cell of its
  frame; objects of which less than a pixel is left become empty slots.

  Args:
    size: height and width of the crop in pixels.
    scale: smallest and largest factor of the image's size, drawn uniformly. Shrinking filters.
    custom: augmentations of your own, as for `make_augment`.
    statistics: mean and deviation of each channel, as for `make_augment`.
    **settings: strengths of the augmentations in `OBJECT_AUGMENTATIONS`: flip, flip_vertical,
      blur, brightness, contrast, saturation, hue, noise; see `make_augment`.

  Raises:
    InputError: an argument is out of its range.
  """
  table = settings_of(*OBJECT_AUGMENTATIONS)
  values = {**defaults(table), **settings}
  check_settings(size, scale, values, table)
  if statistics is not None:
    check_channels(values, len(statistics.mean))
  if len(size) != 2:
    raise InputError(f"size: {size!r} must be two numbers: objects are found in images")
  crop, functions = tuple(map(int, size)), find_custom(custom)
  chosen = [each for each in OBJECT_AUGMENTATIONS if each.active(values)]

  def augment(key: jax.Array, example: Example) -> Example:
    image, size, targets = example.image, example.size, example.targets
    assert targets is not None
    chex.assert_rank([image, size, targets.boxes, targets.masks], [3, 1, 2, 3])
    random = _make_random(key)
    factor = scale[0] + (scale[1] - scale[0]) * random.uniform("scale")
    corner = jnp.stack([random.uniform("top"), random.uniform("left")])
    offset, ratio = geometry.place(size, crop, factor, corner)
    offset = jnp.maximum(offset, 0.0)
    scaled = jnp.round(size / ratio).astype(jnp.int32)
    covered = jnp.minimum(scaled, jnp.array(crop))
    flipped = jnp.stack([random.uniform(n) < values[n] for n in ("flip_vertical", "flip")])
    # The image is flipped where it lies, not with the canvas: it stays at the top left.
    where = tuple(
      jnp.where(turn, length - 1 - p, p)
      for p, length, turn in zip(geometry.grid(*crop), covered, flipped, strict=True)
    )
    inside = geometry.inside(geometry.grid(*crop), covered)
    where = geometry.to_source(where, offset, ratio)
    result = Example(
      image=render(example, where, ratio, inside, chosen, values, random, statistics),
      size=covered,
      targets=move(targets, offset, ratio, flipped, covered),
    )
    return apply_custom(functions, random, result)

  return augment


def _make_random(key: jax.Array) -> Random:
  key_draws, key_noise = jax.random.split(key)
  return Random(key, first_draws(key_draws), {"noise": key_noise})


def move(
  targets: Targets, offset: jax.Array, ratio: jax.Array, flipped: jax.Array, covered: jax.Array
) -> Targets:
  """Moves objects as their image: scaled, cropped, then flipped.

  Args:
    targets: objects of one image.
    offset: float32 [2], row and column of the scaled image where the crop begins.
    ratio: float32 [2], pixels of the image per pixel of the scaled image.
    flipped: bool [2], top to bottom and left to right.
    covered: int32 [2], height and width of the crop.
  """
  limit, turned = covered.astype(jnp.float32)[None], flipped[None]
  corners = (targets.frames[:, :2], targets.frames[:, 2:])
  start, end = (corner / ratio[None] - offset[None] for corner in corners)
  start, end = jnp.where(turned, limit - end, start), jnp.where(turned, limit - start, end)
  masks = targets.masks
  masks = jnp.where(flipped[0], masks[:, ::-1], masks)
  masks = jnp.where(flipped[1], masks[:, :, ::-1], masks)

  # Along each axis: edges of cells, and the share of each cell that lies in the crop.
  cells = masks.shape[-1]
  step = (end - start)[:, None] / cells
  low = start[:, None] + step * jnp.arange(cells, dtype=jnp.float32)[None, :, None]
  seen = jnp.clip(low + step, 0, limit[None]) - jnp.clip(low, 0, limit[None])
  shares = seen / jnp.maximum(step, 1e-6)
  shares = jnp.where(shares > 1e-3, shares, 0.0)  # rounding must not add a cell
  rows, columns = shares[..., 0], shares[..., 1]

  covering = masks.astype(jnp.float32) / 255 * rows[:, :, None] * columns[:, None, :]
  area = covering.sum((1, 2)) * step.prod((1, 2))
  valid = targets.valid & (area >= _LEAST_AREA)
  boxes = []
  for axis, occupied in enumerate(((covering > 0).any(2), (covering > 0).any(1))):
    first = jnp.argmax(occupied, 1).astype(jnp.float32)
    last = cells - jnp.argmax(occupied[:, ::-1], 1).astype(jnp.float32)
    edges = (start[:, axis] + (end - start)[:, axis] * (n / cells) for n in (first, last))
    boxes.append([jnp.clip(edge, 0, limit[0, axis]) for edge in edges])
  (y0, y1), (x0, x1) = boxes
  slots = valid[:, None]
  return dataclasses.replace(
    targets,
    boxes=jnp.where(slots, jnp.stack([y0, x0, y1, x1], 1), 0.0),
    frames=jnp.where(slots, jnp.concatenate([start, end], 1), 0.0),
    masks=jnp.where(slots[..., None], masks, 0),
    classes=jnp.where(valid, targets.classes, 0),
    valid=valid,
    crowd=targets.crowd & valid,
  )
