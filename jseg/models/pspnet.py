"""PSPNet (Zhao et al. 2017, arXiv:1612.01105), as the authors' hszhao/semseg has it."""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn

from jseg import backbones
from jseg.models.base import Network, cover_image, depth_to_backbone, pad_to_corners
from jseg.nn import FCNHead, PyramidPooling, Staged, check_norm
from jseg.types import Arguments, Array, InputError, Outputs

_STRIDE = 8


class PSPNet(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  A dilated backbone at stride 8 (a ResNet has the deep stem), pyramid pooling, and a second score
  from the stage before the last in training (section 3.3). Scores are interpolated corners on
  corners; sizes 8 n + 1 need no padding.

  Attributes:
    num_classes: number of classes k, background included.
    backbone: a ResNet or VGG16 of `jseg.backbones`.
    bins: edges of the pyramid's levels, in bins.
    aux: whether there are auxiliary logits from the stage before the last, named "aux".
    dropout: rate before the classifiers.
    norm: kind of normalization (`jseg.nn.Norm`).
    width: factor of all channel counts, for small machines.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {"backbone": "resnet18", "width": 0.125, "aux": True}
  AUX_WEIGHTS: ClassVar[Mapping[str, float]] = {"aux": 0.4}

  backbone: str = "resnet50"
  bins: Sequence[int] = (1, 2, 3, 6)
  aux: bool = True
  dropout: float = 0.1
  norm: str = "batch"
  width: float = 1.0

  def __post_init__(self) -> None:
    if not self.bins or min(self.bins) < 1:
      raise InputError(f"bins: {self.bins} must be one or more numbers of at least 1")
    check_norm(self.norm)
    backbones.check(self.backbone, output_stride=_STRIDE, width=self.width)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; training needs the key "dropout"."""
    backbone = self.typed(backbones.create)(
      self.backbone,
      output_stride=_STRIDE,
      norm=self.norm,
      width=self.width,
      remat=self.remat,
      optional={"stem": "deep"},
      name="backbone",
    )
    features = backbone(pad_to_corners(image, _STRIDE), train=train)

    def score(net: PSPNet, x: Array, *, reduction: int, name: str) -> Array:
      coarse = []
      if name == "head":
        coarse = net.typed(PyramidPooling)(net.bins, net.norm, name="pyramid")(x, train=train)
      head = net.typed(FCNHead)(
        net.num_classes,
        net.dropout,
        net.norm,
        reduction=reduction,
        name=name,
      )
      return head(x, coarse, train=train)

    def logits(stride: int, reduction: int, name: str) -> Array:
      run = functools.partial(score, reduction=reduction, name=name)
      return cover_image(self.stage(run, features[stride]), image.shape[1:3], corners=_STRIDE)

    main = logits(32, 8, "head")
    return Outputs(main, {"aux": logits(16, 4, "aux")} if self.aux else {})

  @classmethod
  def upgrade(cls, arguments: Arguments) -> Arguments:
    """Translates `depth`, the ResNet's."""
    return depth_to_backbone(arguments)
