"""U-Net (Ronneberger, Fischer & Brox 2015, arXiv:1505.04597, section 2 and figure 1).

`UNet(2, padding="VALID", norm="none", dropout=0.5)` is the published network. By default
convolutions are padded, so that the mask lies on the image pixel for pixel, and normalised.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn import (
  Conv,
  Norm,
  UpConv,
  centre,
  check_norm,
  check_padding,
  fit_unet,
  max_pool,
  unpadded_labels,
)
from jseg.types import Array, InputError, Outputs


class UNet(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Unpadded, the network sees the mask of the middle of what it is fed: 572 pixels give 388. In
  training that is what comes out, so a crop must fit, and is compared with the labels of the
  middle. Otherwise the image is surrounded by its mirror image until the mask covers it, as the
  paper does at the border (section 2, figure 2).

  Attributes:
    num_classes: k.
    widths: channels at each resolution, from the finest to the coarsest.
    padding: "SAME" or, as published, "VALID".
    norm: kind of normalisation after each 3x3 convolution (`jseg.nn.Norm`); "none" as published.
    dropout: rate at the end of the contracting path, which is its two coarsest resolutions.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {"widths": (4, 8, 16)}

  num_classes: int
  widths: Sequence[int] = (64, 128, 256, 512, 1024)
  padding: str = "SAME"
  norm: str = "batch"
  dropout: float = 0.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    check_padding(self.padding)
    if not self.widths or any(w < 1 for w in self.widths):
      raise InputError(f"widths: {self.widths} must be one or more positive channel counts")
    if not 0 <= self.dropout < 1:
      raise InputError(f"dropout: {self.dropout} must be at least 0 (off) and below 1")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; training needs the key "dropout"."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    height, width = image.shape[1:3]
    depth = len(self.widths) - 1
    x = fit_unet(image, depth, self.padding, train=train)

    def block(x: Array, features: int) -> Array:
      for _ in range(2):
        x = Conv(features, (3, 3), padding=self.padding, use_bias=self.norm == "none", **types)(x)
        x = nn.relu(Norm(self.norm, **types)(x, train=train))
      return x

    skips = []
    for level, features in enumerate(self.widths):
      x = block(x if level == 0 else max_pool(x), features)
      if level >= depth - 1:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
      skips.append(x)
    x = skips.pop()
    for features in reversed(self.widths[:-1]):
      x = UpConv(features, **types)(x)
      x = jnp.concatenate([centre(skips.pop(), x.shape[1:3]), x], axis=-1)
      x = block(x, features)
    logits = Conv(self.num_classes, (1, 1), **types)(x)
    if self.padding == "SAME" or not train:
      logits = logits[:, :height, :width]
    return Outputs(logits.astype(jnp.float32))

  def training_labels(self, label: Array) -> Array:
    """The part of [b h w] labels or weights that training's logits are compared with."""
    return label if self.padding == "SAME" else unpadded_labels(label, len(self.widths) - 1)
