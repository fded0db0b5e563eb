"""DeepLab V3 (Chen et al. 2017, arXiv:1706.05587)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import ResNet
from jseg.backbones.resnet import check_resnet
from jseg.nn import ASPP, Conv, FCNHead, Norm, check_norm, resize_bilinear
from jseg.types import Array, InputError, Outputs

FORMS = ("aspp", "cascade")
HEADS = ("paper", "torchvision")


class DeepLabV3(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  ResNet whose last blocks are dilated, then either ASPP (section 3.3), or more copies of its last
  block at rates that go on doubling, and a 1x1 classifier (section 3.2, figure 3(b)). Weights don't
  depend on the output stride: a network trained at 16 is evaluated at 8 by that setting alone, and
  the rates double. Logits are interpolated to the image (section 4.1: labels are never shrunk).

  torchvision's form is `head="torchvision", output_stride=8, multi_grid=(1,), lag=True`: its rates
  12, 24 and 36 are these, doubled.

  Attributes:
    num_classes: k.
    depth: of the ResNet, 18 to 152.
    form: "aspp" or "cascade".
    output_stride: 8 or 16.
    rates: of the ASPP at stride 16; doubled at 8.
    blocks: of the cascade: 5, 6 or 7, the number of the last one; block 4 is ResNet's last.
    multi_grid: factors of the dilation of block 4 and of its copies; (1, 2, 4) did best with ASPP
      in the paper, (1, 2, 1) in the cascade.
    lag: see `ResNet`.
    head: of the ASPP: "paper", or "torchvision" with another 3x3 convolution before the classifier,
      and dropout.
    aux: whether there are auxiliary logits from layer3, named "aux" (torchvision).
    dropout: rate before the auxiliary classifier; torchvision's ASPP has .5 besides.
    features: channels of the ASPP.
    norm: kind of normalisation; "frozen_batch" for the paper's second phase.
    ceil: see `ResNet`.
    stride_on: see `ResNet`.
    width: factor of the backbone's channel counts, for small machines.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {"depth": 18, "width": 0.125, "features": 8, "aux": True}
  AUX_WEIGHTS: ClassVar[dict[str, float]] = {"aux": 0.5}

  num_classes: int
  depth: int = 101
  form: str = "aspp"
  output_stride: int = 16
  rates: Sequence[int] = (6, 12, 18)
  blocks: int = 7
  multi_grid: Sequence[int] = (1, 2, 4)
  lag: bool = False
  head: str = "paper"
  aux: bool = False
  dropout: float = 0.1
  features: int = 256
  norm: str = "batch"
  ceil: bool = False
  stride_on: str = "3x3"
  width: float = 1.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if self.output_stride not in (8, 16):
      raise InputError(f"output_stride: {self.output_stride} must be 8 or 16")
    for key in ("rates", "multi_grid"):
      if not (values := getattr(self, key)) or min(values) < 1:
        raise InputError(f"{key}: {values} must be one or more numbers of at least 1")
    for key, choices in {"form": FORMS, "head": HEADS}.items():
      if (value := getattr(self, key)) not in choices:
        raise InputError(f"{key}: {value!r} is unknown; choose from {', '.join(choices)}")
    if self.blocks not in (5, 6, 7):
      raise InputError(f"blocks: {self.blocks} must be 5, 6 or 7, the last block of the cascade")
    if self.form == "cascade" and self.head != "paper":
      raise InputError(f"head: {self.head!r} stands on ASPP; leave it 'paper' in the cascade")
    check_resnet(self.depth, self.width)
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; torchvision's training needs the key "dropout"."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    size = image.shape[1:3]
    cascade = self.form == "cascade"
    features = ResNet(
      self.depth,
      self.output_stride,
      multi_grid=self.multi_grid,
      copies=self.blocks - 4 if cascade else 0,
      lag=self.lag,
      stride_on=self.stride_on,
      ceil=self.ceil,
      norm=self.norm,
      width=self.width,
      name="backbone",
      **types,
    )(image, train=train)
    x = features[f"layer{self.blocks}" if cascade else "layer4"]
    if not cascade:
      rates = [rate * 16 // self.output_stride for rate in self.rates]
      dropout = 0.5 if self.head == "torchvision" else 0.0
      x = ASPP(rates, self.features, self.norm, dropout, name="aspp", **types)(x, train=train)
    if self.head == "torchvision":
      x = Conv(self.features, (3, 3), use_bias=False, name="conv", **types)(x)
      x = nn.relu(Norm(self.norm, name="norm", **types)(x, train=train))
    logits = Conv(self.num_classes, (1, 1), name="classifier", **types)(x)
    aux = {}
    if self.aux:
      head = FCNHead(self.num_classes, self.dropout, self.norm, name="aux", **types)
      aux["aux"] = head(features["layer3"], train=train)
    return jax.tree.map(
      lambda a: resize_bilinear(a.astype(jnp.float32), size), Outputs(logits, aux)
    )
