"""Matching boxes to objects, and drawing the boxes to train on (Ren et al. 2015, 1506.01497)."""

import jax
import jax.numpy as jnp

from jseg.nn.detection.boxes import box_area, has_sides, intersection, iou
from jseg.types import Array, Targets

# Share of a box that must lie in a crowd, as in Detectron (CROWD_FILTER_THRESH).
_IN_CROWD = 0.7


def single_objects(targets: Targets) -> Array:
  """Which targets [n] of an image are objects to match: valid, no crowds, and not empty."""
  return targets.valid & ~targets.crowd & has_sides(targets.boxes, 1e-3)


def crowds(targets: Targets) -> Array:
  """Which targets [n] of an image are crowds."""
  return targets.valid & targets.crowd


def match_boxes(
  boxes: Array,
  objects: Array,
  valid: Array,
  *,
  high: float,
  low: float,
  best_too: bool = False,
) -> tuple[Array, Array]:
  """Assigns to each box the object that it overlaps most.

  Args:
    boxes: [a 4], anchors or regions.
    objects: [n 4].
    valid: bool [n], which slots of `objects` hold an object.
    high: lowest IoU of a match.
    low: IoU below which a box is background.
    best_too: whether the boxes that overlap an object more than all other boxes do also match when
      their IoU is below `high`, so that no object is left out.

  Returns:
    (index of the object int32 [a]; label int32 [a]: 1 for a match, 0 for background, -1 for
    neither).
  """
  quality = jnp.where(valid[None], iou(boxes, objects), -1)
  index = jnp.argmax(quality, 1).astype(jnp.int32)
  best = quality.max(1)
  label = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
  if best_too:
    highest = quality.max(0, keepdims=True)
    # A box ties with the best one up to rounding, as XLA may compute either side anew. Every box is
    # the best one of an object that no box touches.
    ties = quality >= highest * (1 - 1e-6)
    label = jnp.where((ties & (highest > 0)).any(1), 1, label)
  return index, label


def in_crowd(boxes: Array, objects: Array, crowd: Array) -> Array:
  """Which boxes lie mostly inside a crowd, a region of many objects: they are not background.

  As in COCO's evaluation, a box that matches a single object counts for it all the same, wherever
  it lies. (Detectron ignores all boxes in crowds, torchvision and Detectron2 ignore the crowds.)

  Args:
    boxes: [a 4].
    objects: [n 4].
    crowd: bool [n], which of the objects are crowds.

  Returns:
    bool [a]: whether more than .7 of a box's area is in one crowd.
  """
  inside = jnp.where(crowd[None], intersection(boxes, objects), 0).max(1)
  return inside > _IN_CROWD * box_area(boxes)


def subsample_labels(
  key: Array, label: Array, samples: int, max_matches: int
) -> tuple[Array, Array]:
  """Draws boxes to train on, without replacement: matches first, then background.

  Args:
    key: key of the random draw.
    label: int [a], as returned by `match_boxes`.
    samples: number of boxes s to draw.
    max_matches: highest number of matches among them.

  Returns:
    (indices int32 [s]; bool [s], which slots hold a box). Background fills the slots of missing
    matches, but matches never fill those of missing background.
  """
  chance = jax.random.uniform(key, label.shape)

  def draw(value: int, count: int) -> tuple[Array, Array]:
    count = min(count, len(label))
    drawn, index = jax.lax.top_k(jnp.where(label == value, chance, -1), count)
    return index, (drawn >= 0).sum()

  matches, matched = draw(1, max_matches)
  others, rest = draw(0, samples)
  place = jnp.arange(samples)
  index = jnp.where(
    place < matched,
    matches[jnp.minimum(place, len(matches) - 1)],
    others[jnp.clip(place - matched, 0, len(others) - 1)],
  )
  return index.astype(jnp.int32), place < jnp.minimum(matched + rest, samples)
