"""Blocks that networks are made of. Networks use these and never the framework's own."""

from jseg.nn.conv import Conv, conv, he_normal
from jseg.nn.lrn import local_response_norm
from jseg.nn.norm import AXIS, Norm, check_norm
from jseg.nn.pool import avg_pool, max_pool, max_pool_with_indices, max_unpool
from jseg.nn.pyramid import ASPP, FCNHead, PyramidPooling, pool_to_bins
from jseg.nn.resize import resize_bilinear, resize_nearest, resize_to
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
  "Conv",
  "ConvTranspose",
  "FCNHead",
  "Norm",
  "PyramidPooling",
  "UpConv",
  "avg_pool",
  "bed_of_nails",
  "bilinear_kernel",
  "centre",
  "check_norm",
  "check_padding",
  "conv",
  "conv_transpose",
  "fit_unet",
  "he_normal",
  "local_response_norm",
  "max_pool",
  "max_pool_with_indices",
  "max_unpool",
  "pool_to_bins",
  "resize_bilinear",
  "resize_nearest",
  "resize_to",
  "unpadded_labels",
  "upsample_fixed",
]
