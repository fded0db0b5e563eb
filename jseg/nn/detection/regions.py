"""Detections from regions, and what the heads are trained on (He et al. 2017, arXiv:1703.06870)."""

import math
import sys

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jseg.nn.detection.boxes import clip_boxes, decode_boxes, encode_boxes, has_sides
from jseg.nn.detection.matching import (
  crowds,
  in_crowd,
  match_boxes,
  single_objects,
  subsample_labels,
)
from jseg.nn.detection.nms import nms
from jseg.nn.detection.roi_align import crop_masks
from jseg.nn.detection.rpn import Proposals
from jseg.types import Array, Detections, Targets

_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # factors of regions' deltas, as in Detectron
_MATCH_IOU = 0.5  # from which a region matches an object; below it is background


def detect(
  logits: Array,
  deltas: Array,
  proposals: Proposals,
  size: Array,
  *,
  min_score: float,
  threshold: float,
  limit: int,
) -> Detections:
  """Detections in one image, without masks and keypoints.

  Args:
    logits: [n k] of the regions; class 0 is background.
    deltas: [n k 4] of the regions, one box per class.
    proposals: the n regions.
    size: (height, width) [2] of the image, to which boxes are clipped.
    min_score: probability below which a detection is dropped.
    threshold: IoU above which a detection is suppressed by a better one of its class.
    limit: number of slots for detections.
  """
  # Probabilities add up to one, so that only so many classes of a region reach `min_score`: what
  # suppression sorts is a fraction of all.
  most = min(logits.shape[-1] - 1, math.floor(1 / min_score) if min_score > 0 else sys.maxsize)
  scores, index = jax.lax.top_k(nn.softmax(logits)[:, 1:], most)
  classes = (index + 1).astype(jnp.int32)
  chosen = jnp.take_along_axis(deltas, classes[..., None], 1)
  boxes = clip_boxes(decode_boxes(chosen, proposals.boxes[:, None], _DELTA_WEIGHTS), size)
  valid = proposals.valid[:, None] & (scores > min_score) & has_sides(boxes, 1e-2)
  boxes, scores, classes = boxes.reshape(-1, 4), scores.reshape(-1), classes.reshape(-1)
  kept, found = nms(
    boxes,
    scores,
    valid.reshape(-1),
    threshold=threshold,
    limit=limit,
    groups=classes,
  )
  return Detections(
    boxes=jnp.where(found[:, None], boxes[kept], 0),
    scores=jnp.where(found, scores[kept], 0),
    classes=jnp.where(found, classes[kept], 0),
    masks=None,
    valid=found,
  )


@flax.struct.dataclass
class RegionTargets:
  """The r regions of one image to train on, and what the heads should predict for them.

  The first p regions, those that may match, also go to the mask head. Missing matches are filled
  with repetitions of others, so that a batch norm sees objects only.

  Attributes:
    boxes: float32 [r 4], the regions; matches come first.
    classes: int32 [r], the class of each region's object; 0 is background.
    deltas: float32 [r 4], from each region to its object, weighted; 0 without a match.
    sampled: bool [r], the regions that count.
    mask_boxes: float32 [p 4], the regions of the mask head.
    mask_classes: int32 [p], the classes of `mask_boxes`.
    masks: float32 [p m m] in [0, 1], the masks within `mask_boxes`; 0 where not `mask_valid`.
    mask_valid: bool [p], the regions of the mask head that count: matches, not repetitions.
  """

  boxes: Array
  classes: Array
  deltas: Array
  sampled: Array
  mask_boxes: Array
  mask_classes: Array
  masks: Array
  mask_valid: Array


def region_targets(
  key: Array,
  proposals: Proposals,
  targets: Targets,
  *,
  samples: int,
  max_matches: int,
  mask_size: int,
) -> RegionTargets:
  """Matches the regions of one image to its objects, and draws those to train on.

  Args:
    key: key of the image's random draws, the same as for `anchor_targets`.
    proposals: regions of the proposal network.
    targets: the image's objects, which are added to the regions.
    samples: number of regions r to draw.
    max_matches: highest number of matches p among them.
    mask_size: edge m of the masks, in cells.
  """
  single = single_objects(targets)
  # Early in training no proposal is good enough: the objects themselves are regions too.
  regions = jnp.concatenate([proposals.boxes, targets.boxes])
  valid = jnp.concatenate([proposals.valid, single])
  index, label = match_boxes(regions, targets.boxes, single, high=_MATCH_IOU, low=_MATCH_IOU)
  ignored = (label == 0) & in_crowd(regions, targets.boxes, crowds(targets))
  label = jnp.where(valid & ~ignored, label, -1)
  drawn, sampled = subsample_labels(jax.random.fold_in(key, 1), label, samples, max_matches)
  regions, index = regions[drawn], index[drawn]
  matched = sampled & (label[drawn] == 1)
  classes = jnp.where(matched, targets.classes[index], 0)
  deltas = encode_boxes(targets.boxes[index], regions, _DELTA_WEIGHTS)
  place = jnp.arange(max_matches)
  repeated = place % jnp.maximum(matched.sum(), 1)
  boxes, owner = regions[repeated], index[repeated]
  masks = crop_masks(targets.masks[owner], targets.frames[owner], boxes, mask_size)
  mask_valid = place < matched.sum()
  return RegionTargets(
    boxes=regions,
    classes=classes,
    deltas=jnp.where(matched[:, None], deltas, 0),
    sampled=sampled,
    mask_boxes=boxes,
    mask_classes=classes[repeated],
    masks=jnp.where(mask_valid[:, None, None], masks, 0),
    mask_valid=mask_valid,
  )
