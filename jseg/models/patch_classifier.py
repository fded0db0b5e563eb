"""The patch classifier (Ciresan et al. 2012, "Deep Neural Networks Segment Neuronal Membranes").

The forerunner of fully convolutional networks: a classifier of a patch's middle pixel, slid over
the image. `PatchClassifier` computes the same at every pixel in a fraction of the time: its dense
layers are convolutions, its pools keep the resolution and all that follows is dilated (Giusti et
al. 2013, arXiv:1302.1700; Long et al. 2015, section 3.1).
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jseg.models.base import Network
from jseg.nn import Conv, Dropout, Staged, center_crop, max_pool
from jseg.types import Arguments, Array, InputError, Outputs


class PatchClassifier(Network, Staged):
  """[b h w c] -> Outputs with logits [b h w k], for any h and w. Network N4 of the paper.

  Beyond the border the image is mirrored, as in the paper. In training nothing is: the logits are
  [b h-p+1 w-p+1 k] for patches of p pixels, one for each patch that fits, compared with the labels
  of the middles. Crops of one patch train as in the paper; larger ones train many patches at once.

  Attributes:
    num_classes: number of classes k, background included.
    patch: edge of the patch in pixels, odd.
    kernels: edges of the convolutions' kernels; each is followed by 2 x 2 pooling.
    width: channels of the convolutions.
    fc: units of the dense layer between convolutions and classifier.
    dropout: rate after the dense layer.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  TINY: ClassVar[Arguments] = {"patch": 15, "width": 4, "kernels": (4, 3), "fc": 8}

  patch: int = 95
  kernels: Sequence[int] = (4, 5, 4, 4)
  width: int = 48
  fc: int = 200
  dropout: float = 0.0

  def __post_init__(self) -> None:
    if self.patch % 2 == 0:
      raise InputError(f"patch: {self.patch} must be odd, so that it has a middle")
    self._last_size()
    super().__post_init__()

  def _last_size(self) -> int:
    """Edge of the map that the dense layer sees."""
    n = self.patch
    for kernel in self.kernels:
      n -= kernel - 1
      if n < 2 or n % 2:
        raise InputError(
          f"patch: {self.patch} does not fit kernels {tuple(self.kernels)}: maps must halve evenly "
          "after each; 95 fits (4, 5, 4, 4)"
        )
      n //= 2
    return n

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images; training needs the key "dropout"."""
    x, margin = image, self.patch // 2
    if not train:
      x = jnp.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)], mode="reflect")
    elif min(x.shape[1:3]) < self.patch:
      raise InputError(
        f"a crop of {x.shape[1]} x {x.shape[2]} holds no patch of {self.patch}; "
        f"set augment.crop=({self.patch}, {self.patch})"
      )
    # For a single patch, pools that halve the map are less work; the result is the same.
    single = x.shape[1:3] == (self.patch, self.patch)
    rate = 1
    for kernel in self.kernels:

      def block(net: PatchClassifier, x: Array, kernel: int = kernel, rate: int = rate) -> Array:
        conv = net.typed(Conv)(net.width, (kernel, kernel), padding="VALID", dilation=rate)
        x = nn.relu(conv(x))
        return max_pool(x) if single else _dilated_max(x, rate)

      x = self.stage(block, x)
      rate = 1 if single else 2 * rate
    size = self._last_size()
    dense = self.typed(Conv)
    x = dense(self.fc, (size, size), padding="VALID", dilation=rate, name="fc1")(x)
    x = Dropout(self.dropout)(nn.relu(x), train=train)
    logits = dense(self.num_classes, (1, 1), name="fc2")(x)
    return Outputs(logits.astype(jnp.float32))

  def training_labels(self, label: Array) -> Array:
    """Returns the labels [b h-p+1 w-p+1] of the patches' middles, of [b h w] labels."""
    return center_crop(label, [n - self.patch + 1 for n in label.shape[1:]])


def _dilated_max(x: Array, rate: int) -> Array:
  """Returns the maximum of 2 x 2 pixels that lie `rate` apart, at every place where they fit."""
  x = jnp.maximum(x[:, :-rate], x[:, rate:])
  return jnp.maximum(x[:, :, :-rate], x[:, :, rate:])
