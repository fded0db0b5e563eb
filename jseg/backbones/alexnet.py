"""AlexNet (Krizhevsky, Sutskever & Hinton 2012)."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from jseg.backbones.base import Backbone, Features
from jseg.nn import Conv, Dropout, Staged, local_response_norm, max_pool
from jseg.types import Array


class AlexNet(Backbone, Staged):
  """[b h w c] -> Features with the map of stride 32, and by name "pool1", "pool2", "pool5", "fc7".

  By default the one-column network of Krizhevsky 2014 (arXiv:1404.5997), whose weights torchvision
  has. `widths=(96, 256, 384, 384, 256), groups=2, lrn=True` is the published one of 2012. Its
  unpadded windows leave fewer than one element per stride, so earlier maps are given by name only.

  Attributes:
    widths: channels of the five convolutions, even numbers.
    groups: groups of convolutions 2, 4 and 5.
    lrn: whether local response normalization follows pool1 and pool2.
    first_padding: pixels around the image in the first convolution.
    fc: channels of fc6 and fc7; none if empty.
    fc_padding: padding of fc6, "SAME" or pixels.
    dropout: rate after fc6 and fc7.
  """

  strides = (32,)

  widths: Sequence[int] = (64, 192, 384, 256, 256)
  groups: int = 1
  lrn: bool = False
  first_padding: int = 2
  fc: Sequence[int] = ()
  fc_padding: str | int = "SAME"
  dropout: float = 0.5

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Features:
    """Computes the features of normalized images; training with `fc` needs the key "dropout"."""
    named = {}

    def conv(x: Array, layer: int, kernel: int, grouped: bool, **geometry: object) -> Array:
      def compute(net: AlexNet, x: Array) -> Array:
        make = net.typed(Conv)
        convolution = make(
          # Even, as the published columns are halves of it.
          net.scaled(net.widths[layer - 1], 2),
          (kernel, kernel),
          groups=net.groups if grouped else 1,
          name=f"conv{layer}",
          **geometry,
        )
        return nn.relu(convolution(x))

      return self.stage(compute, x)

    def pool(x: Array, layer: int) -> Array:
      x = max_pool(x, 3, 2, ceil=True)
      if self.lrn and layer < 5:
        x = local_response_norm(x)
      named[f"pool{layer}"] = x
      return x

    x = pool(conv(image, 1, 11, False, strides=4, padding=self.first_padding), 1)
    x = pool(conv(x, 2, 5, True), 2)
    x = conv(conv(x, 3, 3, False), 4, 3, True)
    x = pool(conv(x, 5, 3, True), 5)
    stages = {32: x}
    if self.fc:
      drop = functools.partial(Dropout(self.dropout), train=train)
      dense = self.typed(Conv)
      x = drop(nn.relu(dense(self.fc[0], (6, 6), padding=self.fc_padding, name="fc6")(x)))
      named["fc7"] = drop(nn.relu(dense(self.fc[1], (1, 1), name="fc7")(x)))
    return Features(stages, named)
