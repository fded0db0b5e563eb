"""DeepLab V1 (Chen et al. 2015, arXiv:1412.7062): LargeFOV and its multi-scale form MSc.

VGG16 with stride-1 pools and holes in block 5, so that scores come at stride 8, and an fc6 of 3 x 3
taps that lie 12 apart (section 3.1; LargeFOV of table 1). The dense CRF that follows it in the
paper is another module.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jseg.backbones import VGG16, Features
from jseg.models.base import Network, cover_image, pad_to_corners
from jseg.nn import Conv, Dropout, Staged, normal
from jseg.nn.cut import cut
from jseg.types import IGNORE, Arguments, Array, InputError, Outputs

_STRIDE = 8
_GAUSS = normal(0.01)


class DeepLabV1(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Scores lie on every eighth pixel, beginning with the first. They are interpolated to the image,
  corners on corners; but in training they are left at stride 8, [b h' w' k], and compared with
  every eighth label, as in the paper (section 3.2).

  Attributes:
    num_classes: number of classes k, background included.
    msc: whether the image and the first four pools have score branches of their own, whose scores
      are summed with fc8's (section 4.3; equal to the paper's concatenation before one classifier).
    widths: channels of VGG16's blocks.
    fc: channels of fc6 and fc7.
    msc_width: channels inside of the branches of `msc`.
    dropout: rate after fc6 and fc7.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {"widths": (4, 8, 8, 8, 8), "fc": 16, "msc_width": 8}

  msc: bool = False
  widths: Sequence[int] = (64, 128, 256, 512, 512)
  fc: int = 1024
  msc_width: int = 128
  dropout: float = 0.5

  def __post_init__(self) -> None:
    if len(self.widths) != 5 or min(self.widths) < 1:
      raise InputError(f"widths: {self.widths} must be five positive channel counts")
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; training needs the key "dropout"."""
    size = image.shape[1:3]
    image = pad_to_corners(image, _STRIDE)
    backbone = self.typed(VGG16)(
      self.widths,
      output_stride=_STRIDE,
      pool="max3",
      fc=(self.fc, self.fc),
      fc_kernel=3,
      fc_dilation=12,
      fc_pool=True,
      dropout=self.dropout,
      remat=self.remat,
      name="backbone",
    )
    features = backbone(image, train=train)
    scores = self._classifier("fc8")(features.named["fc7"])
    if self.msc:
      scores = self._add_branches(scores, image, features, train)
    if train:
      return Outputs(scores.astype(jnp.float32))
    return Outputs(cover_image(scores, size, corners=_STRIDE))

  def _classifier(self, name: str) -> Conv:
    return self.typed(Conv)(self.num_classes, (1, 1), kernel_init=_GAUSS, name=name)

  def _add_branches(self, scores: Array, image: Array, features: Features, train: bool) -> Array:
    """Adds the scores of the image and of the first four pools (section 4.3)."""
    drop = functools.partial(Dropout(self.dropout), train=train)
    for i, x in enumerate([image, *(features.named[f"pool{n}"] for n in range(1, 5))]):
      first = self.typed(Conv)(
        self.msc_width,
        (3, 3),
        max(1, _STRIDE >> i),
        padding=1,
        name=f"msc{i}_1",
      )
      second = self.typed(Conv)(self.msc_width, (1, 1), name=f"msc{i}_2")
      x = drop(nn.relu(second(drop(nn.relu(first(x))))))
      scores += self._classifier(f"msc{i}_3")(x)
    return scores

  def training_labels(self, label: Array) -> Array:
    """Returns every eighth of [b h w] labels, [b h' w'], on which the training logits lie."""
    every = slice(None, None, _STRIDE)
    return cut(pad_to_corners(label, _STRIDE, IGNORE), slice(None), every, every)
