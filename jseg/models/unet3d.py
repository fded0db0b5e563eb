"""3D U-Net (Cicek et al. 2016, arXiv:1606.06650, section 2 and figure 2)."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jseg.models.base import Network
from jseg.nn import (
  Conv,
  Norm,
  Staged,
  UpConv,
  center_crop,
  check_norm,
  check_padding,
  fit_unet,
  max_pool,
  unpadded_labels,
)
from jseg.types import Arguments, Array, InputError, Outputs


class UNet3D(Network, Staged):
  """[b d h w c] -> Outputs with logits [b d h w k], for volumes of any size.

  Channels double before each pooling, against bottlenecks; every convolution is normalized before
  its ReLU. Voxels that nobody has annotated are IGNORE: they carry no weight (section 2.2). With
  padding "VALID" as in `jseg.models.unet`: 132 x 132 x 116 voxels give 44 x 44 x 28.

  Attributes:
    num_classes: number of classes k, background included.
    widths: channels before each pooling, from the finest level to the coarsest.
    padding: "SAME" or, as published, "VALID".
    norm: kind of normalization (`jseg.nn.Norm`).
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  ndim: ClassVar[int] = 3
  TINY: ClassVar[Arguments] = {"widths": (4, 8, 8)}

  widths: Sequence[int] = (64, 128, 256, 512)
  padding: str = "SAME"
  norm: str = "batch"

  def __post_init__(self) -> None:
    check_padding(self.padding)
    if not self.widths or any(w < 2 for w in self.widths):
      raise InputError(f"widths: {self.widths} must be one or more channel counts of 2 and more")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized volumes."""
    size = image.shape[1:-1]
    depth = len(self.widths) - 1
    x = fit_unet(image, depth, self.padding, train=train)

    def conv(net: UNet3D, x: Array, features: int) -> Array:
      x = net.typed(Conv)(features, (3, 3, 3), padding=net.padding)(x)
      return nn.relu(net.typed(Norm)(net.norm)(x, train=train))

    # With the first convolution goes what makes its input, so that this need not be kept.
    def contract(net: UNet3D, x: Array, level: int) -> Array:
      def first(net: UNet3D, x: Array) -> Array:
        return conv(net, x if level == 0 else max_pool(x), features // 2)

      features = net.widths[level]
      return net.unit(functools.partial(conv, features=features), net.unit(first, x))

    def expand(net: UNet3D, x: Array, skip: Array, features: int) -> Array:
      def first(net: UNet3D, x: Array, skip: Array) -> Array:
        x = net.typed(UpConv)(x.shape[-1], use_bias=False)(x)
        return conv(net, jnp.concatenate([center_crop(skip, x.shape[1:-1]), x], axis=-1), features)

      return net.unit(functools.partial(conv, features=features), net.unit(first, x, skip))

    skips = []
    for level in range(depth + 1):
      x = self.stage(functools.partial(contract, level=level), x)
      skips.append(x)
    x = skips.pop()
    for features in reversed(self.widths[:-1]):
      x = self.stage(functools.partial(expand, features=features), x, skips.pop())
    logits = self.typed(Conv)(self.num_classes, (1, 1, 1))(x)
    if self.padding == "SAME" or not train:
      logits = logits[:, : size[0], : size[1], : size[2]]
    return Outputs(logits.astype(jnp.float32))

  def training_labels(self, label: Array) -> Array:
    """Returns the part of [b d h w] labels that the training logits are compared with."""
    return label if self.padding == "SAME" else unpadded_labels(label, len(self.widths) - 1)
