"""PSPNet (Zhao et al. 2017, arXiv:1612.01105), as the authors' hszhao/semseg has it."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import ResNet
from jseg.backbones.resnet import check_resnet
from jseg.nn import FCNHead, PyramidPooling, check_norm, resize_bilinear
from jseg.types import Array, InputError, Outputs


class PSPNet(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  ResNet with the deep stem at stride 8, pyramid pooling, and a second score from layer3 in training
  (section 3.3). Scores are interpolated corners on corners; sizes 8 n + 1 need no padding.

  Attributes:
    num_classes: k.
    depth: of the ResNet, 18 to 152.
    bins: of the pyramid's levels.
    aux: whether there are auxiliary logits from layer3, named "aux".
    dropout: rate before the classifiers.
    norm: kind of normalisation (`jseg.nn.Norm`).
    width: factor of all channel counts, for small machines.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {"depth": 18, "width": 0.125, "aux": True}
  AUX_WEIGHTS: ClassVar[dict[str, float]] = {"aux": 0.4}

  num_classes: int
  depth: int = 50
  bins: Sequence[int] = (1, 2, 3, 6)
  aux: bool = True
  dropout: float = 0.1
  norm: str = "batch"
  width: float = 1.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if not self.bins or min(self.bins) < 1:
      raise InputError(f"bins: {self.bins} must be one or more numbers of at least 1")
    check_resnet(self.depth, self.width)
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; training needs the key "dropout"."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    height, width = image.shape[1:3]
    edges = [(0, (1 - n) % 8) for n in (height, width)]
    x = jnp.pad(image, [(0, 0), *edges, (0, 0)])
    padded = x.shape[1:3]
    features = ResNet(
      self.depth, 8, stem="deep", norm=self.norm, width=self.width, name="backbone", **types
    )(x, train=train)
    pyramid = PyramidPooling(self.bins, self.norm, name="pyramid", **types)

    def score(x: Array, name: str, share: int) -> Array:
      head = FCNHead(self.num_classes, self.dropout, self.norm, share, name=name, **types)
      y = head(x, train=train).astype(jnp.float32)
      return resize_bilinear(y, padded, align_corners=True)[:, :height, :width]

    logits = score(pyramid(features["layer4"], train=train), "head", 8)
    return Outputs(logits, {"aux": score(features["layer3"], "aux", 4)} if self.aux else {})
