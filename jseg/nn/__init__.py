"""Blocks that networks are made of. Networks use these and never the framework's own.

What finds objects is in `jseg.nn.detection`; what knows of devices in `jseg.nn.devices`.
"""

from jseg.nn.conv import Conv, conv
from jseg.nn.dropout import Dropout
from jseg.nn.initializers import he_normal, normal
from jseg.nn.layer import Layer
from jseg.nn.lrn import local_response_norm
from jseg.nn.norm import Norm, check_norm
from jseg.nn.pool import avg_pool, larger, max_pool, max_pool_with_indices, max_unpool
from jseg.nn.pyramid import ASPP, ConvBeside, FCNHead, PyramidPooling, pool_to_bins
from jseg.nn.remat import Staged, check_remat
from jseg.nn.residual import add_relu
from jseg.nn.resize import pad_to_multiple, resize_bilinear, resize_nearest, resize_to
from jseg.nn.unet_sizes import center_crop, check_padding, fit_unet, unpadded_labels
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
  "Conv",
  "ConvBeside",
  "ConvTranspose",
  "Dropout",
  "FCNHead",
  "Layer",
  "Norm",
  "PyramidPooling",
  "Staged",
  "UpConv",
  "add_relu",
  "avg_pool",
  "bed_of_nails",
  "bilinear_kernel",
  "center_crop",
  "check_norm",
  "check_padding",
  "check_remat",
  "conv",
  "conv_transpose",
  "fit_unet",
  "he_normal",
  "larger",
  "local_response_norm",
  "max_pool",
  "max_pool_with_indices",
  "max_unpool",
  "normal",
  "pad_to_multiple",
  "pool_to_bins",
  "resize_bilinear",
  "resize_nearest",
  "resize_to",
  "unpadded_labels",
  "upsample_fixed",
]
