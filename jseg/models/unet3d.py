"""3D U-Net (Cicek et al. 2016, arXiv:1606.06650, section 2 and figure 2)."""

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


class UNet3D(nn.Module):
  """[b d h w c] -> Outputs with logits [b d h w k], for volumes of any size.

  Channels double before each pooling, against bottlenecks; every convolution is normalised before
  its ReLU. Voxels that nobody has annotated are IGNORE: they carry no weight (section 2.2). With
  padding "VALID" as in `jseg.models.unet`: 132 x 132 x 116 voxels give 44 x 44 x 28.

  Attributes:
    num_classes: k.
    widths: channels before each pooling, from the finest level to the coarsest.
    padding: "SAME" or, as published, "VALID".
    norm: kind of normalisation (`jseg.nn.Norm`).
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  ndim: ClassVar[int] = 3
  TINY: ClassVar[dict[str, Any]] = {"widths": (4, 8, 8)}

  num_classes: int
  widths: Sequence[int] = (64, 128, 256, 512)
  padding: str = "SAME"
  norm: str = "batch"
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    check_padding(self.padding)
    if not self.widths or any(w < 2 for w in self.widths):
      raise InputError(f"widths: {self.widths} must be one or more channel counts of 2 and more")
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised volumes."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    size = image.shape[1:-1]
    depth = len(self.widths) - 1
    x = fit_unet(image, depth, self.padding, train=train)

    def conv(x: Array, features: int) -> Array:
      x = Conv(features, (3, 3, 3), padding=self.padding, **types)(x)
      return nn.relu(Norm(self.norm, **types)(x, train=train))

    skips = []
    for level, features in enumerate(self.widths):
      x = x if level == 0 else max_pool(x)
      x = conv(conv(x, features // 2), features)
      skips.append(x)
    x = skips.pop()
    for features in reversed(self.widths[:-1]):
      x = UpConv(x.shape[-1], use_bias=False, **types)(x)
      x = jnp.concatenate([centre(skips.pop(), x.shape[1:-1]), x], axis=-1)
      x = conv(conv(x, features), features)
    logits = Conv(self.num_classes, (1, 1, 1), **types)(x)
    if self.padding == "SAME" or not train:
      logits = logits[:, : size[0], : size[1], : size[2]]
    return Outputs(logits.astype(jnp.float32))

  def training_labels(self, label: Array) -> Array:
    """The part of [b d h w] labels that training's logits are compared with."""
    return label if self.padding == "SAME" else unpadded_labels(label, len(self.widths) - 1)
