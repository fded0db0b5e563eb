"""Random augmentation of an image with its objects on the device, vmapped in the train step.

  augment = make_instance_augment(size=(256, 256), scale=(0.5, 2))
  image, size, targets = jax.vmap(augment)(keys, batch["image"], batch["size"], targets)

Masks are never resampled: scaling and cropping move only the frames that they lie in.
"""

import dataclasses
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from jseg.data import resample
from jseg.data.augment import check_knobs, draw, render
from jseg.types import InputError, Targets

_LEAST_AREA = 1.0  # pixels that must be seen of an object, or it is none


def make_instance_augment(
  *,
  size: Sequence[int],
  scale: Sequence[float] = (0.8, 1.25),
  flip: float = 0.5,
  flip_vertical: float = 0.0,
  blur: float = 0.0,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  noise: float = 0.0,
) -> Callable[..., tuple[jax.Array, jax.Array, Targets]]:
  """Builds the augmentation of one training example of the instance task.

  The result is a pure function `augment(key, image, size, targets) -> (image, size, targets)`:

    key      a PRNG key, as in `make_augment`.
    image    uint8 [H W c] in 0..255, c = 3 or 1 -> float32 [h w c], normalised.
    size     int32 [2], the rows and columns from the top left that the image covers, in and out.
    targets  `jseg.types.Targets` of one image, without the axis b.

  An image larger than the crop is cropped at random; a smaller one stays at the top left, and the
  rest is 0, the mean colour. Boxes become those of what is left of each mask, to a cell of its
  frame; objects of which less than a pixel is left become empty slots.

  Args:
    size: height and width of the crop in pixels.
    scale: smallest and largest factor of the image's size, drawn uniformly. Shrinking filters.
    flip: probability of a left-right flip.
    flip_vertical: probability of a top-bottom flip.
    blur: see `make_augment`, as for all that follow.
    brightness: see above.
    contrast: see above.
    saturation: see above.
    hue: see above.
    noise: see above.

  Raises:
    InputError: a knob is out of its range; the message names it as `augment.KNOB`.
  """
  knobs = {
    "flip": flip,
    "flip_vertical": flip_vertical,
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "noise": noise,
  }
  check_knobs(size, scale, knobs)
  if len(size) != 2:
    raise InputError(f"augment.size = {size!r} must be two numbers: objects are found in images")
  height, width = int(size[0]), int(size[1])

  def augment(
    key: jax.Array, image: jax.Array, size: jax.Array, targets: Targets
  ) -> tuple[jax.Array, jax.Array, Targets]:
    chex.assert_rank([image, size, targets.boxes, targets.masks], [3, 1, 2, 3])
    key, key_noise = jax.random.split(key)
    draws = draw(key)
    factor = scale[0] + (scale[1] - scale[0]) * draws["scale"]
    corner = jnp.stack([draws["top"], draws["left"]])
    offset, ratio = resample.place(size, (height, width), factor, corner)
    offset = jnp.maximum(offset, 0.0)
    scaled = jnp.round(size / ratio).astype(jnp.int32)
    covered = jnp.minimum(scaled, jnp.array((height, width)))
    flipped = jnp.stack([draws["flip_vertical"] < flip_vertical, draws["flip"] < flip])
    # The image is flipped where it lies, not with the canvas: it stays at the top left.
    where = tuple(
      jnp.where(turn, length - 1 - p, p)
      for p, length, turn in zip(resample.grid(height, width), covered, flipped, strict=True)
    )
    inside = resample.inside(resample.grid(height, width), covered)
    where = resample.to_source(where, offset, ratio)
    image = render(image, where, size, ratio, inside, knobs, draws, key_noise)
    return image, covered, move(targets, offset, ratio, flipped, covered)

  return augment


def move(
  targets: Targets, offset: jax.Array, ratio: jax.Array, flipped: jax.Array, covered: jax.Array
) -> Targets:
  """Objects after their image was scaled, cropped, then flipped.

  Args:
    targets: of one image.
    offset: float32 [2], row and column of the scaled image where the crop begins.
    ratio: float32 [2], pixels of the image to one of the scaled image.
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
