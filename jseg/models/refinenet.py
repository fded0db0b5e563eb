"""RefineNet (Lin et al. 2017, arXiv:1611.06612)."""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import flax.linen as nn
import jax.numpy as jnp

from jseg import backbones
from jseg.models.base import Network, cover_image, depth_to_backbone
from jseg.nn import Conv, Dropout, Staged, check_norm, max_pool, normal, resize_bilinear
from jseg.types import Arguments, Array, InputError, Outputs

CHAINS = ("pool_conv", "conv_pool")
_GAUSS = normal(0.01)
# The parameters' names of the maps, which are a ResNet's, and their strides, coarsest first.
_LEVELS = {"layer4": 32, "layer3": 16, "layer2": 8, "layer1": 4}
_COARSE = ("layer4", "layer3")


class RefineNet(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w.

  Maps of the backbone at strides 32, 16, 8 and 4 are refined, coarsest first (figure 2(c)): each
  goes through residual convolution units, is fused with what came before, pooled in a chain and
  refined again. No norms outside of the backbone, whose statistics are frozen in the paper. Kernels
  there begin as N(0, .01), as in the authors' guosheng/refinenet; by He's rule, for nets without so
  many sums, the first scores would be in the thousands.

  Attributes:
    num_classes: number of classes k, background included.
    backbone: a ResNet, VGG16 or GoogLeNet of `jseg.backbones`.
    blocks: number of RefineNet blocks: 4, one for each map (figure 2(c)), or 2 or 1 (figures 7(b),
      7(a)), each for several maps.
    chain: number of poolings in a chain; 4 in the released weights, 2 in the paper's figure 3.
    order: "pool_conv" (figure 3, DrSleep/refinenet-pytorch) or "conv_pool", which the authors' code
      calls improved.
    features: channels of the coarsest map's path and of the others'.
    dropout: rate on the two coarsest maps and before the classifier.
    norm: kind of normalization of the backbone.
    width: factor of the backbone's channel counts, for small machines.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {
    "backbone": "resnet18",
    "width": 0.125,
    "features": (8, 4),
    "norm": "batch",
    "blocks": 2,
    "chain": 1,
  }

  backbone: str = "resnet101"
  blocks: int = 4
  chain: int = 4
  order: str = "pool_conv"
  features: Sequence[int] = (512, 256)
  dropout: float = 0.5
  norm: str = "frozen_batch"
  width: float = 1.0

  def __post_init__(self) -> None:
    if self.blocks not in (1, 2, 4):
      raise InputError(f"blocks: {self.blocks} must be 1, 2 or 4")
    if self.order not in CHAINS:
      raise InputError(f"order: {self.order!r} is unknown; choose from {', '.join(CHAINS)}")
    if self.chain < 0:
      raise InputError(f"chain: {self.chain} must be at least 0")
    if len(self.features) != 2 or min(self.features) < 1:
      raise InputError(f"features: {self.features} must be two positive channel counts")
    check_norm(self.norm)
    backbones.check(self.backbone, strides=tuple(_LEVELS.values()), width=self.width)
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; training needs the key "dropout"."""
    drop = functools.partial(Dropout(self.dropout), train=train)
    backbone = self.typed(backbones.create)(
      self.backbone, norm=self.norm, width=self.width, remat=self.remat, name="backbone"
    )
    maps = backbone(image, train=train)
    x: Array | None = None
    levels = list(_LEVELS.items())
    per_block = 4 // self.blocks
    for block in range(self.blocks):
      taken = dict(levels[block * per_block : (block + 1) * per_block])
      entering = [drop(maps[n]) if level in _COARSE else maps[n] for level, n in taken.items()]
      run = functools.partial(RefineNet._block, levels=list(taken), block=block)
      x = self.stage(run, x, entering)
    scores = self._conv(drop(cast(Array, x)), self.num_classes, "classifier", bias=True)
    return Outputs(cover_image(scores, image.shape[1:3]))

  def _block(
    self, x: Array | None, maps: Sequence[Array], *, levels: Sequence[str], block: int
  ) -> Array:
    """A RefineNet block, of what the one before gives and maps of the backbone."""
    paths = {} if x is None else {f"carry{block}": x}
    for level, y in zip(levels, maps, strict=True):
      channels = self.features[0 if level == "layer4" else 1]
      y = self._conv(y, channels, f"{level}_reduce")
      paths[level] = self._units(y, 2, f"{level}_unit")
    x = self._chained_pooling(self._fuse(paths, maps[-1].shape[1:3]), f"chain{block}")
    # One unit ends the block; two more begin the next one's path, or precede the classifier.
    return self._units(x, 3, f"out{block}")

  def _conv(self, x: Array, features: int, name: str, *, bias: bool = False) -> Array:
    conv = self.typed(Conv)(features, (3, 3), use_bias=bias, kernel_init=_GAUSS, name=name)
    return conv(x)

  def _units(self, x: Array, count: int, name: str) -> Array:
    """Residual convolution units (section 3.2)."""
    for i in range(count):
      y = self._conv(nn.relu(x), x.shape[-1], f"{name}_{i}_1", bias=True)
      x += self._conv(nn.relu(y), x.shape[-1], f"{name}_{i}_2")
    return x

  def _fuse(self, paths: Mapping[str, Array], size: Sequence[int]) -> Array:
    """Multi-resolution fusion (section 3.2): the sum at the finest map's size."""
    if len(paths) > 1:
      features = min(y.shape[-1] for y in paths.values())
      paths = {name: self._conv(y, features, f"{name}_fuse") for name, y in paths.items()}
    total = jnp.zeros(())
    for y in paths.values():
      total = total + resize_bilinear(y, size, align_corners=True)
    return total

  def _chained_pooling(self, x: Array, name: str) -> Array:
    """Chained residual pooling (section 3.2)."""
    x = top = nn.relu(x)
    for i in range(self.chain):
      if self.order == "pool_conv":
        top = self._conv(max_pool(top, 5, 1, padding=2), x.shape[-1], f"{name}_{i}")
      else:
        top = max_pool(self._conv(top, x.shape[-1], f"{name}_{i}"), 5, 1, padding=2)
      x += top
    return x

  @classmethod
  def upgrade(cls, arguments: Arguments) -> Arguments:
    """Translates `depth`, the ResNet's."""
    return depth_to_backbone(arguments)
