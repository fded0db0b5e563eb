"""Any network of images with a dense CRF as its last layer."""

import flax.linen as nn

from jseg.crf import DenseCRF
from jseg.images import denormalize
from jseg.models.base import Network
from jseg.types import Array, InputError, Outputs


class WithCRF(Network):
  """A network and a CRF, trained as one (Zheng et al. 2015, arXiv:1502.03240).

  [b h w c] -> Outputs.

  The CRF sees the network's own input, in colors of 0..255; padding is the mean color. Parameters
  of the network keep their names, so that a run without the layer can initialize one with it
  (`init_from`); the layer's are in `crf`. Auxiliary logits stay as they are.

  Attributes:
    network: network whose logits lie on its image.
    crf: the layer.
  """

  network: nn.Module
  crf: DenseCRF

  def setup(self) -> None:
    """Gives the network's parameters the names that they have without the layer."""
    nn.share_scope(self, self.network)

  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images [b h w c].

    Raises:
      InputError: the network's logits don't lie on its image.
    """
    outputs = self.network(image, train=train)
    if outputs.logits.shape[:-1] != image.shape[:-1]:
      raise InputError(
        f"crf.train: logits {outputs.logits.shape} must lie on the image {image.shape}, pixel for "
        "pixel; train networks without padding, and DeepLab V1, without the layer"
      )
    return outputs.replace(logits=self.crf(outputs.logits, denormalize(image)))
