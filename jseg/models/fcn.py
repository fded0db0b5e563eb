"""FCN (Long, Shelhamer & Darrell 2015, arXiv:1411.4038; Shelhamer et al. 2017, arXiv:1605.06211).

As released by the authors (shelhamer/fcn.berkeleyvision.org): a classifier made convolutional, with
scores from its last layer and from earlier pools, summed on the way up. Where every map lies on the
image is kept as arithmetic, from which the published crop offsets follow.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jseg import backbones
from jseg.backbones import Features
from jseg.models.base import Network
from jseg.nn import (
  Conv,
  ConvTranspose,
  Dropout,
  Staged,
  bilinear_kernel,
  check_norm,
  upsample_fixed,
)
from jseg.types import Arguments, Array, InputError, Outputs

_KINDS = ("vgg16", "resnet", "alexnet", "googlenet")  # whose maps' places on the image are known
BACKBONES = tuple(name for name in backbones.names() if name.startswith(_KINDS))
_PUBLISHED_PADDING = 100


class Map(NamedTuple):
  """A feature map and where it lies: element (i, j) is centered at origin + stride (i, j)."""

  x: Array
  stride: int
  origin: float  # in pixels of the image, along either axis

  def upsampled(self, x: Array, kernel: int, factor: int) -> "Map":
    """Returns the map `x` that a transposed convolution of this kernel and stride made of this."""
    stride = self.stride // factor
    return Map(x, stride, self.origin - stride * (kernel - 1) / 2)

  def cropped(self, start: float, size: Sequence[int]) -> Array:
    """Returns the part of `size` elements whose first is centered at `start` in the image."""
    first = (start - self.origin) / self.stride
    assert first == int(first) >= 0, "the maps must fall on one grid"
    i = int(first)
    return self.x[:, i : i + size[0], i : i + size[1]]


class _FCN(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Attributes:
    num_classes: number of classes k, background included.
    backbone: "vgg16" as published, "vgg16_bn" or a ResNet; for stride 32 also "alexnet" or
      "googlenet", or both in the form that torchvision has weights of: one column without LRN, and
      batch norm with 3x3 kernels for 5x5.
    padding: "published": 100 pixels around the image and an unpadded fc6. "same": only what
      keeps every convolution's size, which is much less work on small images and the same
      network inside large ones. GoogLeNet and ResNet have no fc6, and are padded as the classifier
      either way.
    at_once: whether all scores are trained together from the start: the maps of stride 16 and 8 are
      scaled by .01 and .0001, as released. Otherwise each stage starts from the one before
      (`init_from`).
    learn_upsampling: whether the transposed convolutions are trained, as in the paper, or stay
      bilinear, as in the released networks. Fixed ones are no parameters.
    fc: channels of fc6 and fc7.
    width: factor of the backbone's channel counts, for small machines.
    dropout: rate after fc6 and fc7, or before the classifier where there are none.
    norm: kind of normalization of a backbone that has one (`jseg.nn.Norm`).
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  output_stride: ClassVar[int]
  TINY: ClassVar[Arguments] = {"width": 0.0625, "fc": 32, "padding": "same"}

  backbone: str = "vgg16"
  padding: str = "published"
  at_once: bool = False
  learn_upsampling: bool = True
  fc: int = 4096
  width: float = 1.0
  dropout: float = 0.5
  norm: str = "batch"

  def __post_init__(self) -> None:
    if self.backbone not in BACKBONES:
      raise InputError(
        f"backbone: {self.backbone!r} is unknown; choose from {', '.join(BACKBONES)}"
      )
    if self.backbone.startswith(("alexnet", "googlenet")) and self.output_stride < 32:
      raise InputError(
        f"backbone: {self.backbone} has no skips in the paper; use it with fcn32s, or vgg16 here"
      )
    if self.padding not in ("published", "same"):
      raise InputError(f"padding: {self.padding!r} is unknown; choose published or same")
    if self.at_once and self.output_stride == 32:
      raise InputError("at_once: FCN-32s has one score; leave at_once False")
    check_norm(self.norm)
    backbones.check(self.backbone, width=self.width)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; training needs the key "dropout"."""
    maps = self._maps(image, train)
    x, name = maps[32]._replace(x=self._score(maps[32].x, "score_fr")), "upscore"
    if self.output_stride < 32:
      x = self._upsample(x, 2, _kernel_size(2, maps[16].origin), "upscore2")
      x, name = self._add_skip(x, maps[16], 0.01, "score_pool4"), "upscore16"
    if self.output_stride < 16:
      x = self._upsample(x, 2, _kernel_size(2, maps[8].origin), "upscore_pool4")
      x, name = self._add_skip(x, maps[8], 0.0001, "score_pool3"), "upscore8"
    x = self._upsample(x, x.stride, _kernel_size(x.stride, x.origin), name)
    return Outputs(x.cropped(0, image.shape[1:3]).astype(jnp.float32))

  def _score(self, x: Array, name: str) -> Array:
    conv = self.typed(Conv)
    return conv(self.num_classes, (1, 1), kernel_init=nn.initializers.zeros, name=name)(x)

  def _upsample(self, low: Map, factor: int, kernel: int, name: str) -> Map:
    if not self.learn_upsampling:
      return low.upsampled(upsample_fixed(low.x, kernel, factor), kernel, factor)
    up = self.typed(ConvTranspose)(
      self.num_classes,
      (kernel, kernel),
      factor,
      kernel_init=bilinear_kernel,
      name=name,
    )
    return low.upsampled(up(low.x), kernel, factor)

  def _add_skip(self, low: Map, skip: Map, scale: float, name: str) -> Map:
    """Adds the scores of an earlier map, where both maps are."""
    x = skip.x * scale if self.at_once else skip.x
    skip = skip._replace(x=self._score(x, name))
    start = max(low.origin, skip.origin)
    height, width = (
      min(m.x.shape[axis] - int((start - m.origin) / m.stride) for m in (low, skip))
      for axis in (1, 2)
    )
    parts = [m.cropped(start, (height, width)) for m in (low, skip)]
    return Map(parts[0] + parts[1], low.stride, start)

  def _maps(self, image: Array, train: bool) -> dict[int, Map]:
    """The maps that are scored, by stride: the last one and, where there are skips, 16 and 8."""
    if self.backbone.startswith("vgg16"):
      return self._vgg16(image, train)
    drop = functools.partial(Dropout(self.dropout), train=train)
    if self.backbone.startswith("resnet"):
      stages = self._features(image, train).stages
      # Every strided window is centered on its first pixel.
      return {n: Map(drop(stages[n]) if n == 32 else stages[n], n, 0.0) for n in (32, 16, 8)}
    if self.backbone.startswith("alexnet") and self.padding == "published":
      return self._alexnet(image, train)
    # Strided 3x3 windows need some room.
    edges = [(0, max(0, 64 - n)) for n in image.shape[1:3]]
    image = jnp.pad(image, [(0, 0), *edges, (0, 0)])
    if self.backbone.startswith("alexnet"):
      return self._alexnet(image, train)
    x = drop(self._features(image, train)[32])
    # The windows of pool4 are centered half an element further where they are 3 wide, not 2.
    return {32: Map(x, 32, 22.0 if self.backbone == "googlenet_torchvision" else 30.0)}

  def _features(self, image: Array, train: bool, **arguments: object) -> Features:
    backbone = self.typed(backbones.create)(
      self.backbone,
      norm=self.norm,
      width=self.width,
      remat=self.remat,
      name="backbone",
      **arguments,
    )
    return backbone(image, train=train)

  def _dense(self) -> Arguments:
    """Arguments of a backbone with fc6 and fc7."""
    padding = "VALID" if self.padding == "published" else "SAME"
    return {"fc": (self.fc, self.fc), "fc_padding": padding, "dropout": self.dropout}

  def _vgg16(self, image: Array, train: bool) -> dict[int, Map]:
    published = self.padding == "published"
    pad = _PUBLISHED_PADDING if published else 1
    named = self._features(image, train, first_padding=pad, **self._dense()).named
    origins = {i: (2**i - 1) / 2 + 1 - pad for i in (3, 4, 5)}
    # Three elements of fc6's window come before its center.
    last = Map(named["fc7"], 32, origins[5] + 32 * 3 * published)
    return {
      32: last,
      16: Map(named["pool4"], 16, origins[4]),
      8: Map(named["pool3"], 8, origins[3]),
    }

  def _alexnet(self, image: Array, train: bool) -> dict[int, Map]:
    published = self.padding == "published"
    # 34 and not 2: the first element must not lie so far inside that no kernel reaches the edge.
    pad = _PUBLISHED_PADDING if published else 34
    named = self._features(image, train, first_padding=pad, **self._dense()).named
    # The window of fc6 is 6 wide: centered at 2.5, or .5 after "SAME" has put 2 in front.
    return {32: Map(named["fc7"], 32, 33 - pad + 32 * (2.5 if published else 0.5))}


def _kernel_size(factor: int, origin: float) -> int:
  """Edge of the bilinear kernel that upsamples onto a grid with an element at `origin`.

  A kernel of even length is centered between two pixels; maps that lie on whole pixels, such as
  AlexNet's and ResNet's, need an odd one.
  """
  return 2 * factor - (1 if float(origin).is_integer() else 0)


class FCN32s(_FCN):
  """FCN-32s: scores of stride 32 alone."""

  output_stride = 32


class FCN16s(_FCN):
  """FCN-16s: the scores of stride 16 (pool4) are added."""

  output_stride = 16


class FCN8s(_FCN):
  """FCN-8s: the scores of stride 16 and 8 (pool4 and pool3) are added."""

  output_stride = 8
