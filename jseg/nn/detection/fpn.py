"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144, section 3)."""

from collections.abc import Mapping

import flax.linen as nn

from jseg.nn.conv import Conv
from jseg.nn.cut import cut
from jseg.nn.initializers import root_of_inputs, uniform
from jseg.nn.layer import Layer
from jseg.nn.norm import Norm
from jseg.nn.resize import resize_nearest
from jseg.types import Array


class FPN(Layer):
  """Maps of strides 4 to 32 -> [P2, P3, P4, P5, P6], each [b h w features], strides 4 to 64.

  Each map passes a 1x1 convolution, the coarser level is added at twice its size, and a 3x3
  convolution follows. P6 is every second pixel of P5; only proposals are made from it.

  Attributes:
    features: channels of every level.
    norm: kind of normalization after each convolution; "none" gives them a bias instead.
  """

  features: int = 256
  norm: str = "none"

  @nn.compact
  def __call__(self, maps: Mapping[int, Array], *, train: bool = False) -> list[Array]:
    """Computes the levels, the finest first, from maps by stride."""

    def conv(x: Array, kernel: int, name: str) -> Array:
      x = self.typed(Conv)(
        self.features,
        (kernel, kernel),
        use_bias=self.norm == "none",
        kernel_init=uniform(root_of_inputs(3)),
        name=name,
      )(x)
      return self.typed(Norm)(self.norm, name=f"{name}_norm")(x, train=train)

    coarser: Array | None = None
    levels: list[Array] = []
    for number in (5, 4, 3, 2):
      x = conv(maps[2**number], 1, f"lateral{number}")
      coarser = x if coarser is None else x + resize_nearest(coarser, x.shape[1:3])
      levels.insert(0, conv(coarser, 3, f"level{number}"))
    return [*levels, cut(levels[-1], slice(None), slice(None, None, 2), slice(None, None, 2))]
