"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842, table 1)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn import Conv, Norm, local_response_norm, max_pool
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


class GoogLeNet(nn.Module):
  """[b h w c] -> {"pool1", "pool2", "pool3", "pool4", "inception5b"}, each [b h' w' c'].

  The coarsest features have stride 32. torchvision's weights want `norm="batch", five=3,
  last_pool=2, lrn=False`: it has batch norm, and 3x3 kernels where the paper has 5x5.

  Attributes:
    norm: kind of normalisation between convolution and ReLU; with it convolutions have no bias.
    lrn: whether local response normalisation surrounds the second convolution, as published.
    five: edge of the kernels of the third branch.
    last_pool: edge of the windows of pool4.
    width: factor of all channel counts, for small machines.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  norm: str = "none"
  lrn: bool = True
  five: int = 5
  last_pool: int = 3
  width: float = 1.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """Computes the features of normalised images."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def conv(x: Array, channels: int, kernel: int, name: str, **geometry: Any) -> Array:
      channels = max(1, round(channels * self.width))
      bias = self.norm == "none"
      x = Conv(channels, (kernel, kernel), use_bias=bias, name=name, **geometry, **types)(x)
      norm = Norm(self.norm, epsilon=1e-3, name=f"{name}_norm", **types)
      return nn.relu(norm(x, train=train))

    def inception(x: Array, block: str) -> Array:
      one, reduce3, three, reduce5, five, pool = _INCEPTIONS[block]
      name = f"inception{block}"
      return jnp.concatenate(
        [
          conv(x, one, 1, f"{name}_1x1"),
          conv(conv(x, reduce3, 1, f"{name}_3x3_reduce"), three, 3, f"{name}_3x3"),
          conv(conv(x, reduce5, 1, f"{name}_5x5_reduce"), five, self.five, f"{name}_5x5"),
          conv(max_pool(x, 3, 1, padding=1), pool, 1, f"{name}_pool"),
        ],
        axis=-1,
      )

    features = {}
    x = conv(x, 64, 7, "conv1", strides=2, padding=3)
    features["pool1"] = x = max_pool(x, 3, 2, ceil=True)
    x = local_response_norm(x) if self.lrn else x
    x = conv(conv(x, 64, 1, "conv2_reduce"), 192, 3, "conv2")
    x = local_response_norm(x) if self.lrn else x
    features["pool2"] = x = max_pool(x, 3, 2, ceil=True)
    x = inception(inception(x, "3a"), "3b")
    features["pool3"] = x = max_pool(x, 3, 2, ceil=True)
    for block in ("4a", "4b", "4c", "4d", "4e"):
      x = inception(x, block)
    features["pool4"] = x = max_pool(x, self.last_pool, 2, ceil=True)
    features["inception5b"] = inception(inception(x, "5a"), "5b")
    return features
