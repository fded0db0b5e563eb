"""Non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp

from jseg.arithmetic import cdiv
from jseg.nn.detection.boxes import iou
from jseg.types import Array

_BLOCK = 256  # boxes looked at together


def nms(
  boxes: Array,
  scores: Array,
  valid: Array,
  *,
  threshold: float,
  limit: int,
  groups: Array | None = None,
) -> tuple[Array, Array]:
  """Greedy suppression: the best box is kept, what overlaps it goes, the next best is kept, ...

  The boxes are taken in blocks by falling score. Those of a block that overlap a box kept before
  go first. Among the rest, "kept if it overlaps no better box that is kept" is repeated until
  nothing changes; box i is settled after i rounds, in practice after a few. Blocks end when `limit`
  boxes are kept or no valid one is left.

  Args:
    boxes: float [n 4].
    scores: float [n]; of equal ones the first counts as better.
    valid: bool [n]; other boxes are neither kept nor suppress any.
    threshold: IoU above which a box is suppressed.
    limit: highest number of boxes to keep, m.
    groups: int [n]; only boxes of the same group suppress one another. None: all boxes do.

  Returns:
    (indices int32 [m] of the kept boxes, the best first; bool [m], which slots hold a box).
    Indices of empty slots are 0.
  """
  n = boxes.shape[0]
  block = min(_BLOCK, n)
  scores = jnp.where(valid, scores.astype(jnp.float32), -jnp.inf)
  order = jnp.argsort(scores, descending=True, stable=True).astype(jnp.int32)
  order = jnp.pad(order, (0, cdiv(n, block) * block - n))
  candidates = valid.sum()
  groups = jnp.zeros(n, jnp.int32) if groups is None else groups
  better = jnp.tri(block, k=-1, dtype=bool)  # [i j]: j comes before i

  def overlaps(some: Array, others: Array) -> Array:
    same = groups[some][:, None] == groups[others][None]
    return (iou(boxes[some], boxes[others]) > threshold) & same

  def unfinished(state: tuple[Array, Array, Array]) -> Array:
    start, _, count = state
    return (start < candidates) & (count < limit)

  def add_block(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    start, kept, count = state
    here = jax.lax.dynamic_slice_in_dim(order, start, block)
    filled = jnp.arange(limit) < count
    is_candidate = start + jnp.arange(block) < candidates
    eligible = is_candidate & ~(overlaps(here, kept) & filled[None]).any(1)
    keep = _fixed_point(eligible, overlaps(here, here) & better)
    place = jnp.where(keep, count + jnp.cumsum(keep) - 1, limit)
    return start + block, kept.at[place].set(here, mode="drop"), count + keep.sum()

  start = jnp.zeros((), jnp.int32)
  _, kept, count = jax.lax.while_loop(
    unfinished, add_block, (start, jnp.zeros(limit, jnp.int32), start)
  )
  return kept, jnp.arange(limit) < count


def _fixed_point(eligible: Array, rivals: Array) -> Array:
  """Which eligible boxes [n] to keep, if box i gives way to each kept box j with rivals[i, j]."""

  def unsettled(pair: tuple[Array, Array]) -> Array:
    keep, previous = pair
    return (keep != previous).any()

  def repeat(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    keep, _ = pair
    return eligible & ~(rivals & keep[None]).any(1), keep

  keep, _ = jax.lax.while_loop(unsettled, repeat, (eligible, jnp.zeros_like(eligible)))
  return keep
