"""FCN (Long, Shelhamer & Darrell 2015, arXiv:1411.4038; Shelhamer et al. 2017, arXiv:1605.06211).

As released by the authors (shelhamer/fcn.berkeleyvision.org): a classifier made convolutional, with
scores from its last layer and from earlier pools, summed on the way up. Where every map lies on the
image is kept as arithmetic, from which the published crop offsets follow.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import VGG16, AlexNet, GoogLeNet
from jseg.nn import Conv, ConvTranspose, bilinear_kernel, upsample_fixed
from jseg.types import Array, InputError, Outputs

BACKBONES = ("vgg16", "alexnet", "googlenet", "alexnet_torchvision", "googlenet_torchvision")
_PUBLISHED_PADDING = 100


class Map(NamedTuple):
  """A feature map and where it lies: element (i, j) is centred at origin + stride (i, j)."""

  x: Array
  stride: int
  origin: float  # in pixels of the image, along either axis

  def upsampled(self, x: Array, kernel: int, factor: int) -> "Map":
    """The map `x` that a transposed convolution of this kernel and stride made of this one."""
    stride = self.stride // factor
    return Map(x, stride, self.origin - stride * (kernel - 1) / 2)

  def cropped(self, start: float, size: Sequence[int]) -> Array:
    """The part of `size` elements whose first is centred at `start` in the image."""
    first = (start - self.origin) / self.stride
    assert first == int(first) >= 0, "the maps must fall on one grid"
    i = int(first)
    return self.x[:, i : i + size[0], i : i + size[1]]


class _FCN(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Attributes:
    num_classes: k.
    backbone: "vgg16", and for stride 32 also "alexnet" or "googlenet", or both in the form that
      torchvision has weights of: one column without LRN, and batch norm with 3x3 kernels for 5x5.
    padding: "published": 100 pixels around the image and an unpadded fc6. "same": only what
      keeps every convolution's size, which is much less work on small images and the same
      network inside large ones. GoogLeNet has no fc6, and is padded as the classifier either way.
    at_once: whether all scores are trained together from the start: pool4 and pool3 are scaled
      by .01 and .0001, as released. Otherwise each stage starts from the one before
      (`init_from`).
    learn_upsampling: whether the transposed convolutions are trained, as in the paper, or stay
      bilinear, as in the released networks. Fixed ones are no parameters.
    fc: channels of fc6 and fc7.
    width: factor of the backbone's channel counts, for small machines.
    dropout: rate after fc6 and fc7.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  output_stride: ClassVar[int]
  TINY: ClassVar[dict[str, Any]] = {"width": 0.0625, "fc": 32, "padding": "same"}

  num_classes: int
  backbone: str = "vgg16"
  padding: str = "published"
  at_once: bool = False
  learn_upsampling: bool = True
  fc: int = 4096
  width: float = 1.0
  dropout: float = 0.5
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if self.backbone not in BACKBONES:
      raise InputError(
        f"backbone: {self.backbone!r} is unknown; choose from {', '.join(BACKBONES)}"
      )
    if self.backbone != "vgg16" and self.output_stride < 32:
      raise InputError(
        f"backbone: {self.backbone} has no skips in the paper; use it with fcn32s, or vgg16 here"
      )
    if self.padding not in ("published", "same"):
      raise InputError(f"padding: {self.padding!r} is unknown; choose published or same")
    if self.at_once and self.output_stride == 32:
      raise InputError("at_once: FCN-32s has one score; leave at_once False")
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; training needs the key "dropout"."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    k = self.num_classes
    height, width = image.shape[1:3]

    def score(x: Array, name: str) -> Array:
      return Conv(k, (1, 1), kernel_init=nn.initializers.zeros, name=name, **types)(x)

    def upsample(low: Map, factor: int, kernel: int, name: str) -> Map:
      if not self.learn_upsampling:
        return low.upsampled(upsample_fixed(low.x, kernel, factor), kernel, factor)
      up = ConvTranspose(
        k, (kernel, kernel), factor, kernel_init=bilinear_kernel, name=name, **types
      )
      return low.upsampled(up(low.x), kernel, factor)

    def fuse(low: Map, skip: Map) -> Map:
      start = max(low.origin, skip.origin)
      size = [n - int((start - m.origin) / m.stride) for m in (low, skip) for n in m.x.shape[1:3]]
      size = [min(size[0], size[2]), min(size[1], size[3])]
      return Map(low.cropped(start, size) + skip.cropped(start, size), low.stride, start)

    features, origins = self._features(image, train=train, **types)
    name = "upscore"
    x = Map(score(features["fc7"], "score_fr"), 32, origins["fc7"])
    if self.output_stride < 32:
      x, name = upsample(x, 2, 4, "upscore2"), "upscore16"
      pool4 = features["pool4"] * (0.01 if self.at_once else 1)
      x = fuse(x, Map(score(pool4, "score_pool4"), 16, origins["pool4"]))
    if self.output_stride < 16:
      x, name = upsample(x, 2, 4, "upscore_pool4"), "upscore8"
      pool3 = features["pool3"] * (0.0001 if self.at_once else 1)
      x = fuse(x, Map(score(pool3, "score_pool3"), 8, origins["pool3"]))
    # A kernel of even length is centred between two pixels; AlexNet's maps need an odd one.
    kernel = 2 * x.stride - (1 if float(x.origin).is_integer() else 0)
    x = upsample(x, x.stride, kernel, name)
    return Outputs(x.cropped(0, (height, width)).astype(jnp.float32))

  def _features(
    self, image: Array, *, train: bool, **types: Any
  ) -> tuple[dict[str, Array], dict[str, float]]:
    """The backbone's maps and the place of their first element."""
    published = self.padding == "published"
    fc: dict[str, Any] = {
      "fc": (self.fc, self.fc),
      "fc_padding": "VALID" if published else "SAME",
      "dropout": self.dropout,
    }
    if self.backbone == "vgg16":
      pad = _PUBLISHED_PADDING if published else 1
      widths = _scaled((64, 128, 256, 512, 512), self.width)
      vgg = VGG16(widths, first_padding=pad, name="backbone", **fc, **types)
      origins = {f"pool{i}": (2**i - 1) / 2 + 1 - pad for i in (3, 4, 5)}
      # Three elements of fc6's window come before its centre.
      return vgg(image, train=train), origins | {"fc7": origins["pool5"] + 32 * 3 * published}
    form = self.backbone.removesuffix("_torchvision")
    torchvision = form != self.backbone
    if not (published and form == "alexnet"):
      # Strided 3x3 windows need some room.
      image = jnp.pad(image, [(0, 0), *((0, max(0, 64 - n)) for n in image.shape[1:3]), (0, 0)])
    if form == "alexnet":
      # 34 and not 2: the first element must not lie so far inside that no kernel reaches the edge.
      pad = _PUBLISHED_PADDING if published else 34
      columns: dict[str, Any] = {"groups": 1 if torchvision else 2, "lrn": not torchvision}
      widths = (64, 192, 384, 256, 256) if torchvision else (96, 256, 384, 384, 256)
      widths = _scaled(widths, self.width, 2)
      alexnet = AlexNet(widths, first_padding=pad, name="backbone", **columns, **fc, **types)
      # The window of fc6 is 6 wide: centred at 2.5, or .5 after "SAME" has put 2 in front.
      return alexnet(image, train=train), {"fc7": 33 - pad + 32 * (2.5 if published else 0.5)}
    changed: dict[str, Any] = {"norm": "batch", "five": 3, "last_pool": 2, "lrn": False}
    knobs = changed if torchvision else {}
    googlenet = GoogLeNet(width=self.width, name="backbone", **knobs, **types)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    x = drop(googlenet(image, train=train)["inception5b"])
    # The windows of pool4 are centred half an element further where they are 3 wide, not 2.
    return {"fc7": x}, {"fc7": 22.0 if torchvision else 30.0}


def _scaled(widths: Sequence[int], factor: float, multiple: int = 1) -> tuple[int, ...]:
  return tuple(multiple * max(1, round(w * factor / multiple)) for w in widths)


class FCN32s(_FCN):
  """FCN-32s."""

  output_stride = 32


class FCN16s(_FCN):
  """FCN-16s: pool4 is added."""

  output_stride = 16


class FCN8s(_FCN):
  """FCN-8s: pool4 and pool3 are added."""

  output_stride = 8
