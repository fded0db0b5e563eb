"""The dense CRF as a trainable layer."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jseg.arithmetic import cdiv
from jseg.crf.call import log_marginals
from jseg.crf.params import SIGMAS, WEIGHTS, CrfParams, Numbers, check_params
from jseg.types import Array, InputError


class DenseCRF(nn.Module):
  """CRF as recurrent network (Zheng et al. 2015, arXiv:1502.03240), trained end to end.

  Parameters are `spatial_weight` and `bilateral_weight` [k], one per class, and `compatibility`
  [k k], initially Potts; with `train_bandwidths` also the logarithms of the three bandwidths.
  Untrained, the layer equals `dense_crf` with its `params`. It computes in float32.

  Attributes:
    params: initial values and static settings. Zheng et al. train with 5 iterations.
    train_bandwidths: whether the bandwidths are trained, too.
    ndim: number of spatial axes, 3 for volumes.
    stride: at what part of the resolution the CRF runs, such as 8 for an eighth, the stride of many
      networks: logits and image are shrunk and marginals enlarged, linearly. Bandwidths stay in
      pixels of the whole image.
  """

  params: CrfParams = CrfParams(iterations=5)
  train_bandwidths: bool = False
  ndim: int = 2
  stride: int = 1

  @nn.compact
  def __call__(self, logits: Array, image: Array) -> Array:
    """Logits [b h w k] and image [b h w c] in 0..255 -> log q [b h w k], which again are logits.

    Raises:
      InputError: `params` that `dense_crf` refuses, too, or a stride below 1.
    """
    check_params(self.params)
    if self.stride < 1:
      raise InputError(f"stride: {self.stride} must be at least 1, the whole resolution")
    k = logits.shape[-1]

    def value(name: str, initial: Numbers) -> Array:
      return self.param(name, lambda _: jnp.asarray(initial, jnp.float32))

    learned: dict[str, Any] = {
      "compatibility": value("compatibility", self._initial_compatibility(k))
    }
    for name in WEIGHTS:
      initial = getattr(self.params, name)
      learned[name] = value(name, initial if np.ndim(initial) else np.full(k, initial))
    if self.train_bandwidths:
      for name in SIGMAS:
        learned[name] = jnp.exp(value(f"log_{name}", np.log(getattr(self.params, name))))
    params = dataclasses.replace(self.params, **learned)
    if self.stride == 1:
      return log_marginals(logits, image, params, ndim=self.ndim)
    return self._at_stride(logits, image, params)

  def _at_stride(self, logits: Array, image: Array, params: CrfParams) -> Array:
    shape = logits.shape[1:-1]
    small = tuple(cdiv(n, self.stride) for n in shape)
    scaled: dict[str, Any] = {
      name: jnp.asarray(getattr(params, name), jnp.float32) / self.stride
      for name in ("spatial_sigma", "bilateral_sigma_xy")
    }
    log_q = log_marginals(
      _resized(logits, small),
      _resized(image, small),
      dataclasses.replace(params, **scaled),
      ndim=self.ndim,
    )
    q = _resized(jnp.exp(log_q), shape)
    return jnp.log(jnp.maximum(q, jnp.finfo(q.dtype).tiny))

  def _initial_compatibility(self, k: int) -> np.ndarray:
    mu = self.params.compatibility
    mu = -np.ones(k) if mu is None else np.asarray(mu)
    return np.diag(mu) if mu.ndim == 1 else mu


def _resized(x: Array, shape: tuple[int, ...]) -> Array:
  """Resizes [b h w c] linearly, in float32."""
  x = x.astype(jnp.float32)
  return jax.image.resize(x, (len(x), *shape, x.shape[-1]), "linear")
