"""Pooling to a fixed number of bins, and atrous spatial pyramids."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jseg.arithmetic import cdiv
from jseg.nn.conv import Conv
from jseg.nn.dropout import Dropout
from jseg.nn.layer import Layer
from jseg.nn.norm import Norm
from jseg.nn.resize import apply_axis, resize_bilinear
from jseg.types import Array


def pool_to_bins(x: Array, bins: int) -> Array:
  """Average pooling to bins x bins, of a map of any size: PyTorch's AdaptiveAvgPool2d.

  Bin i covers the pixels from floor(i n / bins) to ceil((i + 1) n / bins). Sizes are static, so
  this is a product with a constant matrix along each axis, which any backend can export.

  Args:
    x: [b h w c].
    bins: number of bins along either axis.

  Returns:
    [b bins bins c] of x's dtype; computed in float32.
  """
  y = x.astype(jnp.float32)
  for axis, n in enumerate(x.shape[1:-1], 1):
    weights = np.zeros((bins, n), np.float32)
    for i in range(bins):
      first, end = i * n // bins, cdiv((i + 1) * n, bins)
      weights[i, first:end] = 1 / (end - first)
    y = apply_axis(weights, y, axis)
  return y.astype(x.dtype)


class ASPP(Layer):
  """Atrous spatial pyramid pooling (Chen et al. 2017, arXiv:1706.05587, section 3.3).

  [b h w c] -> [b h w features]: a 1x1 convolution, a 3x3 one for each rate and the image's mean,
  each with norm and ReLU, side by side, then 1x1 with norm and ReLU.

  Attributes:
    rates: dilation of each 3x3 convolution.
    features: channels of every branch and of the output.
    norm: kind of normalization.
    dropout: dropout rate after the last ReLU.
  """

  rates: Sequence[int]
  features: int = 256
  norm: str = "batch"
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    """Computes the pyramid."""

    def conv(x: Array, kernel: int, rate: int, name: str) -> Array:
      x = self.typed(Conv)(
        self.features,
        (kernel, kernel),
        dilation=rate,
        use_bias=False,
        name=name,
      )(x)
      return nn.relu(self.typed(Norm)(self.norm, name=f"{name}_norm")(x, train=train))

    branches = [conv(x, 1, 1, "conv0")]
    branches += [conv(x, 3, rate, f"conv{i}") for i, rate in enumerate(self.rates, 1)]
    image = conv(x.mean((1, 2), keepdims=True), 1, 1, "image")
    branches.append(jnp.broadcast_to(image, branches[0].shape))
    x = conv(jnp.concatenate(branches, axis=-1), 1, 1, "project")
    return Dropout(self.dropout)(x, train=train)


class PyramidPooling(Layer):
  """The pyramid pooling module of PSPNet (Zhao et al. 2017, arXiv:1612.01105, section 3.2).

  [b h w c] -> [b h w 2c]: the map, and beside it its averages over coarse bins, each reduced by a
  1x1 convolution with norm and ReLU to c / bins channels and interpolated, corners on corners.

  Attributes:
    bins: number of bins along either axis, of each level.
    norm: kind of normalization.
  """

  bins: Sequence[int] = (1, 2, 3, 6)
  norm: str = "batch"

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    """Computes the pyramid."""
    levels = [x]
    for bins in self.bins:
      name = f"level{bins}"
      features = x.shape[-1] // len(self.bins)
      reduce = self.typed(Conv)(features, (1, 1), use_bias=False, name=name)
      y = reduce(pool_to_bins(x, bins))
      y = nn.relu(self.typed(Norm)(self.norm, name=f"{name}_norm")(y, train=train))
      levels.append(resize_bilinear(y, x.shape[1:3], align_corners=True))
    return jnp.concatenate(levels, axis=-1)


class FCNHead(Layer):
  """[b h w c] -> logits [b h w k]: 3x3 to fewer channels, norm, ReLU, dropout, 1x1.

  Attributes:
    num_classes: number of classes k.
    dropout: dropout rate before the classifier.
    norm: kind of normalization.
    reduction: factor by which the 3x3 convolution reduces the channels, to c / reduction.
  """

  num_classes: int
  dropout: float = 0.1
  norm: str = "batch"
  reduction: int = 4

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    """Computes the logits; training needs the key "dropout"."""
    features = x.shape[-1] // self.reduction
    x = self.typed(Conv)(features, (3, 3), use_bias=False, name="conv")(x)
    x = nn.relu(self.typed(Norm)(self.norm, name="norm")(x, train=train))
    x = Dropout(self.dropout)(x, train=train)
    return self.typed(Conv)(self.num_classes, (1, 1), name="classifier")(x)
