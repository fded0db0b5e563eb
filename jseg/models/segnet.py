"""SegNet and SegNet-Basic (Badrinarayanan, Kendall & Cipolla 2017, arXiv:1511.00561).

As in the authors' model files (alexgkendall/SegNet-Tutorial). The decoder puts each value where the
encoder's pooling found its maximum; nothing else of the encoder is kept.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jseg.backbones import VGG16
from jseg.images import denormalize
from jseg.models.base import Network
from jseg.nn import (
  Conv,
  Norm,
  Staged,
  check_norm,
  local_response_norm,
  max_pool_with_indices,
  max_unpool,
)
from jseg.types import Arguments, Array, InputError, Outputs


class SegNet(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  26 convolutions of 3 x 3 with bias, all but the last normalized: VGG16's and their mirror image,
  with ReLU on both sides. Running statistics are poor in a network this deep; recompute them before
  evaluation, as section 4 does (`precise_bn_batches`).

  Attributes:
    num_classes: number of classes k, background included.
    widths: channels of the five blocks.
    norm: kind of normalization (`jseg.nn.Norm`).
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {"widths": (4, 4, 8, 8, 8)}

  widths: Sequence[int] = (64, 128, 256, 512, 512)
  norm: str = "batch"

  def __post_init__(self) -> None:
    if len(self.widths) != 5 or min(self.widths) < 1:
      raise InputError(f"widths: {self.widths} must be five positive channel counts")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images."""
    vgg = self.typed(VGG16)(
      self.widths, norm=self.norm, pool="indices", remat=self.remat, name="backbone"
    )
    features = vgg(image, train=train)
    x = features[32]
    for block in range(5, 0, -1):
      size = features[2 ** (block - 1)].shape[1:3]
      run = functools.partial(SegNet._decode, block=block, size=size, train=train)
      x = self.stage(run, x, features.named[f"indices{block}"])
    x = self.typed(Conv)(self.num_classes, (3, 3), name="conv1_1_d")(x)
    return Outputs(x.astype(jnp.float32))

  def _decode(
    self, x: Array, indices: Array, *, block: int, size: tuple[int, ...], train: bool
  ) -> Array:
    """A block of the decoder, all but the classifier of the last one."""
    x = max_unpool(x, indices, size)

    def convolve(net: SegNet, x: Array, layer: int) -> Array:
      width = net.widths[block - 1 if layer > 1 else block - 2]
      x = net.typed(Conv)(width, (3, 3), name=f"conv{block}_{layer}_d")(x)
      norm = net.typed(Norm)(net.norm, name=f"norm{block}_{layer}_d")
      return nn.relu(norm(x, train=train))

    for layer in range(3 if block > 2 else 2, 1 if block == 1 else 0, -1):
      x = self.unit(functools.partial(convolve, layer=layer), x)
    return x


class SegNetBasic(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w. The small SegNet.

  Four encoders and four decoders of one 7 x 7 convolution each, without biases; no ReLU in the
  decoder. The image's contrast is normalized first (section 3.1), in the units of the released
  network, 0..255.

  Attributes:
    num_classes: number of classes k, background included.
    width: channels of every convolution.
    norm: kind of normalization (`jseg.nn.Norm`).
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {"width": 8}
  colors_only: ClassVar[bool] = True

  width: int = 64
  norm: str = "batch"

  def __post_init__(self) -> None:
    if self.width < 1:
      raise InputError(f"width: {self.width} must be a positive channel count")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images."""

    def convolve(net: SegNetBasic, x: Array, name: str) -> Array:
      conv = net.typed(Conv)(net.width, (7, 7), use_bias=False, name=f"conv{name}")
      return net.typed(Norm)(net.norm, name=f"norm{name}")(conv(x), train=train)

    def encode(net: SegNetBasic, x: Array, block: int) -> tuple[Array, Array]:
      return max_pool_with_indices(nn.relu(convolve(net, x, f"{block}")), ceil=True)

    def decode(
      net: SegNetBasic, x: Array, index: Array, block: int, size: tuple[int, ...]
    ) -> Array:
      return convolve(net, max_unpool(x, index, size), f"{block}_d")

    sizes, indices = [], []
    x = local_response_norm(denormalize(image))
    for block in range(1, 5):
      sizes.append(x.shape[1:3])
      x, index = self.stage(functools.partial(encode, block=block), x)
      indices.append(index)
    for block in range(4, 0, -1):
      x = self.stage(functools.partial(decode, block=block, size=sizes.pop()), x, indices.pop())
    x = self.typed(Conv)(self.num_classes, (1, 1), name="classifier")(x)
    return Outputs(x.astype(jnp.float32))
