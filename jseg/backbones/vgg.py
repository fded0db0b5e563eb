"""VGG16 (Simonyan & Zisserman 2015, arXiv:1409.1556, table 1, configuration D)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn import Conv, Norm, avg_pool, max_pool, max_pool_with_indices
from jseg.types import Array

LAYERS = (2, 2, 3, 3, 3)  # convolutions of each block


class VGG16(nn.Module):
  """[b h w c] -> {"pool1": ..., "pool5": ..., "fc7": ...}, each [b h' w' c'].

  The defaults are the published network up to its last pooling, with pooling as in Caffe: windows
  that hang over the edge count. Networks differ in the pools, the last block's dilation and the
  form of the fully connected layers, which are convolutions here.

  Attributes:
    widths: channels of the five blocks.
    norm: kind of normalisation between convolution and ReLU (`jseg.nn.Norm`).
    first_padding: pixels around the image in the very first convolution.
    pool: "max2" (2 x 2), "max3" (3 x 3, padded by 1, as in DeepLab), or "indices" (2 x 2; the
      result then also holds "indices1" ... "indices5", see `max_pool_with_indices`).
    pool_strides: of the five pools; 1 keeps the resolution.
    dilation5: of block 5.
    fc: channels of fc6 and fc7; none if empty.
    fc_kernel: edge of fc6's kernel. With 7 it holds the classifier's dense kernel, reshaped.
    fc_dilation: of fc6.
    fc_padding: of fc6, "SAME" or pixels.
    fc_pool: whether a 3 x 3 average pool at stride 1 precedes fc6, as in DeepLab.
    dropout: rate after fc6 and fc7.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  widths: Sequence[int] = (64, 128, 256, 512, 512)
  norm: str = "none"
  first_padding: int = 1
  pool: str = "max2"
  pool_strides: Sequence[int] = (2, 2, 2, 2, 2)
  dilation5: int = 1
  fc: Sequence[int] = ()
  fc_kernel: int = 7
  fc_dilation: int = 1
  fc_padding: str | int = "SAME"
  fc_pool: bool = False
  dropout: float = 0.5
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """Computes the features of normalised images."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    features = {}
    for block, (layers, width) in enumerate(zip(LAYERS, self.widths, strict=True), 1):
      for layer in range(1, layers + 1):
        x = Conv(
          width,
          (3, 3),
          padding=self.first_padding if block == layer == 1 else "SAME",
          dilation=self.dilation5 if block == 5 else 1,
          name=f"conv{block}_{layer}",
          **types,
        )(x)
        x = nn.relu(Norm(self.norm, name=f"norm{block}_{layer}", **types)(x, train=train))
      if self.pool == "indices":
        x, features[f"indices{block}"] = max_pool_with_indices(x, ceil=True)
      elif self.pool == "max3":
        x = max_pool(x, 3, self.pool_strides[block - 1], padding=1, ceil=True)
      else:
        x = max_pool(x, 2, self.pool_strides[block - 1], ceil=True)
      features[f"pool{block}"] = x
    if self.fc:
      if self.fc_pool:
        x = avg_pool(x, 3, padding=1)
      drop = nn.Dropout(self.dropout, deterministic=not train)
      kernel = (self.fc_kernel, self.fc_kernel)
      geometry: dict[str, Any] = {"padding": self.fc_padding, "dilation": self.fc_dilation}
      x = drop(nn.relu(Conv(self.fc[0], kernel, name="fc6", **geometry, **types)(x)))
      features["fc7"] = drop(nn.relu(Conv(self.fc[1], (1, 1), name="fc7", **types)(x)))
    return features
