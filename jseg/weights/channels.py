"""First kernels for images of other channels than they were trained on."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jseg.arithmetic import cdiv
from jseg.parameters import parameter_name


def image_kernels(network: nn.Module, image_shape: tuple[int, ...]) -> set[str]:
  """Names of the kernels that read the image: those whose inputs are its channels.

  Args:
    network: network.
    image_shape: shape [h w c] or [d h w c] of an image that it takes.
  """
  *size, channels = image_shape

  def shapes(c: int) -> dict[str, tuple[int, ...]]:
    image = jnp.zeros((1, *size, c))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {parameter_name(path): leaf.shape for path, leaf in leaves}

  # What follows the channels, and no other axis, is told by an image of one more.
  ours, wider = shapes(channels), shapes(channels + 1)
  return {
    name
    for name, shape in ours.items()
    if len(shape) > 2 and shape[-2] == channels and wider[name][-2] == channels + 1
  }


def adapt_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Makes a kernel for images of other channels.

  As timm (`adapt_input_conv`) and segmentation_models.pytorch do: to one channel, the sum over the
  channels; to others, the channels repeated in their order, c, c + 1, ..., times old / new, so that
  an image whose channels are all alike gives what it gave.

  Args:
    kernel: float32 [... old f].
    channels: the new number of channels.

  Returns:
    float32 [... channels f].
  """
  old = kernel.shape[-2]
  if channels == 1:
    return kernel.sum(-2, keepdims=True)
  repeated = np.concatenate([kernel] * cdiv(channels, old), -2)[..., :channels, :]
  return (repeated * np.float32(old / channels)).astype(kernel.dtype)
