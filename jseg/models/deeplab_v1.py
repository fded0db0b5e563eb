"""DeepLab V1 (Chen et al. 2015, arXiv:1412.7062): LargeFOV and its multi-scale form MSc.

VGG16 with stride-1 pools and holes in block 5, so that scores come at stride 8, and an fc6 of 3 x 3
taps that lie 12 apart (section 3.1; LargeFOV of table 1). The dense CRF that follows it in the
paper is another module.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import VGG16
from jseg.nn import Conv, resize_bilinear
from jseg.types import IGNORE, Array, InputError, Outputs

_STRIDE = 8


class DeepLabV1(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Scores lie on every eighth pixel, beginning with the first. They are interpolated to the image,
  corners on corners; but in training they are left at stride 8, [b h' w' k], and compared with
  every eighth label, as in the paper (section 3.2).

  Attributes:
    num_classes: k.
    msc: whether the image and the first four pools have score branches of their own, whose scores
      are summed with fc8's (section 4.3; equal to the paper's concatenation before one classifier).
    widths: channels of VGG16's blocks.
    fc: channels of fc6 and fc7.
    msc_width: channels inside of the branches of `msc`.
    dropout: rate after fc6 and fc7.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {"widths": (4, 8, 8, 8, 8), "fc": 16, "msc_width": 8}

  num_classes: int
  msc: bool = False
  widths: Sequence[int] = (64, 128, 256, 512, 512)
  fc: int = 1024
  msc_width: int = 128
  dropout: float = 0.5
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if len(self.widths) != 5 or min(self.widths) < 1:
      raise InputError(f"widths: {self.widths} must be five positive channel counts")
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; training needs the key "dropout"."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    size = image.shape[1:3]
    # 8 n + 1 pixels give n + 1 scores whose corners lie on the image's.
    edges = [(0, (1 - n) % _STRIDE) for n in size]
    image = jnp.pad(image, [(0, 0), *edges, (0, 0)])
    features = VGG16(
      self.widths,
      pool="max3",
      pool_strides=(2, 2, 2, 1, 1),
      dilation5=2,
      fc=(self.fc, self.fc),
      fc_kernel=3,
      fc_dilation=12,
      fc_pool=True,
      dropout=self.dropout,
      name="backbone",
      **types,
    )(image, train=train)
    scores = Conv(self.num_classes, (1, 1), kernel_init=_GAUSS, name="fc8", **types)(
      features["fc7"]
    )
    if self.msc:
      drop = nn.Dropout(self.dropout, deterministic=not train)
      maps = [image] + [features[f"pool{i}"] for i in range(1, 5)]
      for i, x in enumerate(maps):
        stride = max(1, _STRIDE >> i)
        for layer, kernel, step in ((1, 3, stride), (2, 1, 1)):
          name = f"msc{i}_{layer}"
          conv = Conv(
            self.msc_width, (kernel, kernel), step, padding=kernel // 2, name=name, **types
          )
          x = drop(nn.relu(conv(x)))
        scores += Conv(self.num_classes, (1, 1), kernel_init=_GAUSS, name=f"msc{i}_3", **types)(x)
    scores = scores.astype(jnp.float32)
    if train:
      return Outputs(scores)
    padded = image.shape[1:3]
    return Outputs(resize_bilinear(scores, padded, align_corners=True)[:, : size[0], : size[1]])

  def training_labels(self, label: Array) -> Array:
    """The labels that training's logits are compared with: every eighth one, [b h' w']."""
    edges = [(0, (1 - n) % _STRIDE) for n in label.shape[1:3]]
    label = jnp.pad(label, [(0, 0), *edges], constant_values=IGNORE)
    return label[:, ::_STRIDE, ::_STRIDE]


_GAUSS = nn.initializers.normal(0.01)
