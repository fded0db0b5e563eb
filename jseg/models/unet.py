"""U-Net (Ronneberger, Fischer & Brox 2015, arXiv:1505.04597, section 2 and figure 1).

`UNet(2, padding="VALID", norm="none", dropout=0.5)` is the published network. By default
convolutions are padded, so that the mask lies on the image pixel for pixel, and normalized.
`UNet(2, backbone="resnet34")` has a classifier as its contracting path, whose weights may be
pretrained; it equals `Unet("resnet34")` of qubvel-org/segmentation_models.pytorch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jseg import backbones
from jseg.models.base import Network
from jseg.nn import (
  Conv,
  Dropout,
  Norm,
  Staged,
  UpConv,
  center_crop,
  check_norm,
  check_padding,
  fit_unet,
  max_pool,
  resize_nearest,
  unpadded_labels,
)
from jseg.types import Arguments, Array, InputError, Outputs

# Strides to which the decoder behind a backbone doubles the resolution, one after the other.
_STRIDES = (16, 8, 4, 2, 1)


class UNet(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Unpadded, the network sees the mask of the middle of what it is fed: 572 pixels give 388. In
  training that is what comes out, so a crop must fit, and is compared with the labels of the
  middle. Otherwise the image is surrounded by its mirror image until the mask covers it, as the
  paper does at the border (section 2, figure 2).

  With a backbone the expanding path begins at stride 32: five times the map is doubled (nearest
  neighbor), put beside the backbone's map of that size and convolved twice.

  Attributes:
    num_classes: number of classes k, background included.
    widths: channels at each resolution, from the finest to the coarsest; without a backbone.
    padding: "SAME" or, as published, "VALID".
    norm: kind of normalization after each 3x3 convolution (`jseg.nn.Norm`); "none" as published.
    dropout: rate at the end of the contracting path, which is its two coarsest resolutions.
    backbone: a ResNet, VGG16 or GoogLeNet of `jseg.backbones`; "" for the paper's contracting path.
    decoder: channels of the expanding path behind a backbone, from the coarsest to the finest.
    width: factor of the backbone's channel counts, for small machines.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {"widths": (4, 8, 16)}

  widths: Sequence[int] = (64, 128, 256, 512, 1024)
  padding: str = "SAME"
  norm: str = "batch"
  dropout: float = 0.0
  backbone: str = ""
  decoder: Sequence[int] = (256, 128, 64, 32, 16)
  width: float = 1.0

  def __post_init__(self) -> None:
    check_padding(self.padding)
    if not self.widths or any(w < 1 for w in self.widths):
      raise InputError(f"widths: {self.widths} must be one or more positive channel counts")
    if not 0 <= self.dropout < 1:
      raise InputError(f"dropout: {self.dropout} must be at least 0 (off) and below 1")
    check_norm(self.norm)
    if self.backbone:
      self._check_backbone()
    super().__post_init__()

  def _check_backbone(self) -> None:
    if self.padding != "SAME":
      raise InputError(f"padding: {self.padding} is for U-Net without a backbone; set SAME")
    if len(self.decoder) != len(_STRIDES) or min(self.decoder) < 1:
      raise InputError(f"decoder: {self.decoder} must be five positive channel counts")
    backbones.check(self.backbone, strides=(2, 4, 8, 16, 32), width=self.width)

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; training needs the key "dropout"."""
    height, width = image.shape[1:3]
    drop = functools.partial(Dropout(self.dropout), train=train)
    if self.backbone:
      logits = self._behind_backbone(image, drop, train)
    else:
      logits = self._published(image, drop, train)
    if self.padding == "SAME" or not train:
      logits = logits[:, :height, :width]
    return Outputs(logits.astype(jnp.float32))

  def _published(self, image: Array, drop: Callable[[Array], Array], train: bool) -> Array:
    """The paper's figure 1."""
    depth = len(self.widths) - 1
    x = fit_unet(image, depth, self.padding, train=train)
    skips = []
    for level, features in enumerate(self.widths):
      contract = functools.partial(
        UNet._convolve_twice,
        prepare=UNet._shrink if level else UNet._unchanged,
        features=features,
        train=train,
      )
      x = self.stage(contract, x)
      skips.append(drop(x) if level >= depth - 1 else x)
      x = skips[-1]
    x = skips.pop()
    for features in reversed(self.widths[:-1]):
      expand = functools.partial(
        UNet._convolve_twice,
        prepare=functools.partial(UNet._join, features=features),
        features=features,
        train=train,
      )
      x = self.stage(expand, x, skips.pop())
    return self.typed(Conv)(self.num_classes, (1, 1))(x)

  def _unchanged(self, x: Array) -> Array:
    return x

  def _shrink(self, x: Array) -> Array:
    return max_pool(x)

  def _join(self, x: Array, skip: Array, *, features: int) -> Array:
    """The map from below at twice the resolution, beside the contracting path's."""
    x = self.typed(UpConv)(features)(x)
    return jnp.concatenate([center_crop(skip, x.shape[1:3]), x], axis=-1)

  def _convolve_twice(
    self,
    *arrays: Array | None,
    prepare: Callable[..., Array],
    features: int,
    train: bool,
    name: str = "",
  ) -> Array:
    """Two 3x3 convolutions, each with normalization and ReLU.

    Args:
      *arrays: what comes from other stages.
      prepare: makes the first convolution's input of it, as a method of this class. The two are one
        unit: that input, two maps side by side, is the largest of all and need not be kept.
      features: channels of both.
      train: whether norms take the batch's statistics.
      name: what parameters' names begin with; Flax's own names if empty.
    """

    def convolve(net: UNet, x: Array, i: int) -> Array:
      conv = net.typed(Conv)(
        features,
        (3, 3),
        padding=net.padding,
        use_bias=net.norm == "none",
        name=f"{name}_{i}" if name else None,
      )
      norm = net.typed(Norm)(net.norm, name=f"{name}_{i}_norm" if name else None)
      return nn.relu(norm(conv(x), train=train))

    x = self.unit(lambda net, *arrays: convolve(net, prepare(net, *arrays), 1), *arrays)
    return self.unit(functools.partial(convolve, i=2), x)

  def _behind_backbone(self, image: Array, drop: Callable[[Array], Array], train: bool) -> Array:
    backbone = self.typed(backbones.create)(
      self.backbone, norm=self.norm, width=self.width, remat=self.remat, name="backbone"
    )
    features = backbone(fit_unet(image, len(_STRIDES), "SAME", train=train), train=train)
    x = drop(features[32])
    for i, (channels, stride) in enumerate(zip(self.decoder, _STRIDES, strict=True), 1):
      skip = features[stride] if stride > 1 else None
      skip = drop(features[16]) if stride == 16 else skip
      expand = functools.partial(
        UNet._convolve_twice,
        prepare=UNet._double,
        features=channels,
        train=train,
        name=f"decoder{i}",
      )
      x = self.stage(expand, x, skip)
    return self.typed(Conv)(self.num_classes, (3, 3), name="classifier")(x)

  def _double(self, x: Array, skip: Array | None) -> Array:
    """As `_join`, behind a backbone."""
    x = resize_nearest(x, [2 * n for n in x.shape[1:3]])
    return x if skip is None else jnp.concatenate([x, skip], axis=-1)

  def training_labels(self, label: Array) -> Array:
    """Returns the part of [b h w] labels or weights that the training logits are compared with."""
    return label if self.padding == "SAME" else unpadded_labels(label, len(self.widths) - 1)
