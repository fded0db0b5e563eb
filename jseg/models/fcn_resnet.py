"""FCN on a dilated ResNet, as torchvision has it."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import ResNet
from jseg.backbones.resnet import check_resnet
from jseg.nn import FCNHead, check_norm, resize_bilinear
from jseg.types import Array, Outputs


class FCNResNet(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w: `fcn_resnet50`, `fcn_resnet101`.

  Attributes:
    num_classes: k.
    depth: of the ResNet, 18 to 152.
    aux: whether there are auxiliary logits from layer3, named "aux".
    dropout: rate before the classifiers.
    norm: kind of normalisation (`jseg.nn.Norm`).
    width: factor of the backbone's channel counts, for small machines.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {"depth": 18, "width": 0.125, "aux": True}
  AUX_WEIGHTS: ClassVar[dict[str, float]] = {"aux": 0.5}

  num_classes: int
  depth: int = 50
  aux: bool = False
  dropout: float = 0.1
  norm: str = "batch"
  width: float = 1.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    check_resnet(self.depth, self.width)
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; training needs the key "dropout"."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    backbone = ResNet(
      self.depth, 8, lag=True, norm=self.norm, width=self.width, name="backbone", **types
    )
    features = backbone(image, train=train)

    def head(layer: str, name: str) -> Array:
      scores = FCNHead(self.num_classes, self.dropout, self.norm, name=name, **types)
      x = scores(features[layer], train=train).astype(jnp.float32)
      return resize_bilinear(x, image.shape[1:3])

    return Outputs(head("layer4", "head"), {"aux": head("layer3", "aux")} if self.aux else {})
