"""Non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp

from jseg.nn.boxes import iou
from jseg.types import Array

_BLOCK = 256  # boxes looked at together


def nms(
  boxes: Array,
  scores: Array,
  valid: Array,
  *,
  threshold: float,
  most: int,
  groups: Array | None = None,
) -> tuple[Array, Array]:
  """Greedy suppression: the best box stays, what overlaps it goes, the next best stays, ...

  The boxes are taken in blocks by falling score. Those of a block that overlap a box kept before
  go first. Among the rest, "stays if no better one that stays overlaps it" is repeated until
  nothing changes; whether box i stays is settled after i rounds, in practice after a few. Blocks
  end when `most` are kept or no valid one is left.

  Args:
    boxes: float [n 4].
    scores: float [n]; of equal ones the first counts as better.
    valid: bool [n]; others neither stay nor suppress.
    threshold: boxes with an IoU above it are suppressed.
    most: how many to keep at most, m.
    groups: int [n]: only boxes of one group suppress one another. None: all do.

  Returns:
    (indices int32 [m] of the boxes that stay, the best first; bool [m], which of them there are).
    Indices are 0 where there is none.
  """
  n = boxes.shape[0]
  block = min(_BLOCK, n)
  blocks = -(-n // block)
  scores = jnp.where(valid, scores.astype(jnp.float32), -jnp.inf)
  order = jnp.argsort(scores, descending=True, stable=True).astype(jnp.int32)
  order = jnp.pad(order, (0, blocks * block - n))
  left = valid.sum()
  groups = jnp.zeros(n, jnp.int32) if groups is None else groups
  earlier = jnp.tri(block, k=-1, dtype=bool)  # [i j]: j comes before i

  def overlaps(some: Array, others: Array) -> Array:
    same = groups[some][:, None] == groups[others][None]
    return (iou(boxes[some], boxes[others]) > threshold) & same

  def unfinished(state: tuple[Array, Array, Array]) -> Array:
    start, _, count = state
    return (start < left) & (count < most)

  def one_block(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    start, kept, count = state
    here = jax.lax.dynamic_slice_in_dim(order, start, block)
    there = jnp.arange(most) < count
    open_ = (start + jnp.arange(block) < left) & ~(overlaps(here, kept) & there[None]).any(1)
    worse = overlaps(here, here) & earlier

    def round_(pair: tuple[Array, Array]) -> tuple[Array, Array]:
      stays, _ = pair
      return open_ & ~(worse & stays[None]).any(1), stays

    stays, _ = jax.lax.while_loop(
      lambda pair: (pair[0] != pair[1]).any(), round_, (open_, jnp.zeros_like(open_))
    )
    place = jnp.where(stays, count + jnp.cumsum(stays) - 1, most)
    return start + block, kept.at[place].set(here, mode="drop"), count + stays.sum()

  start = jnp.zeros((), jnp.int32)
  _, kept, count = jax.lax.while_loop(
    unfinished, one_block, (start, jnp.zeros(most, jnp.int32), start)
  )
  return kept, jnp.arange(most) < count
