"""Losses of object detection (Mask R-CNN, He et al. 2017, arXiv:1703.06870, section 3).

Each is a function of the network's outputs and returns (sum, count), float32 scalars. What isn't
sampled adds nothing and gets no gradient; counts are 0 where there is nothing.
"""

import jax
import jax.numpy as jnp

from jseg.types import Array, InstanceOutputs

# Where the smooth L1 loss turns from a parabola to a line, as in torchvision.
_BETA = 1 / 9


def rpn_objectness(outputs: InstanceOutputs) -> tuple[Array, Array]:
  """Binary cross-entropy of the sampled anchors, and their number."""
  anchors = outputs.rpn_sampled
  truth = outputs.rpn_labels.astype(jnp.float32)
  return _sum(_binary(outputs.rpn_logits, truth), anchors), _count(anchors)


def rpn_box(outputs: InstanceOutputs) -> tuple[Array, Array]:
  """Smooth L1 of the sampled anchors that match an object, and the number of sampled anchors."""
  anchors = outputs.rpn_sampled
  loss = _smooth_l1(outputs.rpn_deltas - outputs.rpn_targets)
  return _sum(loss, anchors & outputs.rpn_labels), _count(anchors)


def box_class(outputs: InstanceOutputs) -> tuple[Array, Array]:
  """Cross-entropy of the sampled regions, and their number."""
  # Not `jseg.losses.cross_entropy`, whose classes are bytes.
  truth = jax.nn.one_hot(outputs.classes, outputs.class_logits.shape[-1])
  nll = -(jax.nn.log_softmax(outputs.class_logits) * truth).sum(-1)
  return _sum(nll, outputs.sampled), _count(outputs.sampled)


def box(outputs: InstanceOutputs) -> tuple[Array, Array]:
  """Smooth L1 of the sampled regions that match an object, and the number of sampled regions."""
  loss = _smooth_l1(outputs.deltas - outputs.targets)
  return _sum(loss, outputs.sampled & (outputs.classes > 0)), _count(outputs.sampled)


def mask(outputs: InstanceOutputs) -> tuple[Array, Array]:
  """Binary cross-entropy of the true class's masks, and the number of their cells."""
  cells = jnp.broadcast_to(outputs.mask_valid[..., None, None], outputs.masks.shape)
  return _sum(_binary(outputs.mask_logits, outputs.masks), cells), _count(cells)


def keypoint_loss(
  logits: Array, points: Array, visible: Array, boxes: Array
) -> tuple[Array, Array]:
  """Cross-entropy over the cells of a region, in one of which each keypoint is (section 5).

  Args:
    logits: float32 [p s s q], as the keypoint head returns them.
    points: float32 [p q 2], row and column in pixels.
    visible: bool [p q]. Keypoints that aren't, and those outside of their region, don't count.
    boxes: float32 [p 4], the regions.

  Returns:
    (sum, number of keypoints that count). torchvision divides by it, Detectron likewise.
  """
  cells = logits.shape[1]
  low, length = boxes[:, None, :2], jnp.maximum(boxes[:, None, 2:] - boxes[:, None, :2], 1e-3)
  at = jnp.floor((points - low) / length * cells)
  # The far edges belong to the last cells.
  at = jnp.where(points == boxes[:, None, 2:], cells - 1, at)
  counts = visible & ((at >= 0) & (at < cells)).all(-1)
  index = jnp.where(counts, at[..., 0] * cells + at[..., 1], 0).astype(jnp.int32)
  log_p = jax.nn.log_softmax(logits.reshape(len(logits), cells**2, -1), 1)
  right = jnp.take_along_axis(log_p, index[:, None], 1)[:, 0]
  return -_sum(right, counts), _count(counts)


def _binary(logits: Array, target: Array) -> Array:
  """Cross-entropy of a sigmoid, in nats."""
  return jax.nn.softplus(logits) - logits * target


def _smooth_l1(difference: Array) -> Array:
  """[... 4] -> [...], summed over coordinates."""
  size = jnp.abs(difference)
  return jnp.where(size < _BETA, size**2 / (2 * _BETA), size - _BETA / 2).sum(-1)


def _sum(values: Array, where: Array) -> Array:
  return jnp.where(where, values, 0.0).sum()


def _count(where: Array) -> Array:
  return where.sum(dtype=jnp.float32)
