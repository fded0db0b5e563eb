"""Which box is whose, and which of them to train on (Ren et al. 2015, arXiv:1506.01497)."""

import jax
import jax.numpy as jnp

from jseg.nn.boxes import box_area, intersection, iou
from jseg.types import Array

# Part of a box that must lie in a crowd, as in Detectron (CROWD_FILTER_THRESH).
_IN_CROWD = 0.7


def match(
  boxes: Array,
  objects: Array,
  valid: Array,
  *,
  high: float,
  low: float,
  best_too: bool = False,
) -> tuple[Array, Array]:
  """Assigns each box the object it overlaps most.

  Args:
    boxes: [a 4], anchors or regions.
    objects: [n 4].
    valid: bool [n], which of them there are.
    high: least IoU of a match.
    low: IoU below which a box is background.
    best_too: whether boxes that overlap an object most of all match below `high` too, so that no
      object is left out.

  Returns:
    (object int32 [a]; label int32 [a]: 1 where it is a match, 0 for background, -1 for neither).
  """
  quality = jnp.where(valid[None], iou(boxes, objects), -1)
  index = jnp.argmax(quality, 1).astype(jnp.int32)
  best = quality.max(1)
  label = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
  if best_too:
    most = quality.max(0, keepdims=True)
    # An object that no box touches has every box for its best.
    label = jnp.where(((quality == most) & (most > 0)).any(1), 1, label)
  return index, label


def in_crowd(boxes: Array, objects: Array, crowd: Array) -> Array:
  """Which boxes lie mostly inside a region of many objects: they are no background.

  As in COCO's evaluation, a box that is a single object's counts for it all the same, wherever it
  lies. (Detectron leaves boxes in crowds out altogether, torchvision and Detectron2 the crowds.)

  Args:
    boxes: [a 4].
    objects: [n 4].
    crowd: bool [n], which of the objects are such regions.

  Returns:
    bool [a]: whether more than .7 of its area is in one of them.
  """
  inside = jnp.where(crowd[None], intersection(boxes, objects), 0).max(1)
  return inside > _IN_CROWD * box_area(boxes)


def sample(key: Array, label: Array, number: int, positives: int) -> tuple[Array, Array]:
  """Draws boxes to train on, without replacement: matches first, then background.

  Args:
    key: of the draw.
    label: int [a], as `match` returns it.
    number: how many to draw, s.
    positives: how many matches to draw at most.

  Returns:
    (indices int32 [s], bool [s]: which of them there are). Background takes the places of missing
    matches, and not the other way round.
  """
  chance = jax.random.uniform(key, label.shape)

  def draw(value: int, most: int) -> tuple[Array, Array]:
    most = min(most, len(label))
    drawn, index = jax.lax.top_k(jnp.where(label == value, chance, -1), most)
    return index, (drawn >= 0).sum()

  matches, found = draw(1, positives)
  others, rest = draw(0, number)
  place = jnp.arange(number)
  index = jnp.where(
    place < found,
    matches[jnp.minimum(place, len(matches) - 1)],
    others[jnp.clip(place - found, 0, len(others) - 1)],
  )
  return index.astype(jnp.int32), place < jnp.minimum(found + rest, number)
