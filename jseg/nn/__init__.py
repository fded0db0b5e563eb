"""Blocks that networks are made of. Networks use these and never the framework's own."""

from jseg.nn.conv import Conv, conv, he_normal
from jseg.nn.norm import AXIS, Norm, check_norm
from jseg.nn.pool import max_pool
from jseg.nn.resize import resize_bilinear, resize_nearest, resize_to
from jseg.nn.upconv import UpConv

__all__ = [
  "AXIS",
  "Conv",
  "Norm",
  "UpConv",
  "check_norm",
  "conv",
  "he_normal",
  "max_pool",
  "resize_bilinear",
  "resize_nearest",
  "resize_to",
]
