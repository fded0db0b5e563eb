"""RefineNet (Lin et al. 2017, arXiv:1611.06612)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.backbones import ResNet
from jseg.backbones.resnet import check_resnet
from jseg.nn import Conv, check_norm, max_pool, resize_bilinear
from jseg.types import Array, InputError, Outputs

CHAINS = ("pool_conv", "conv_pool")
_GAUSS = nn.initializers.normal(0.01)


class RefineNet(nn.Module):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Maps of the ResNet at strides 32, 16, 8 and 4 are refined, coarsest first (figure 2(c)): each goes
  through residual convolution units, is fused with what came before, pooled in a chain and refined
  again. No norms outside of the ResNet, whose statistics are frozen in the paper. Kernels there
  begin as N(0, .01), as in the authors' guosheng/refinenet; by He's rule, for nets without so many
  sums, the first scores would be in the thousands.

  Attributes:
    num_classes: k.
    depth: of the ResNet, 18 to 152.
    blocks: RefineNet blocks: 4, one for each map (figure 2(c)), or 2 or 1 (figures 7(b), 7(a)),
      each for several maps.
    chain: number of poolings in a chain; 4 in the released weights, 2 in the paper's figure 3.
    order: "pool_conv" (figure 3, DrSleep/refinenet-pytorch) or "conv_pool", which the authors' code
      calls improved.
    features: channels of the coarsest map's path and of the others'.
    dropout: rate on the two coarsest maps and before the classifier.
    norm: kind of normalisation of the ResNet.
    width: factor of the backbone's channel counts, for small machines.
    dtype: type of the computation; logits are float32.
    param_dtype: type of the parameters.
  """

  TINY: ClassVar[dict[str, Any]] = {
    "depth": 18,
    "width": 0.125,
    "features": (8, 4),
    "norm": "batch",
    "blocks": 2,
    "chain": 1,
  }

  num_classes: int
  depth: int = 101
  blocks: int = 4
  chain: int = 4
  order: str = "pool_conv"
  features: Sequence[int] = (512, 256)
  dropout: float = 0.5
  norm: str = "frozen_batch"
  width: float = 1.0
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if self.blocks not in (1, 2, 4):
      raise InputError(f"blocks: {self.blocks} must be 1, 2 or 4")
    if self.order not in CHAINS:
      raise InputError(f"order: {self.order!r} is unknown; choose from {', '.join(CHAINS)}")
    if self.chain < 0:
      raise InputError(f"chain: {self.chain} must be at least 0")
    if len(self.features) != 2 or min(self.features) < 1:
      raise InputError(f"features: {self.features} must be two positive channel counts")
    check_resnet(self.depth, self.width)
    check_norm(self.norm)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalised images; training needs the key "dropout"."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    drop = nn.Dropout(self.dropout, deterministic=not train)
    backbone = ResNet(self.depth, norm=self.norm, width=self.width, name="backbone", **types)
    maps = backbone(image, train=train)

    def conv(x: Array, features: int, name: str, *, bias: bool = False) -> Array:
      return Conv(features, (3, 3), use_bias=bias, kernel_init=_GAUSS, name=name, **types)(x)

    def units(x: Array, count: int, name: str) -> Array:
      """Residual convolution units (section 3.2)."""
      for i in range(count):
        y = conv(nn.relu(x), x.shape[-1], f"{name}_{i}_1", bias=True)
        x += conv(nn.relu(y), x.shape[-1], f"{name}_{i}_2")
      return x

    def chained_pooling(x: Array, name: str) -> Array:
      """Chained residual pooling (section 3.2)."""
      x = top = nn.relu(x)
      for i in range(self.chain):
        if self.order == "pool_conv":
          top = conv(max_pool(top, 5, 1, padding=2), x.shape[-1], f"{name}_{i}")
        else:
          top = max_pool(conv(top, x.shape[-1], f"{name}_{i}"), 5, 1, padding=2)
        x += top
      return x

    x = None
    levels = ["layer4", "layer3", "layer2", "layer1"]
    per_block = 4 // self.blocks
    for block in range(self.blocks):
      group = levels[block * per_block : (block + 1) * per_block]
      finest = maps[group[-1]].shape[1:3]
      paths = [] if x is None else [(x, f"carry{block}")]
      for level in group:
        y = drop(maps[level]) if level in ("layer4", "layer3") else maps[level]
        features = self.features[0 if level == "layer4" else 1]
        y = units(conv(y, features, f"{level}_reduce"), 2, f"{level}_unit")
        paths.append((y, level))
      if len(paths) > 1:  # multi-resolution fusion
        fused = min(y.shape[-1] for y, _ in paths)
        paths = [(conv(y, fused, f"{name}_fuse"), name) for y, name in paths]
      total = jnp.zeros(())
      for y, _ in paths:
        total = total + resize_bilinear(y, finest, align_corners=True)
      x = chained_pooling(total, f"chain{block}")
      # One unit ends the block; two more begin the next one's path, or precede the classifier.
      x = units(x, 3, f"out{block}")
    logits = conv(drop(x), self.num_classes, "classifier", bias=True)
    return Outputs(resize_bilinear(logits.astype(jnp.float32), image.shape[1:3]))
