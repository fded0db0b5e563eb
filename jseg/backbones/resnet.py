"""ResNet (He et al. 2016, arXiv:1512.03385), with any output stride by dilation."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn import Conv, Norm, check_norm, max_pool
from jseg.types import Array, InputError

LAYERS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}


def check_resnet(depth: int, width: float) -> None:
  """Raises InputError where `ResNet` has no such depth or width."""
  if depth not in LAYERS:
    raise InputError(f"depth: {depth!r} is unknown; choose from {', '.join(map(str, LAYERS))}")
  if width <= 0:
    raise InputError(f"width: {width} must be above 0")


class ResNet(nn.Module):
  """[b h w c] -> {"layer1", ..., "layer4"}, each [b h' w' c'], at strides 4, 8, 16, 32 at most.

  From `output_stride` on, strides become dilation: the same weights at a finer resolution. Copies
  of layer4 that follow it, "layer5" and so on, are all dilated.

  Attributes:
    depth: 18, 34 (two 3x3 a unit) or 50, 101, 152 (bottlenecks).
    output_stride: of layer4: 4, 8, 16 or 32.
    multi_grid: factors of the dilation of the units of layer4 and its copies (Chen et al. 2017,
      arXiv:1706.05587, section 3.2); units beyond its length repeat the last one.
    copies: of layer4 (the same paper, figure 3(b)), each at twice the dilation of the one before.
    lag: whether the first unit of a dilated layer keeps the dilation of the layer before, which is
      how torchvision's networks are trained.
    stem: "plain", one 7 x 7, or "deep", three 3 x 3 (Zhao et al. 2017, arXiv:1612.01105).
    stride_on: which convolution of a bottleneck has the stride, "3x3" (torchvision) or "1x1" (as
      published).
    ceil: whether the stem's pooling counts a window that hangs over the edge, as in Caffe.
    norm: kind of normalisation (`jseg.nn.Norm`).
    width: factor of the channel counts, for small machines.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  depth: int = 50
  output_stride: int = 32
  multi_grid: Sequence[int] = (1,)
  copies: int = 0
  lag: bool = False
  stem: str = "plain"
  stride_on: str = "3x3"
  ceil: bool = False
  norm: str = "batch"
  width: float = 1.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    choices: dict[str, Sequence[Any]] = {
      "output_stride": (4, 8, 16, 32),
      "stem": ("plain", "deep"),
      "stride_on": ("1x1", "3x3"),
    }
    for key, values in choices.items():
      if (value := getattr(self, key)) not in values:
        raise InputError(f"{key}: {value!r} is unknown; choose from {', '.join(map(str, values))}")
    if not self.multi_grid or min(self.multi_grid) < 1:
      raise InputError(f"multi_grid: {self.multi_grid} must be one or more factors of at least 1")
    if self.copies < 0:
      raise InputError(f"copies: {self.copies} must be at least 0")
    check_resnet(self.depth, self.width)
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """Computes the features of normalised images."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def width(channels: int) -> int:
      return max(1, round(channels * self.width))

    stem = [(64, 7, 2)] if self.stem == "plain" else [(64, 3, 2), (64, 3, 1), (128, 3, 1)]
    for i, (channels, kernel, stride) in enumerate(stem, 1):
      x = Conv(
        width(channels),
        (kernel, kernel),
        stride,
        padding=kernel // 2,
        use_bias=False,
        name=f"conv{i}",
        **types,
      )(x)
      x = nn.relu(Norm(self.norm, name=f"norm{i}", **types)(x, train=train))
    x = max_pool(x, 3, 2, padding=1, ceil=self.ceil)

    features, stride, rate = {}, 4, 1
    layers = LAYERS[self.depth]
    for layer, units in enumerate((*layers, *layers[-1:] * self.copies), 1):
      step, before = (1 if layer == 1 else 2), rate
      if stride * step > self.output_stride:
        step, rate = 1, rate * step
      stride *= step
      for unit in range(units):
        grid = self.multi_grid[min(unit, len(self.multi_grid) - 1)] if layer >= 4 else 1
        x = Residual(
          channels=width(64 * 2 ** (min(layer, 4) - 1)),
          bottleneck=self.depth >= 50,
          stride=step if unit == 0 else 1,
          rate=before if self.lag and unit == 0 else rate * grid,
          stride_on=self.stride_on,
          norm=self.norm,
          name=f"layer{layer}_{unit}",
          **types,
        )(x, train=train)
      features[f"layer{layer}"] = x
    return features


class Residual(nn.Module):
  """One unit: two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the channels.

  Attributes:
    channels: inside of it.
    bottleneck: which of both.
    stride: of the unit.
    rate: dilation of its 3x3 convolutions.
    stride_on: see `ResNet`.
    norm: kind of normalisation.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  channels: int
  bottleneck: bool = True
  stride: int = 1
  rate: int = 1
  stride_on: str = "3x3"
  norm: str = "batch"
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    """Adds the branch to the shortcut, which is a projection where the shape changes."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def conv(x: Array, channels: int, kernel: int, stride: int, name: str) -> Array:
      rate = self.rate if kernel == 3 else 1
      geometry: dict[str, Any] = {"padding": rate * (kernel // 2), "dilation": rate}
      size = (kernel, kernel)
      x = Conv(channels, size, stride, use_bias=False, name=f"conv{name}", **geometry, **types)(x)
      return Norm(self.norm, name=f"norm{name}", **types)(x, train=train)

    out = self.channels * (4 if self.bottleneck else 1)
    if self.bottleneck:
      first, second = (self.stride, 1) if self.stride_on == "1x1" else (1, self.stride)
      y = nn.relu(conv(x, self.channels, 1, first, "1"))
      y = nn.relu(conv(y, self.channels, 3, second, "2"))
      y = conv(y, out, 1, 1, "3")
    else:
      y = nn.relu(conv(x, self.channels, 3, self.stride, "1"))
      y = conv(y, out, 3, 1, "2")
    if x.shape[-1] != out or self.stride != 1:
      x = conv(x, out, 1, self.stride, "_shortcut")
    return nn.relu(x + y)
