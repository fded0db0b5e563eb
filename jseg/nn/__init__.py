"""Blocks that networks are made of. Networks use these and never the framework's own."""

from jseg.nn.anchors import anchors
from jseg.nn.boxes import box_area, clip_boxes, decode_boxes, encode_boxes, intersection, iou
from jseg.nn.conv import Conv, conv, he_normal
from jseg.nn.fpn import FPN
from jseg.nn.layer import Layer
from jseg.nn.lrn import local_response_norm
from jseg.nn.matching import in_crowd, match, sample
from jseg.nn.nms import nms
from jseg.nn.norm import AXIS, Norm, check_norm, is_split
from jseg.nn.pool import avg_pool, max_pool, max_pool_with_indices, max_unpool
from jseg.nn.pyramid import ASPP, FCNHead, PyramidPooling, pool_to_bins
from jseg.nn.resize import resize_bilinear, resize_nearest, resize_to
from jseg.nn.roi_align import crop_masks, region_levels, roi_align, roi_pool
from jseg.nn.unpadded import centre, check_padding, fit_unet, unpadded_labels
from jseg.nn.upsample import (
  ConvTranspose,
  UpConv,
  bed_of_nails,
  bilinear_kernel,
  conv_transpose,
  upsample_fixed,
)

__all__ = [
  "ASPP",
  "AXIS",
  "FPN",
  "Conv",
  "ConvTranspose",
  "FCNHead",
  "Layer",
  "Norm",
  "PyramidPooling",
  "UpConv",
  "anchors",
  "avg_pool",
  "bed_of_nails",
  "bilinear_kernel",
  "box_area",
  "centre",
  "check_norm",
  "check_padding",
  "clip_boxes",
  "conv",
  "conv_transpose",
  "crop_masks",
  "decode_boxes",
  "encode_boxes",
  "fit_unet",
  "he_normal",
  "in_crowd",
  "intersection",
  "iou",
  "is_split",
  "local_response_norm",
  "match",
  "max_pool",
  "max_pool_with_indices",
  "max_unpool",
  "nms",
  "pool_to_bins",
  "region_levels",
  "resize_bilinear",
  "resize_nearest",
  "resize_to",
  "roi_align",
  "roi_pool",
  "sample",
  "unpadded_labels",
  "upsample_fixed",
]
