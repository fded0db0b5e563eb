"""Finding objects: anchors, boxes, matching, suppression, pooling of regions, and the heads."""

from jseg.nn.detection.anchors import make_anchors
from jseg.nn.detection.boxes import (
  box_area,
  clip_boxes,
  decode_boxes,
  encode_boxes,
  has_sides,
  intersection,
  iou,
)
from jseg.nn.detection.fpn import FPN
from jseg.nn.detection.heads import BoxHead, ClassConv, KeypointHead, MaskHead
from jseg.nn.detection.matching import (
  crowds,
  in_crowd,
  match_boxes,
  single_objects,
  subsample_labels,
)
from jseg.nn.detection.nms import nms
from jseg.nn.detection.regions import RegionTargets, detect, region_targets
from jseg.nn.detection.roi_align import (
  crop_masks,
  pool_regions,
  region_levels,
  roi_align,
  roi_pool,
)
from jseg.nn.detection.rpn import AnchorTargets, Proposals, RPNHead, anchor_targets, propose
from jseg.nn.detection.slots import Slots, in_chunks, list_slots

__all__ = [
  "FPN",
  "AnchorTargets",
  "BoxHead",
  "ClassConv",
  "KeypointHead",
  "MaskHead",
  "Proposals",
  "RPNHead",
  "RegionTargets",
  "Slots",
  "anchor_targets",
  "box_area",
  "clip_boxes",
  "crop_masks",
  "crowds",
  "decode_boxes",
  "detect",
  "encode_boxes",
  "has_sides",
  "in_chunks",
  "in_crowd",
  "intersection",
  "iou",
  "list_slots",
  "make_anchors",
  "match_boxes",
  "nms",
  "pool_regions",
  "propose",
  "region_levels",
  "region_targets",
  "roi_align",
  "roi_pool",
  "single_objects",
  "subsample_labels",
]
