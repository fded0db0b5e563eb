"""SegNet and SegNet-Basic (Badrinarayanan, Kendall & Cipolla 2017, arXiv:1511.00561).

As in the authors' model files (alexgkendall/SegNet-Tutorial). The decoder puts each value where the
encoder's pooling found its maximum; nothing else of the encoder is kept.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import VGG16
from jseg.data.normalize import denormalize
from jseg.nn import Conv, Norm, check_norm, local_response_norm, max_pool_with_indices, max_unpool
from jseg.types import Array, InputError, Outputs


class SegNet(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  26 convolutions of 3 x 3 with bias, all but the last normalised: VGG16's and their mirror image,
  with ReLU on both sides. Running statistics are poor in a network this deep; recompute them before
  evaluation, as section 4 does (`precise_bn_batches`).

  Attributes:
    num_classes: k.
    widths: channels of the five blocks.
    norm: kind of normalisation (`jseg.nn.Norm`).
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {"widths": (4, 4, 8, 8, 8)}

  num_classes: int
  widths: Sequence[int] = (64, 128, 256, 512, 512)
  norm: str = "batch"
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if len(self.widths) != 5 or min(self.widths) < 1:
      raise InputError(f"widths: {self.widths} must be five positive channel counts")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    vgg = VGG16(self.widths, self.norm, pool="indices", name="backbone", **types)
    features = vgg(image, train=train)
    x = features["pool5"]
    sizes = [image.shape[1:3]] + [features[f"pool{i}"].shape[1:3] for i in range(1, 5)]
    for block in range(5, 0, -1):
      x = max_unpool(x, features[f"indices{block}"], sizes[block - 1])
      layers = 3 if block > 2 else 2
      for layer in range(layers, 0, -1):
        if block == layer == 1:
          break
        width = self.widths[block - 1 if layer > 1 else block - 2]
        x = Conv(width, (3, 3), name=f"conv{block}_{layer}_d", **types)(x)
        norm = Norm(self.norm, name=f"norm{block}_{layer}_d", **types)
        x = nn.relu(norm(x, train=train))
    x = Conv(self.num_classes, (3, 3), name="conv1_1_d", **types)(x)
    return Outputs(x.astype(jnp.float32))


class SegNetBasic(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w. The small SegNet.

  Four encoders and four decoders of one 7 x 7 convolution each, without biases; no ReLU in the
  decoder. The image's contrast is normalised first (section 3.1), in the units of the released
  network, 0..255.

  Attributes:
    num_classes: k.
    width: channels of every convolution.
    norm: kind of normalisation (`jseg.nn.Norm`).
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {"width": 8}

  num_classes: int
  width: int = 64
  norm: str = "batch"
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if self.width < 1:
      raise InputError(f"width: {self.width} must be a positive channel count")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    sizes, indices = [], []
    x = local_response_norm(denormalize(image))
    for block in range(1, 5):
      x = Conv(self.width, (7, 7), use_bias=False, name=f"conv{block}", **types)(x)
      x = nn.relu(Norm(self.norm, name=f"norm{block}", **types)(x, train=train))
      sizes.append(x.shape[1:3])
      x, index = max_pool_with_indices(x, ceil=True)
      indices.append(index)
    for block in range(4, 0, -1):
      x = max_unpool(x, indices.pop(), sizes.pop())
      x = Conv(self.width, (7, 7), use_bias=False, name=f"conv{block}_d", **types)(x)
      x = Norm(self.norm, name=f"norm{block}_d", **types)(x, train=train)
    x = Conv(self.num_classes, (1, 1), name="classifier", **types)(x)
    return Outputs(x.astype(jnp.float32))
