"""Pooling to a fixed number of bins, and atrous spatial pyramids."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jseg.arithmetic import cdiv
from jseg.nn.conv import Conv, conv
from jseg.nn.dropout import Dropout
from jseg.nn.initializers import he_normal
from jseg.nn.layer import KernelLayer, Layer
from jseg.nn.norm import Norm
from jseg.nn.resize import apply_axis, linear_weights
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


class ConvBeside(KernelLayer):
  """Convolution of a map [b h w c] and of coarse maps beside it, -> [b h w features].

  Equal to interpolating each coarse map [b h' w' c'] to h x w, corners on corners, putting all side
  by side and convolving them with padding "SAME" and without bias. Interpolation and convolution
  are both linear, so coarse maps are multiplied by the kernel's taps where they are small, and the
  products are interpolated.

  Attributes:
    features: channels of the output.
    kernel_size: (kh, kw), both odd. The kernel [kh kw c features] has c the sum over all maps.
  """

  kernel_size: tuple[int, int]

  @nn.compact
  def __call__(self, x: Array, coarse: Sequence[Array] = ()) -> Array:
    """Convolves the maps."""
    channels = [y.shape[-1] for y in (x, *coarse)]

    def convolve(x: Array, kernel: Array) -> Array:
      first, *others = jnp.split(kernel, np.cumsum(channels)[:-1], axis=-2)
      y = conv(x, first)
      for low, part in zip(coarse, others, strict=True):
        y += _conv_interpolated(low.astype(x.dtype), part, x.shape[1:-1])
      return y

    shape = (*self.kernel_size, sum(channels), self.features)
    return self.apply_kernel(x, shape, convolve, init=he_normal, use_bias=False)


def _conv_interpolated(y: Array, kernel: Array, size: Sequence[int]) -> Array:
  """Convolution [b h w f] of y [b h' w' c'] interpolated to size, corners on corners."""
  kh, kw, c, f = kernel.shape
  b, height, width, _ = y.shape
  # [b h' w' kh kw f]: what each element gives to each tap.
  taps = jnp.dot(
    y.reshape(-1, c),
    kernel.transpose(2, 0, 1, 3).reshape(c, -1),
    preferred_element_type=jnp.float32,
  )
  z = taps.reshape(b, height, width, kh, kw, f).transpose(0, 1, 3, 2, 4, 5)
  z = z.reshape(b, height * kh, width * kw, f)
  for axis, (n, k, out) in enumerate(zip((height, width), (kh, kw), size, strict=True), 1):
    # Output i sees the interpolated map at i + tap - k // 2, where padding is zero.
    weights = np.pad(linear_weights(n, out, align_corners=True), ((k // 2, k // 2), (0, 0)))
    shifted = np.stack([weights[tap : tap + out] for tap in range(k)], -1)
    z = apply_axis(shifted.reshape(out, n * k), z, axis)
  return z.astype(y.dtype)


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
    project = self.typed(ConvBeside)(features=self.features, kernel_size=(1, 1), name="project")
    x = project(jnp.concatenate(branches, axis=-1), [image])
    x = nn.relu(self.typed(Norm)(self.norm, name="project_norm")(x, train=train))
    return Dropout(self.dropout)(x, train=train)


class PyramidPooling(Layer):
  """The pyramid pooling module of PSPNet (Zhao et al. 2017, arXiv:1612.01105, section 3.2).

  [b h w c] -> a list of [b n n c / levels]: the map's averages over n x n bins, each reduced by a
  1x1 convolution with norm and ReLU. What convolves them beside the map interpolates them, corners
  on corners (`ConvBeside`).

  Attributes:
    bins: number of bins along either axis, of each level.
    norm: kind of normalization.
  """

  bins: Sequence[int] = (1, 2, 3, 6)
  norm: str = "batch"

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> list[Array]:
    """Computes the levels."""
    levels = []
    for bins in self.bins:
      name = f"level{bins}"
      features = x.shape[-1] // len(self.bins)
      reduce = self.typed(Conv)(features, (1, 1), use_bias=False, name=name)
      y = reduce(pool_to_bins(x, bins))
      levels.append(nn.relu(self.typed(Norm)(self.norm, name=f"{name}_norm")(y, train=train)))
    return levels


class FCNHead(Layer):
  """[b h w c] -> logits [b h w k]: 3x3 to fewer channels, norm, ReLU, dropout, 1x1.

  The 3x3 convolution may also see coarse maps, as in `ConvBeside`.

  Attributes:
    num_classes: number of classes k.
    dropout: dropout rate before the classifier.
    norm: kind of normalization.
    reduction: factor by which the 3x3 convolution reduces the channels of all its maps.
  """

  num_classes: int
  dropout: float = 0.1
  norm: str = "batch"
  reduction: int = 4

  @nn.compact
  def __call__(self, x: Array, coarse: Sequence[Array] = (), *, train: bool = False) -> Array:
    """Computes the logits; training needs the key "dropout"."""
    features = sum(y.shape[-1] for y in (x, *coarse)) // self.reduction
    convolve = self.typed(ConvBeside)(features=features, kernel_size=(3, 3), name="conv")
    x = convolve(x, coarse)
    x = nn.relu(self.typed(Norm)(self.norm, name="norm")(x, train=train))
    x = Dropout(self.dropout)(x, train=train)
    return self.typed(Conv)(self.num_classes, (1, 1), name="classifier")(x)
