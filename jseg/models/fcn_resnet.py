"""FCN on a dilated backbone, as torchvision has it on ResNet."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn

from jseg import backbones
from jseg.models.base import Network, cover_image, depth_to_backbone
from jseg.nn import FCNHead, Staged, check_norm
from jseg.types import Arguments, Array, Outputs


class FCNResNet(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w: `fcn_resnet50`, `fcn_resnet101`.

  Attributes:
    num_classes: number of classes k, background included.
    backbone: a ResNet or VGG16 of `jseg.backbones`.
    aux: whether there are auxiliary logits from the stage before the last, named "aux".
    dropout: rate before the classifiers.
    norm: kind of normalization (`jseg.nn.Norm`).
    width: factor of the backbone's channel counts, for small machines.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {"backbone": "resnet18", "width": 0.125, "aux": True}
  AUX_WEIGHTS: ClassVar[Mapping[str, float]] = {"aux": 0.5}

  backbone: str = "resnet50"
  aux: bool = False
  dropout: float = 0.1
  norm: str = "batch"
  width: float = 1.0

  def __post_init__(self) -> None:
    check_norm(self.norm)
    backbones.check(self.backbone, output_stride=8, width=self.width)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; training needs the key "dropout"."""
    backbone = self.typed(backbones.create)(
      self.backbone,
      output_stride=8,
      norm=self.norm,
      width=self.width,
      remat=self.remat,
      optional={"keep_first_rate": True},
      name="backbone",
    )
    features = backbone(image, train=train)

    def score(x: Array, name: str) -> Array:
      def head(net: FCNResNet, x: Array) -> Array:
        return net.typed(FCNHead)(net.num_classes, net.dropout, net.norm, name=name)(x, train=train)

      return cover_image(self.stage(head, x), image.shape[1:3])

    logits = score(features[32], "head")
    return Outputs(logits, {"aux": score(features[16], "aux")} if self.aux else {})

  @classmethod
  def upgrade(cls, arguments: Arguments) -> Arguments:
    """Translates `depth`, the ResNet's."""
    return depth_to_backbone(arguments)
