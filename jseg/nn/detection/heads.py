"""The heads of Mask R-CNN (He et al. 2017, arXiv:1703.06870): boxes, masks and keypoints."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jseg.nn.conv import Conv
from jseg.nn.initializers import he_normal, normal
from jseg.nn.layer import Layer
from jseg.nn.norm import Norm
from jseg.nn.resize import resize_bilinear
from jseg.nn.upsample import ConvTranspose
from jseg.types import Array


class BoxHead(Layer):
  """Regions [n s s c] -> class logits [n k] and deltas [n k 4], one box per class, float32.

  Attributes:
    num_classes: number of classes k, background included.
    features: channels of the 3x3 convolutions.
    dense: channels of the fully connected layers.
    convs: number of 3x3 convolutions at the beginning.
    layers: number of fully connected layers that follow.
    norm: kind of normalization of the convolutions.
  """

  num_classes: int
  features: int
  dense: int
  convs: int = 0
  layers: int = 2
  norm: str = "none"

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
    """Computes both from the same features."""
    x = _convs(self, x, self.features, self.convs, self.norm, train=train)
    for i in range(1, self.layers + 1):
      dense = self.typed(Conv)(self.dense, x.shape[1:3], padding="VALID", name=f"dense{i}")
      x = nn.relu(dense(x))

    def predict(features: int, deviation: float, name: str) -> Array:
      init = normal(deviation)
      y = self.typed(Conv)(features, (1, 1), kernel_init=init, name=name)(x)
      return y.astype(jnp.float32).reshape(len(x), -1)

    logits = predict(self.num_classes, 0.01, "score")
    deltas = predict(4 * self.num_classes, 0.001, "box")
    return logits, deltas.reshape(len(x), self.num_classes, 4)


class MaskHead(Layer):
  """Regions [n s s c] and their classes [n] -> mask logits [n 2s 2s] of those classes, float32.

  Each class has a mask of its own (section 3), but only that of the region's class is computed.

  Attributes:
    num_classes: number of classes k, background included.
    features: channels of the convolutions.
    convs: number of 3x3 convolutions at the beginning.
    norm: kind of normalization of the 3x3 convolutions.
  """

  num_classes: int
  features: int
  convs: int = 4
  norm: str = "none"

  @nn.compact
  def __call__(self, x: Array, classes: Array, *, train: bool = False) -> Array:
    """Computes the masks of the given classes."""
    x = _convs(self, x, self.features, self.convs, self.norm, train=train)
    upsample = self.typed(ConvTranspose)(
      self.features, (2, 2), strides=2, use_bias=True, name="upsample"
    )
    x = nn.relu(upsample(x))
    return self.typed(ClassConv)(self.num_classes, name="score")(x, classes)


class KeypointHead(Layer):
  """Regions [n s s c] -> logits [n 4s 4s q] of where in the region each keypoint is, float32.

  A softmax over the 4s x 4s cells of each keypoint (section 5). Without norms, as in torchvision.

  Attributes:
    keypoints: number of keypoints q.
    features: channels of the 3x3 convolutions.
    convs: number of 3x3 convolutions at the beginning.
  """

  keypoints: int
  features: int = 512
  convs: int = 8

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Computes the logits, interpolated to twice the size of the last layer's output."""
    x = _convs(self, x, self.features, self.convs, "none", train=False)
    x = self.typed(ConvTranspose)(self.keypoints, (4, 4), strides=2, use_bias=True, name="score")(x)
    x = x[:, 1:-1, 1:-1].astype(jnp.float32)
    return resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))


class ClassConv(Layer):
  """1x1 convolution that computes one output per region: [n h w c], [n] -> [n h w], float32.

  Attributes:
    num_classes: number of outputs k to choose from.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x: Array, classes: Array) -> Array:
    """Multiplies by the kernels of the given classes only."""
    shape = (1, 1, x.shape[-1], self.num_classes)
    init = he_normal
    kernel = self.param("kernel", init, shape, self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    # Products instead of look-ups, whose derivative would be a scatter.
    one = jax.nn.one_hot(classes, self.num_classes, dtype=x.dtype)
    y = jnp.einsum("nhwc,nc->nhw", x, one @ kernel[0, 0].T)
    return (y + (one @ bias)[:, None, None]).astype(jnp.float32)


def _convs(head: Layer, x: Array, features: int, number: int, norm: str, *, train: bool) -> Array:
  """Applies 3x3 convolutions with norm and ReLU, which become children of `head`."""
  for i in range(1, number + 1):
    x = head.typed(Conv)(features, (3, 3), use_bias=norm == "none", name=f"conv{i}")(x)
    x = nn.relu(head.typed(Norm)(norm, name=f"norm{i}")(x, train=train))
  return x
