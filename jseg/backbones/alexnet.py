"""AlexNet (Krizhevsky, Sutskever & Hinton 2012)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn import Conv, local_response_norm, max_pool
from jseg.types import Array


class AlexNet(nn.Module):
  """[b h w c] -> {"pool1", "pool2", "pool5", "fc7"}, each [b h' w' c'].

  By default the one-column network of Krizhevsky 2014 (arXiv:1404.5997), whose weights torchvision
  has. `widths=(96, 256, 384, 384, 256), groups=2, lrn=True` is the published one of 2012.

  Attributes:
    widths: channels of the five convolutions.
    groups: of convolutions 2, 4 and 5.
    lrn: whether pool1 and pool2 are followed by local response normalisation.
    first_padding: pixels around the image in the first convolution.
    fc: channels of fc6 and fc7; none if empty.
    fc_padding: of fc6, "SAME" or pixels.
    dropout: rate after fc6 and fc7.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  widths: Sequence[int] = (64, 192, 384, 256, 256)
  groups: int = 1
  lrn: bool = False
  first_padding: int = 2
  fc: Sequence[int] = ()
  fc_padding: str | int = "SAME"
  dropout: float = 0.5
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """Computes the features of normalised images."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    features = {}

    def conv(x: Array, layer: int, kernel: int, grouped: bool, **geometry: Any) -> Array:
      groups = self.groups if grouped else 1
      width = self.widths[layer - 1]
      name = f"conv{layer}"
      return nn.relu(
        Conv(width, (kernel, kernel), groups=groups, name=name, **geometry, **types)(x)
      )

    def pool(x: Array, layer: int) -> Array:
      x = max_pool(x, 3, 2, ceil=True)
      if self.lrn and layer < 5:
        x = local_response_norm(x)
      features[f"pool{layer}"] = x
      return x

    x = pool(conv(x, 1, 11, False, strides=4, padding=self.first_padding), 1)
    x = pool(conv(x, 2, 5, True), 2)
    x = conv(conv(x, 3, 3, False), 4, 3, True)
    x = pool(conv(x, 5, 3, True), 5)
    if self.fc:
      drop = nn.Dropout(self.dropout, deterministic=not train)
      x = Conv(self.fc[0], (6, 6), padding=self.fc_padding, name="fc6", **types)(x)
      x = drop(nn.relu(x))
      features["fc7"] = drop(nn.relu(Conv(self.fc[1], (1, 1), name="fc7", **types)(x)))
    return features
