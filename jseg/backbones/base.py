"""What all backbones share: the base class, and the feature maps that they return."""

from collections.abc import Sequence
from typing import ClassVar

import flax.struct

from jseg.nn import Layer
from jseg.types import Array, InputError


@flax.struct.dataclass
class Features:
  """Feature maps of a backbone; `features[16]` is the map of nominal stride 16.

  The nominal stride of a map is the stride that it has without dilation. It names the map whatever
  the output stride is: ResNet's last stage is `features[32]` at output stride 8 as well, where the
  maps of nominal stride 8, 16 and 32 all have an eighth of the image's height and width.

  Attributes:
    stages: the last map of each nominal stride, [b h' w' c].
    named: further maps by the names that papers give them ("pool4", "fc7", "indices1").
  """

  stages: dict[int, Array]
  named: dict[str, Array] = flax.struct.field(default_factory=dict)

  def __getitem__(self, stride: int) -> Array:
    if stride not in self.stages:
      known = ", ".join(map(str, self.stages))
      raise InputError(f"backbone: it has no map of stride {stride}, only of {known}")
    return self.stages[stride]


class Backbone(Layer, kw_only=True):
  """A classifier without its head; subclasses implement `__call__(image, *, train=False)`.

  They return `Features`. A backbone that can be dilated has an attribute `output_stride`, one with
  normalization layers an attribute `norm`.

  Attributes:
    strides: nominal strides of the stages that it gives.
    width: factor of all channel counts, for small machines.
    dtype: dtype of the computation; None promotes from inputs and parameters.
    param_dtype: dtype of the parameters.
  """

  strides: ClassVar[Sequence[int]] = (2, 4, 8, 16, 32)

  width: float = 1.0

  def __post_init__(self) -> None:
    if self.width <= 0:
      raise InputError(f"width: {self.width} must be above 0")
    super().__post_init__()

  def scaled(self, channels: int, multiple: int = 1) -> int:
    """Returns `channels` times `width`, rounded to a multiple and at least that."""
    return multiple * max(1, round(channels * self.width / multiple))
