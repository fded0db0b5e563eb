"""VGG16 (Simonyan & Zisserman 2015, arXiv:1409.1556, table 1, configuration D)."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from jseg.backbones.base import Backbone, Features
from jseg.nn import (
  Conv,
  Dropout,
  Norm,
  Staged,
  avg_pool,
  check_norm,
  max_pool,
  max_pool_with_indices,
)
from jseg.types import Array, InputError

LAYERS = (2, 2, 3, 3, 3)  # convolutions of each block
_POOLS = ("max2", "max3", "indices")
_OUTPUT_STRIDES = (8, 16, 32)


class VGG16(Backbone, Staged):
  """[b h w c] -> Features of strides 1 to 32, and by name "pool1" to "pool5" and "fc7".

  Stages are the last convolutions before each pooling, and pool5. The defaults are the published
  network up to its last pooling, with pooling as in Caffe: windows that hang over the edge count.
  Networks differ in the pools, the output stride and the form of the fully connected layers, which
  are convolutions here.

  Attributes:
    widths: channels of the five blocks.
    output_stride: stride of pool5: 32, 16 or 8. From it on, pools are 3 x 3 at stride 1 and the
      convolutions after them dilated, as in DeepLab (Chen et al. 2015, arXiv:1412.7062).
    norm: kind of normalization between convolution and ReLU (`jseg.nn.Norm`).
    first_padding: pixels around the image in the very first convolution.
    pool: "max2" (2 x 2), "max3" (3 x 3, padded by 1, as in DeepLab), or "indices" (2 x 2; the
      features then also hold "indices1" to "indices5", see `jseg.nn.max_pool_with_indices`).
    fc: channels of fc6 and fc7; none if empty.
    fc_kernel: edge of fc6's kernel. With 7 it holds the classifier's dense kernel, reshaped.
    fc_dilation: dilation of fc6.
    fc_padding: padding of fc6, "SAME" or pixels.
    fc_pool: whether a 3 x 3 average pool at stride 1 precedes fc6, as in DeepLab.
    dropout: rate after fc6 and fc7.
  """

  strides = (1, 2, 4, 8, 16, 32)

  widths: Sequence[int] = (64, 128, 256, 512, 512)
  output_stride: int = 32
  norm: str = "none"
  first_padding: int = 1
  pool: str = "max2"
  fc: Sequence[int] = ()
  fc_kernel: int = 7
  fc_dilation: int = 1
  fc_padding: str | int = "SAME"
  fc_pool: bool = False
  dropout: float = 0.5

  def __post_init__(self) -> None:
    if len(self.widths) != 5 or min(self.widths) < 1:
      raise InputError(f"widths: {self.widths} must be five positive channel counts")
    if self.output_stride not in _OUTPUT_STRIDES:
      raise InputError(f"output_stride: {self.output_stride} must be 8, 16 or 32")
    if self.pool not in _POOLS:
      raise InputError(f"pool: {self.pool!r} is unknown; choose from {', '.join(_POOLS)}")
    if self.pool == "indices" and self.output_stride < 32:
      raise InputError(
        f"output_stride: {self.output_stride} leaves no windows to unpool; use 32 with indices"
      )
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Features:
    """Computes the features of normalized images; training with `fc` needs the key "dropout"."""
    x, stride, rate = image, 1, 1
    stages: dict[int, Array] = {}
    named: dict[str, Array] = {}
    for block, layers in enumerate(LAYERS, 1):
      dense = stride == self.output_stride and self.pool != "indices"
      run = functools.partial(
        VGG16._block, block=block, layers=layers, rate=rate, dense=dense, train=train
      )
      stages[2 ** (block - 1)], x, indices = self.stage(run, x)
      if indices is not None:
        named[f"indices{block}"] = indices
      rate, stride = (rate * 2, stride) if dense else (rate, stride * 2)
      named[f"pool{block}"] = x
    stages[32] = x
    if self.fc:
      named["fc7"] = self.stage(lambda net, x: net._dense(x, train), x)
    return Features(stages, named)

  def _block(
    self, x: Array, *, block: int, layers: int, rate: int, dense: bool, train: bool
  ) -> tuple[Array, Array, Array | None]:
    """(last convolution, what its pooling gives, indices of that if asked for) of a block."""
    for layer in range(1, layers + 1):
      x = self.unit(lambda net, x, layer=layer: net._convolution(x, block, layer, rate, train), x)
    if self.pool == "indices":
      return x, *max_pool_with_indices(x, ceil=True)
    if dense:
      return x, max_pool(x, 3, 1, padding=1), None
    if self.pool == "max3":
      return x, max_pool(x, 3, 2, padding=1, ceil=True), None
    return x, max_pool(x, ceil=True), None

  def _convolution(self, x: Array, block: int, layer: int, rate: int, train: bool) -> Array:
    """A 3x3 convolution of a block, with normalization and ReLU."""
    convolution = self.typed(Conv)(
      self.scaled(self.widths[block - 1]),
      (3, 3),
      padding=self.first_padding if block == layer == 1 else "SAME",
      dilation=rate,
      name=f"conv{block}_{layer}",
    )
    norm = self.typed(Norm)(self.norm, name=f"norm{block}_{layer}")
    return nn.relu(norm(convolution(x), train=train))

  def _dense(self, x: Array, train: bool) -> Array:
    """The fully connected layers fc6 and fc7, as convolutions."""
    drop = functools.partial(Dropout(self.dropout), train=train)
    fc6 = self.typed(Conv)(
      self.fc[0],
      (self.fc_kernel, self.fc_kernel),
      padding=self.fc_padding,
      dilation=self.fc_dilation,
      name="fc6",
    )
    fc7 = self.typed(Conv)(self.fc[1], (1, 1), name="fc7")
    x = avg_pool(x, 3, padding=1) if self.fc_pool else x
    return drop(nn.relu(fc7(drop(nn.relu(fc6(x))))))
