"""Which box is whose, and which of them to train on (Ren et al. 2015, arXiv:1506.01497)."""

import jax
import jax.numpy as jnp

from jseg.nn.boxes import box_area, intersection, iou
from jseg.types import Array

# A region that lies in a crowd to this part is no background (Detectron's CROWD_FILTER_THRESH).
_IN_CROWD = 0.7


def match(
  boxes: Array,
  objects: Array,
  valid: Array,
  crowd: Array,
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
    crowd: bool [n], regions of many objects: nothing is assigned to them, and boxes mostly inside
      of them are no background.
    high: least IoU of a match.
    low: IoU below which a box is background.
    best_too: whether boxes that overlap an object most of all match below `high` too, so that no
      object is left out.

  Returns:
    (object int32 [a]; label int32 [a]: 1 where it is a match, 0 for background, -1 for neither).
  """
  single = (valid & ~crowd)[None]
  quality = jnp.where(single, iou(boxes, objects), -1)
  index = jnp.argmax(quality, 1).astype(jnp.int32)
  best = quality.max(1)
  label = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
  if best_too:
    most = quality.max(0, keepdims=True)
    # An object that no box touches has every box for its best.
    label = jnp.where(((quality == most) & (most > 0)).any(1), 1, label)
  inside = jnp.where((valid & crowd)[None], intersection(boxes, objects), 0).max(1)
  in_crowd = inside > _IN_CROWD * box_area(boxes)
  return index, jnp.where((label == 0) & in_crowd, -1, label)


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
