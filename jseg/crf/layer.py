"""The dense CRF as a trainable layer."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jseg.crf.inference import CrfParams, check_settings, log_marginals
from jseg.types import Array


class DenseCRF(nn.Module):
  """CRF as recurrent network (Zheng et al. 2015, arXiv:1502.03240), trained end to end.

  Parameters are `spatial_weight` and `bilateral_weight` [k], one per class, and `compatibility`
  [k k], Potts at first; with `train_bandwidths` also the logarithms of the three bandwidths.
  Untrained, the layer is `dense_crf` with its `params`.

  Attributes:
    params: initial values and static settings. Zheng et al. train with 5 iterations.
    train_bandwidths: whether bandwidths are parameters, too.
    ndim: number of spatial dimensions, 3 for volumes.
  """

  params: Any = CrfParams(iterations=5)
  train_bandwidths: bool = False
  ndim: int = 2

  @nn.compact
  def __call__(self, logits: Array, image: Array) -> Array:
    """Logits [b h w k], image [b h w c] in 0..255 -> log q [b h w k], which again are logits."""
    check_settings(self.params)
    k = logits.shape[-1]

    def value(name: str, initial: Any) -> Array:
      return self.param(name, lambda _: jnp.asarray(initial, jnp.float32))

    potts = -np.eye(k)
    mu = self.params.compatibility
    mu = potts if mu is None else np.diag(mu) if np.ndim(mu) == 1 else mu
    learnt = {"compatibility": value("compatibility", mu)}
    for name in ("spatial_weight", "bilateral_weight"):
      initial = getattr(self.params, name)
      learnt[name] = value(name, initial if np.ndim(initial) else np.full(k, initial))
    if self.train_bandwidths:
      for name in ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
        learnt[name] = jnp.exp(value(f"log_{name}", np.log(getattr(self.params, name))))
    return log_marginals(logits, image, self.params.replace(**learnt), ndim=self.ndim)
