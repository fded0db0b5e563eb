"""Any network of images with a dense CRF as its last layer."""

import flax.linen as nn

from jseg.crf import DenseCRF
from jseg.data.normalize import denormalize
from jseg.types import Array, InputError, Outputs


class WithCRF(nn.Module):
  """A network and a CRF, trained as one (Zheng et al. 2015, arXiv:1502.03240).

  [b h w c] -> Outputs.

  The CRF sees the network's own input, in colours of 0..255; padding is the mean colour. Parameters
  of the network keep their names, so that a run without the layer can initialise one with it
  (`init_from`); the layer's are in `crf`. Auxiliary logits stay as they are.

  Raises:
    InputError: the network's logits don't lie on its image.
  """

  network: nn.Module
  crf: DenseCRF

  def setup(self) -> None:
    """Gives the network's parameters the names that they have without the layer."""
    nn.share_scope(self, self.network)

  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Normalised image [b h w c] -> Outputs."""
    outputs = self.network(image, train=train)
    if outputs.logits.shape[:-1] != image.shape[:-1]:
      raise InputError(
        f"crf.train: logits {outputs.logits.shape} must lie on the image {image.shape}, pixel for "
        "pixel; train networks without padding, and DeepLab V1, without the layer"
      )
    return outputs.replace(logits=self.crf(outputs.logits, denormalize(image)))
