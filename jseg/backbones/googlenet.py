"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842, table 1)."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jseg.backbones.base import Backbone, Features
from jseg.nn import Conv, Norm, Staged, check_norm, local_response_norm, max_pool
from jseg.types import Array

# Channels of the four branches: 1x1; 1x1 then 3x3; 1x1 then 5x5; pool then 1x1.
_INCEPTIONS = {
  "3a": (64, 96, 128, 16, 32, 32),
  "3b": (128, 128, 192, 32, 96, 64),
  "4a": (192, 96, 208, 16, 48, 64),
  "4b": (160, 112, 224, 24, 64, 64),
  "4c": (128, 128, 256, 24, 64, 64),
  "4d": (112, 144, 288, 32, 64, 64),
  "4e": (256, 160, 320, 32, 128, 128),
  "5a": (256, 160, 320, 32, 128, 128),
  "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(Backbone, Staged):
  """[b h w c] -> Features of strides 2 to 32, and by name "pool1" to "pool4", each [b h' w' c'].

  torchvision's weights want `norm="batch", branch3_kernel=3, last_pool=2, lrn=False`: its network
  has batch norm, and 3x3 kernels where the paper has 5x5.

  Attributes:
    norm: kind of normalization between convolution and ReLU; with it convolutions have no bias.
    lrn: whether local response normalization surrounds the second convolution, as published.
    branch3_kernel: edge of the kernels of the third branch.
    last_pool: edge of the windows of pool4.
  """

  norm: str = "none"
  lrn: bool = True
  branch3_kernel: int = 5
  last_pool: int = 3

  def __post_init__(self) -> None:
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Features:
    """Computes the features of normalized images."""

    def convolution(
      net: GoogLeNet, x: Array, channels: int, kernel: int, name: str, **geometry: Any
    ) -> Array:
      make = net.typed(Conv)
      bias = net.norm == "none"
      size = (kernel, kernel)
      x = make(net.scaled(channels), size, use_bias=bias, name=name, **geometry)(x)
      norm = net.typed(Norm)(net.norm, epsilon=1e-3, name=f"{name}_norm")
      return nn.relu(norm(x, train=train))

    def stem(net: GoogLeNet, x: Array) -> Array:
      return convolution(net, x, 64, 7, "conv1", strides=2, padding=3)

    def second(net: GoogLeNet, x: Array) -> Array:
      x = local_response_norm(x) if net.lrn else x
      return convolution(net, convolution(net, x, 64, 1, "conv2_reduce"), 192, 3, "conv2")

    def branches(net: GoogLeNet, x: Array, block: str) -> Array:
      conv = functools.partial(convolution, net)
      one, reduce3, three, reduce5, five, pool = _INCEPTIONS[block]
      name = f"inception{block}"
      kernel = net.branch3_kernel
      return jnp.concatenate(
        [
          conv(x, one, 1, f"{name}_1x1"),
          conv(conv(x, reduce3, 1, f"{name}_3x3_reduce"), three, 3, f"{name}_3x3"),
          conv(conv(x, reduce5, 1, f"{name}_5x5_reduce"), five, kernel, f"{name}_5x5"),
          conv(max_pool(x, 3, 1, padding=1), pool, 1, f"{name}_pool"),
        ],
        axis=-1,
      )

    def inception(x: Array, block: str) -> Array:
      return self.stage(functools.partial(branches, block=block), x)

    stages, pools = {}, {}
    stages[2] = x = self.stage(stem, image)
    pools["pool1"] = x = max_pool(x, 3, 2, ceil=True)
    stages[4] = x = self.stage(second, x)
    x = local_response_norm(x) if self.lrn else x
    pools["pool2"] = x = max_pool(x, 3, 2, ceil=True)
    stages[8] = x = inception(inception(x, "3a"), "3b")
    pools["pool3"] = x = max_pool(x, 3, 2, ceil=True)
    for block in ("4a", "4b", "4c", "4d", "4e"):
      x = inception(x, block)
    stages[16] = x
    pools["pool4"] = x = max_pool(x, self.last_pool, 2, ceil=True)
    stages[32] = inception(inception(x, "5a"), "5b")
    return Features(stages, pools)
