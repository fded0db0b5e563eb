"""DeepLab V2 (Chen et al. 2017, arXiv:1606.00915). Its CRF is another module."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import VGG16, ResNet
from jseg.nn import Conv, check_norm, resize_bilinear
from jseg.types import Array, InputError, Outputs

BACKBONES = ("resnet101", "resnet50", "resnet18", "vgg16")
_GAUSS = nn.initializers.normal(0.01)


class DeepLabV2(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Scores at stride 8 are sums of classifiers of several rates (section 3.2): on ResNet each is one
  3x3 convolution, on VGG16 an fc6 of that rate with its own fc7 and fc8. The image is also seen at
  smaller scales; the logits are the largest of all scales (section 4.1.2), and in training each
  scale has a loss of its own, named "scale1", "scale0_75", ...

  Attributes:
    num_classes: k.
    backbone: "resnet101", the smaller ones, or "vgg16".
    rates: of the classifiers: ASPP-L; (2, 4, 8, 12) is ASPP-S, (12,) LargeFOV.
    scales: of the image.
    fc: channels of fc6 and fc7, on VGG16.
    dropout: rate after fc6 and fc7.
    norm: kind of normalisation of the ResNet; the paper fine-tunes with frozen statistics.
    stride_on: of the ResNet: the published one strides in its 1x1 convolutions, torchvision's in
      the "3x3" (see `ResNet`).
    width: factor of the backbone's channel counts, for small machines.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {
    "backbone": "resnet18",
    "width": 0.125,
    "norm": "batch",
    "scales": (1.0, 0.5),
  }
  AUX_WEIGHTS: ClassVar[dict[str, float]] = {"scale1": 1.0, "scale0_75": 1.0, "scale0_5": 1.0}

  num_classes: int
  backbone: str = "resnet101"
  rates: Sequence[int] = (6, 12, 18, 24)
  scales: Sequence[float] = (1.0, 0.75, 0.5)
  fc: int = 1024
  dropout: float = 0.5
  norm: str = "frozen_batch"
  stride_on: str = "1x1"
  width: float = 1.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if self.backbone not in BACKBONES:
      raise InputError(
        f"backbone: {self.backbone!r} is unknown; choose from {', '.join(BACKBONES)}"
      )
    if not self.scales or not all(0 < s <= 1 for s in self.scales):
      raise InputError(f"scales: {self.scales} must be one or more factors above 0, at most 1")
    if not self.rates or min(self.rates) < 1:
      raise InputError(f"rates: {self.rates} must be one or more numbers of at least 1")
    if self.width <= 0:
      raise InputError(f"width: {self.width} must be above 0")
    check_norm(self.norm)
    super().__post_init__()

  def setup(self) -> None:
    """Makes the layers that all scales share."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    if self.backbone == "vgg16":
      widths = [max(1, round(w * self.width)) for w in (64, 128, 256, 512, 512)]
      self.trunk: nn.Module = VGG16(
        widths,
        pool="max3",
        pool_strides=(2, 2, 2, 1, 1),
        dilation5=2,
        name="backbone",
        **types,
      )
      self.fc6 = [
        Conv(self.fc, (3, 3), dilation=rate, name=f"fc6_{i}", **types)
        for i, rate in enumerate(self.rates, 1)
      ]
      self.fc7 = [
        Conv(self.fc, (1, 1), name=f"fc7_{i}", **types) for i in range(1, len(self.rates) + 1)
      ]
      self.drop = nn.Dropout(self.dropout)
      kernel, rates = (1, 1), [1] * len(self.rates)
    else:
      depth = int(self.backbone.removeprefix("resnet"))
      self.trunk = ResNet(
        depth,
        8,
        stride_on=self.stride_on,
        ceil=True,
        norm=self.norm,
        width=self.width,
        name="backbone",
        **types,
      )
      kernel, rates = (3, 3), list(self.rates)
    self.scores = [
      Conv(self.num_classes, kernel, dilation=rate, kernel_init=_GAUSS, name=f"fc8_{i}", **types)
      for i, rate in enumerate(rates, 1)
    ]

  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; VGG16's training needs the key "dropout"."""
    size = image.shape[1:3]
    shapes = [[max(1, int(n * scale)) for n in size] for scale in self.scales]
    scores = [self._scores(resize_bilinear(image, shape), train) for shape in shapes]
    # Scales meet at the resolution of the first one's scores.
    fused = jnp.stack([resize_bilinear(x, scores[0].shape[1:3]) for x in scores]).max(0)
    every = {
      _loss_name(scale): resize_bilinear(x, size)
      for scale, x in zip(self.scales, scores, strict=True)
    }
    return Outputs(resize_bilinear(fused, size), every if len(self.scales) > 1 and train else {})

  def _scores(self, image: Array, train: bool) -> Array:
    """Scores float32 at stride 8."""
    features = cast(Any, self.trunk)(image, train=train)
    if self.backbone == "vgg16":
      x = features["pool5"]
      maps = [self._branch(x, *layers, train) for layers in zip(self.fc6, self.fc7, strict=True)]
    else:
      maps = [features["layer4"]] * len(self.scores)
    scores = [score(x) for score, x in zip(self.scores, maps, strict=True)]
    return jnp.stack(scores).astype(jnp.float32).sum(0)

  def _branch(self, x: Array, fc6: nn.Module, fc7: nn.Module, train: bool) -> Array:
    for layer in (fc6, fc7):
      x = self.drop(nn.relu(cast(Any, layer)(x)), deterministic=not train)
    return x


def _loss_name(scale: float) -> str:
  return f"scale{scale:g}".replace(".", "_")  # a key of the configuration: no dots
