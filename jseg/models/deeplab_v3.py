"""DeepLab V3 (Chen et al. 2017, arXiv:1706.05587)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn

from jseg import backbones
from jseg.models.base import Network, cover_image, depth_to_backbone, renamed
from jseg.nn import ASPP, Conv, FCNHead, Norm, Staged, check_norm
from jseg.types import Arguments, Array, InputError, Outputs

FORMS = ("aspp", "cascade")
HEADS = ("paper", "torchvision")


class DeepLabV3(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  A backbone whose last blocks are dilated, then either ASPP (section 3.3), or more copies of
  ResNet's last block at rates that go on doubling, and a 1x1 classifier (section 3.2, figure 3(b)).
  Weights don't depend on the output stride: a network trained at 16 is evaluated at 8 by that
  setting alone, and the rates double. Logits are interpolated to the image (section 4.1: labels are
  never shrunk).

  torchvision's form is
  `head="torchvision", output_stride=8, multi_grid=(1,), keep_first_rate=True`: its rates 12, 24 and
  36 are these, doubled.

  Attributes:
    num_classes: number of classes k, background included.
    backbone: a ResNet or VGG16 of `jseg.backbones`.
    form: "aspp" or, on a ResNet, "cascade".
    output_stride: stride of the last features, 8 or 16.
    rates: rates of the ASPP at stride 16; doubled at 8.
    blocks: number of the cascade's last block: 5, 6 or 7; block 4 is ResNet's last.
    multi_grid: factors of the dilation in ResNet's block 4 and its copies; (1, 2, 4) did best with
      ASPP in the paper, (1, 2, 1) in the cascade.
    keep_first_rate: whether the first unit of a dilated layer keeps the dilation of the layer
      before (`jseg.backbones.ResNet`).
    head: head of the ASPP: "paper", or "torchvision" with another 3x3 convolution before the
      classifier, and dropout.
    aux: whether there are auxiliary logits from the stage before the last, named "aux"
      (torchvision).
    dropout: rate before the auxiliary classifier; torchvision's ASPP has .5 besides.
    features: channels of the ASPP.
    norm: kind of normalization; "frozen_batch" for the paper's second phase.
    ceil: whether ResNet's first pooling counts a window that hangs over the edge, as in Caffe.
    stride_on: convolution of a bottleneck that has the stride, "3x3" or "1x1".
    width: factor of the backbone's channel counts, for small machines.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {
    "backbone": "resnet18",
    "width": 0.125,
    "features": 8,
    "aux": True,
  }
  AUX_WEIGHTS: ClassVar[Mapping[str, float]] = {"aux": 0.5}

  backbone: str = "resnet101"
  form: str = "aspp"
  output_stride: int = 16
  rates: Sequence[int] = (6, 12, 18)
  blocks: int = 7
  multi_grid: Sequence[int] = (1, 2, 4)
  keep_first_rate: bool = False
  head: str = "paper"
  aux: bool = False
  dropout: float = 0.1
  features: int = 256
  norm: str = "batch"
  ceil: bool = False
  stride_on: str = "3x3"
  width: float = 1.0

  def __post_init__(self) -> None:
    if self.output_stride not in (8, 16):
      raise InputError(f"output_stride: {self.output_stride} must be 8 or 16")
    for key, values in {"rates": self.rates, "multi_grid": self.multi_grid}.items():
      if not values or min(values) < 1:
        raise InputError(f"{key}: {values} must be one or more numbers of at least 1")
    if self.form not in FORMS:
      raise InputError(f"form: {self.form!r} is unknown; choose from {', '.join(FORMS)}")
    if self.head not in HEADS:
      raise InputError(f"head: {self.head!r} is unknown; choose from {', '.join(HEADS)}")
    if self.blocks not in (5, 6, 7):
      raise InputError(f"blocks: {self.blocks} must be 5, 6 or 7, the last block of the cascade")
    if self.form == "cascade" and self.head != "paper":
      raise InputError(f"head: {self.head!r} stands on ASPP; leave it 'paper' in the cascade")
    if self.form == "cascade" and not self.backbone.startswith("resnet"):
      raise InputError(f"form: the cascade repeats a ResNet's last block, not {self.backbone}'s")
    check_norm(self.norm)
    backbones.check(
      self.backbone,
      output_stride=self.output_stride,
      width=self.width,
      optional={"stride_on": self.stride_on},
    )
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; torchvision's training needs the key "dropout"."""
    features = self._features(image, train)
    if self.form == "cascade":
      x = features[2 ** (self.blocks + 1)]
    else:
      x = self.stage(lambda net, x: net._aspp(x, train), features[32])
    if self.head == "torchvision":
      x = self.typed(Conv)(self.features, (3, 3), use_bias=False, name="conv")(x)
      x = nn.relu(self.typed(Norm)(self.norm, name="norm")(x, train=train))
    scores = self.typed(Conv)(self.num_classes, (1, 1), name="classifier")(x)
    size = image.shape[1:3]
    aux = {}
    if self.aux:
      head = self.typed(FCNHead)(self.num_classes, self.dropout, self.norm, name="aux")
      aux["aux"] = cover_image(head(features[16], train=train), size)
    return Outputs(cover_image(scores, size), aux)

  def _aspp(self, x: Array, train: bool) -> Array:
    aspp = self.typed(ASPP)(
      [rate * 16 // self.output_stride for rate in self.rates],
      self.features,
      self.norm,
      0.5 if self.head == "torchvision" else 0.0,
      name="aspp",
    )
    return aspp(x, train=train)

  def _features(self, image: Array, train: bool) -> backbones.Features:
    """The backbone's maps, of the cascade's blocks too."""
    cascade = {"cascade_blocks": self.blocks - 4} if self.form == "cascade" else {}
    backbone = self.typed(backbones.create)(
      self.backbone,
      output_stride=self.output_stride,
      norm=self.norm,
      width=self.width,
      remat=self.remat,
      optional={
        "multi_grid": self.multi_grid,
        "keep_first_rate": self.keep_first_rate,
        "stride_on": self.stride_on,
        "ceil": self.ceil,
      },
      name="backbone",
      **cascade,
    )
    return backbone(image, train=train)

  @classmethod
  def upgrade(cls, arguments: Arguments) -> Arguments:
    """Translates `depth`, the ResNet's, and `lag`."""
    return renamed(depth_to_backbone(arguments), lag="keep_first_rate")
