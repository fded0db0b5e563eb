"""ResNet (He et al. 2016, arXiv:1512.03385), with any output stride by dilation."""

import functools
from collections.abc import Collection, Sequence

import flax.linen as nn

from jseg.backbones.base import Backbone, Features
from jseg.nn import Conv, Layer, Norm, Staged, add_relu, check_norm, max_pool
from jseg.types import Array, InputError

LAYERS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}
"""Number of residual units in each of the four stages, by depth."""


class ResNet(Backbone, Staged):
  """[b h w c] -> Features of strides 2 (the stem), 4, 8, 16 and 32 (layer1 to layer4).

  From `output_stride` on, strides become dilation: the same weights at a finer resolution. The
  maps of `cascade_blocks` have nominal strides 64, 128 and so on.

  Attributes:
    depth: 18 or 34 (two 3x3 per unit), 50, 101 or 152 (bottlenecks).
    output_stride: largest stride of a map: 4, 8, 16 or 32.
    multi_grid: factors of the dilation of the units of layer4 and its copies (Chen et al. 2017,
      arXiv:1706.05587, section 3.2); units beyond its length repeat the last one.
    cascade_blocks: number of copies of layer4 that follow it (the same paper, figure 3(b)), each at
      twice the dilation of the one before.
    keep_first_rate: whether the first unit of a dilated layer keeps the dilation of the layer
      before, which is how torchvision's networks are trained.
    stem: "plain", one 7 x 7, or "deep", three 3 x 3 (Zhao et al. 2017, arXiv:1612.01105).
    stride_on: convolution of a bottleneck that has the stride, "3x3" (torchvision) or "1x1" (as
      published).
    ceil: whether the stem's pooling counts a window that hangs over the edge, as in Caffe.
    norm: kind of normalization (`jseg.nn.Norm`).
  """

  depth: int = 50
  output_stride: int = 32
  multi_grid: Sequence[int] = (1,)
  cascade_blocks: int = 0
  keep_first_rate: bool = False
  stem: str = "plain"
  stride_on: str = "3x3"
  ceil: bool = False
  norm: str = "batch"

  def __post_init__(self) -> None:
    _check_choice("depth", self.depth, LAYERS)
    _check_choice("output_stride", self.output_stride, (4, 8, 16, 32))
    _check_choice("stem", self.stem, ("plain", "deep"))
    _check_choice("stride_on", self.stride_on, ("1x1", "3x3"))
    if not self.multi_grid or min(self.multi_grid) < 1:
      raise InputError(f"multi_grid: {self.multi_grid} must be one or more factors of at least 1")
    if self.cascade_blocks < 0:
      raise InputError(f"cascade_blocks: {self.cascade_blocks} must be at least 0")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Features:
    """Computes the features of normalized images."""
    x = self.stage(lambda net, x: net._stem(x, train), image)
    stages = {2: x}
    stride, rate = 4, 1
    units = LAYERS[self.depth] + LAYERS[self.depth][-1:] * self.cascade_blocks
    for layer, count in enumerate(units, 1):
      step, first_rate = (1 if layer == 1 else 2), rate
      if stride * step > self.output_stride:
        step, rate = 1, rate * step
      stride *= step
      rates = [rate * self._grid(layer, unit) for unit in range(count)]
      if self.keep_first_rate:
        rates[0] = first_rate
      run = functools.partial(ResNet._layer, layer=layer, stride=step, rates=rates, train=train)
      x = stages[2 ** (layer + 1)] = self.stage(run, x)
    return Features(stages)

  def _grid(self, layer: int, unit: int) -> int:
    """Factor of a unit's dilation."""
    return self.multi_grid[min(unit, len(self.multi_grid) - 1)] if layer >= 4 else 1

  def _layer(
    self, x: Array, *, layer: int, stride: int, rates: Sequence[int], train: bool
  ) -> Array:
    """The units of a layer, of which the first has its stride."""
    if layer == 1:
      x = max_pool(x, 3, 2, padding=1, ceil=self.ceil)
    for unit, rate in enumerate(rates):

      def residual(net: ResNet, x: Array, unit: int = unit, rate: int = rate) -> Array:
        return net.typed(Residual)(
          channels=net.scaled(64 * 2 ** (min(layer, 4) - 1)),
          bottleneck=net.depth >= 50,
          stride=stride if unit == 0 else 1,
          rate=rate,
          stride_on=net.stride_on,
          norm=net.norm,
          name=f"layer{layer}_{unit}",
        )(x, train=train)

      x = self.unit(residual, x)
    return x

  def _stem(self, x: Array, train: bool) -> Array:
    """The convolutions before the first pooling, to stride 2."""
    plain, deep = [(64, 7, 2)], [(64, 3, 2), (64, 3, 1), (128, 3, 1)]
    for i, (channels, kernel, stride) in enumerate(plain if self.stem == "plain" else deep, 1):
      conv = self.typed(Conv)(
        self.scaled(channels),
        (kernel, kernel),
        stride,
        padding=kernel // 2,
        use_bias=False,
        name=f"conv{i}",
      )
      norm = self.typed(Norm)(self.norm, name=f"norm{i}")
      x = nn.relu(norm(conv(x), train=train))
    return x


class Residual(Layer):
  """One unit: two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the channels.

  Attributes:
    channels: channels of all convolutions but a bottleneck's last.
    bottleneck: whether the unit is a bottleneck, with 1x1 convolutions around one of 3x3.
    stride: stride of the unit.
    rate: dilation of the 3x3 convolutions.
    stride_on: convolution of a bottleneck that has the stride, "3x3" or "1x1".
    norm: kind of normalization (`jseg.nn.Norm`).
  """

  channels: int
  bottleneck: bool = True
  stride: int = 1
  rate: int = 1
  stride_on: str = "3x3"
  norm: str = "batch"

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    """Adds the branch to the shortcut, which is a projection where the shape changes."""

    def conv(x: Array, channels: int, kernel: int, stride: int, name: str) -> Array:
      rate = self.rate if kernel == 3 else 1
      convolution = self.typed(Conv)(
        channels,
        (kernel, kernel),
        stride,
        padding=rate * (kernel // 2),
        dilation=rate,
        use_bias=False,
        name=f"conv{name}",
      )
      return self.typed(Norm)(self.norm, name=f"norm{name}")(convolution(x), train=train)

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
    return add_relu(x, y)


def _check_choice(name: str, value: object, choices: Collection[object]) -> None:
  if value not in choices:
    raise InputError(f"{name}: {value!r} is unknown; choose from {', '.join(map(str, choices))}")
