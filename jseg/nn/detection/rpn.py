"""The region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3.1)."""

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jseg.nn.conv import Conv
from jseg.nn.detection.boxes import clip_boxes, decode_boxes, encode_boxes, has_sides
from jseg.nn.detection.matching import (
  crowds,
  in_crowd,
  match_boxes,
  single_objects,
  subsample_labels,
)
from jseg.nn.detection.nms import nms
from jseg.nn.initializers import normal
from jseg.nn.layer import Layer
from jseg.types import Array, Targets

# IoU of anchors with objects: a match from the first on, background below the second.
_MATCH_IOU, _BACKGROUND_IOU = 0.7, 0.3


class RPNHead(Layer):
  """Levels [b h w c] -> objectness logits [b a] and deltas [b a 4] of all anchors, float32.

  Anchors come level by level, row by row, as in `make_anchors`.

  Attributes:
    features: channels of the 3x3 convolutions.
    anchors: number of anchors at each pixel.
    convs: number of 3x3 convolutions before the two predictors.
  """

  features: int
  anchors: int
  convs: int = 1

  @nn.compact
  def __call__(self, levels: Sequence[Array]) -> tuple[Array, Array]:
    """Computes both from the same features."""

    def conv(features: int, kernel: int, name: str) -> Conv:
      init = normal(0.01)
      return self.typed(Conv)(features, (kernel, kernel), kernel_init=init, name=name)

    for i in range(1, self.convs + 1):
      shared = conv(self.features, 3, f"conv{i}")
      levels = [nn.relu(shared(x)) for x in levels]
    # The predictors see pixel by pixel, so those of all levels make one product.
    pixels = jnp.concatenate([x.reshape(len(x), -1, 1, x.shape[-1]) for x in levels], axis=1)
    logits = conv(self.anchors, 1, "score")(pixels).astype(jnp.float32)
    deltas = conv(4 * self.anchors, 1, "box")(pixels).astype(jnp.float32)
    return logits.reshape(len(pixels), -1), deltas.reshape(len(pixels), -1, 4)


@flax.struct.dataclass
class Proposals:
  """Regions that may hold an object, padded to n slots.

  Attributes:
    boxes: float32 [n 4], (y0 x0 y1 x1) in pixels, the best first; 0 where not valid.
    valid: bool [n], which slots hold a region.
  """

  boxes: Array
  valid: Array


def propose(
  anchors: Sequence[np.ndarray],
  logits: Array,
  deltas: Array,
  size: Array,
  *,
  candidates: int,
  limit: int,
  threshold: float,
) -> Proposals:
  """The best regions of one image.

  Args:
    anchors: float32 [a 4] of each level.
    logits: objectness of the anchors of all levels, as returned by `RPNHead`.
    deltas: [... 4] of the same anchors.
    size: (height, width) [2] of the image, to which regions are clipped.
    candidates: highest number of regions of each level before suppression.
    limit: number of regions n after suppression.
    threshold: IoU above which a region is suppressed by a better one of its level.
  """
  ends = np.cumsum([len(level) for level in anchors])
  best = [
    jax.lax.top_k(logits[end - len(level) : end], min(candidates, len(level)))[1]
    for level, end in zip(anchors, ends, strict=True)
  ]
  levels = np.repeat(np.arange(len(best)), [len(places) for places in best])
  index = jnp.concatenate(best) + np.asarray([0, *ends], np.int32)[levels]
  boxes = decode_boxes(deltas[index], jnp.concatenate(anchors)[index])
  boxes = clip_boxes(boxes, size)
  kept, valid = nms(
    boxes,
    logits[index],
    has_sides(boxes, 1e-3),
    threshold=threshold,
    limit=limit,
    groups=jnp.asarray(levels),
  )
  return Proposals(boxes=jnp.where(valid[:, None], boxes[kept], 0), valid=valid)


@flax.struct.dataclass
class AnchorTargets:
  """What the proposal network should predict for the anchors of one image.

  Attributes:
    labels: bool [a], whether the anchor matches an object.
    deltas: float32 [a 4], from the anchor to its object; 0 without a match.
    sampled: bool [a], the anchors that are trained on.
  """

  labels: Array
  deltas: Array
  sampled: Array


def anchor_targets(
  key: Array, anchors: np.ndarray, targets: Targets, size: Array, *, samples: int
) -> AnchorTargets:
  """Matches the anchors of one image to its objects, and draws those to train on.

  Args:
    key: key of the image's random draws, the same as for `region_targets`.
    anchors: float32 [a 4], of all levels.
    targets: the image's objects.
    size: (height, width) [2] of the image; padding lies beyond.
    samples: number of anchors to draw, of which at most half are matches.
  """
  boxes = jnp.asarray(anchors)
  index, label = match_boxes(
    boxes,
    targets.boxes,
    single_objects(targets),
    high=_MATCH_IOU,
    low=_BACKGROUND_IOU,
    best_too=True,
  )
  # Anchors centered on padding teach nothing, and only the part inside the image can be a crowd.
  outside = ((anchors[:, :2] + anchors[:, 2:]) / 2 >= size[None]).any(-1)
  ignored = outside | in_crowd(clip_boxes(boxes, size), targets.boxes, crowds(targets))
  label = jnp.where((label == 0) & ignored, -1, label)
  drawn, valid = subsample_labels(jax.random.fold_in(key, 0), label, samples, samples // 2)
  matched = label == 1
  deltas = encode_boxes(targets.boxes[index], boxes)
  return AnchorTargets(
    labels=matched,
    deltas=jnp.where(matched[:, None], deltas, 0),
    sampled=jnp.zeros(len(anchors), bool).at[drawn].max(valid),
  )
