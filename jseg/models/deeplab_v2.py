"""DeepLab V2 (Chen et al. 2017, arXiv:1606.00915). Its CRF is another module."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jseg import backbones
from jseg.models.base import Network, cover_image
from jseg.nn import Conv, Dropout, Staged, check_norm, larger, normal, resize_bilinear
from jseg.types import Arguments, Array, InputError, Outputs

_GAUSS = normal(0.01)
_VGG = ("vgg16", "vgg16_bn")


class DeepLabV2(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Scores at stride 8 are sums of classifiers of several rates (section 3.2): each is one 3x3
  convolution, but on VGG16 an fc6 of that rate with its own fc7 and fc8. The image is also seen at
  smaller scales; the logits are the largest of all scales (section 4.1.2), and in training each
  scale has a loss of its own, named "scale1", "scale0_75", ...

  Attributes:
    num_classes: number of classes k, background included.
    backbone: a ResNet or VGG16 of `jseg.backbones`.
    rates: rates of the classifiers: ASPP-L; (2, 4, 8, 12) is ASPP-S, (12,) LargeFOV.
    scales: factors by which the image is resized.
    fc: channels of fc6 and fc7, on VGG16.
    dropout: rate after fc6 and fc7.
    norm: kind of normalization of the backbone; the paper fine-tunes with frozen statistics.
    stride_on: convolution of a bottleneck that has the stride: the published ResNet has it in the
      "1x1", torchvision's in the "3x3".
    width: factor of the backbone's channel counts, for small machines.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {
    "backbone": "resnet18",
    "width": 0.125,
    "norm": "batch",
    "scales": (1.0, 0.5),
  }
  AUX_WEIGHTS: ClassVar[Mapping[str, float]] = {
    "scale1": 1.0,
    "scale0_75": 1.0,
    "scale0_5": 1.0,
  }

  backbone: str = "resnet101"
  rates: Sequence[int] = (6, 12, 18, 24)
  scales: Sequence[float] = (1.0, 0.75, 0.5)
  fc: int = 1024
  dropout: float = 0.5
  norm: str = "frozen_batch"
  stride_on: str = "1x1"
  width: float = 1.0

  def __post_init__(self) -> None:
    if not self.scales or not all(0 < s <= 1 for s in self.scales):
      raise InputError(f"scales: {self.scales} must be one or more factors above 0, at most 1")
    if not self.rates or min(self.rates) < 1:
      raise InputError(f"rates: {self.rates} must be one or more numbers of at least 1")
    check_norm(self.norm)
    backbones.check(
      self.backbone,
      output_stride=8,
      width=self.width,
      optional={"stride_on": self.stride_on},
    )
    super().__post_init__()

  def setup(self) -> None:
    """Makes the layers that all scales share."""
    self.features = self.typed(backbones.create)(
      self.backbone,
      output_stride=8,
      norm=self.norm,
      width=self.width,
      remat=self.remat,
      optional={"stride_on": self.stride_on, "ceil": True, "pool": "max3"},
      name="backbone",
    )
    conv = self.typed(Conv)
    kernel, rates = (3, 3), self.rates
    if self.backbone in _VGG:
      self.fc6 = [
        conv(self.fc, (3, 3), dilation=rate, name=f"fc6_{i}") for i, rate in enumerate(rates, 1)
      ]
      self.fc7 = [conv(self.fc, (1, 1), name=f"fc7_{i}") for i, _ in enumerate(rates, 1)]
      self.drop = Dropout(self.dropout)
      kernel, rates = (1, 1), [1] * len(rates)
    self.fc8 = [
      conv(self.num_classes, kernel, dilation=rate, kernel_init=_GAUSS, name=f"fc8_{i}")
      for i, rate in enumerate(rates, 1)
    ]

  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; VGG16's training needs the key "dropout"."""
    size = image.shape[1:3]
    shapes = [[max(1, int(n * scale)) for n in size] for scale in self.scales]
    scores = [self._scores(resize_bilinear(image, shape), train) for shape in shapes]
    # Scales meet at the resolution of the first one's scores.
    fused = functools.reduce(larger, [resize_bilinear(x, scores[0].shape[1:3]) for x in scores])
    every = {
      _loss_name(scale): cover_image(x, size) for scale, x in zip(self.scales, scores, strict=True)
    }
    return Outputs(cover_image(fused, size), every if len(self.scales) > 1 and train else {})

  def _scores(self, image: Array, train: bool) -> Array:
    """Scores float32 [b h' w' k] at stride 8."""
    x = self.features(image, train=train)[32]
    if self.backbone in _VGG:
      branches = zip(self.fc6, self.fc7, self.fc8, strict=True)
      scores = [fc8(self._dense(x, fc6, fc7, train)) for fc6, fc7, fc8 in branches]
    else:
      scores = [fc8(x) for fc8 in self.fc8]
    return jnp.stack(scores).astype(jnp.float32).sum(0)

  def _dense(
    self,
    x: Array,
    fc6: Callable[[Array], Array],
    fc7: Callable[[Array], Array],
    train: bool,
  ) -> Array:
    for layer in (fc6, fc7):
      x = self.drop(nn.relu(layer(x)), train=train)
    return x


def _loss_name(scale: float) -> str:
  return f"scale{scale:g}".replace(".", "_")  # a key of the configuration: no dots
