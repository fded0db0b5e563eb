"""Normalisation: one module, its kind a setting."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jseg.types import Array, InputError

AXIS = "batch"
"""Name of the pmapped axis over which a batch is split."""

_FEW = 1024  # pixels of a map, over the batch, for which accuracy goes before speed
KINDS = ("batch", "local_batch", "frozen_batch", "group", "none")


def check_norm(kind: str) -> None:
  """Raises InputError where `Norm` has no such kind."""
  if kind not in KINDS:
    raise InputError(f"norm: {kind!r} is unknown; choose from {', '.join(KINDS)}")


class Norm(nn.Module):
  """Normalises each channel of [b ... c], then scales and shifts it. Statistics are float32.

  Kinds:
    batch: batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) over the whole batch, on
      however many devices it lies.
    local_batch: the same over each device's own share of the batch. The running statistics are
      still the mean over devices, so that all devices hold the same.
    frozen_batch: the running statistics, in training too, and a scale and bias that are not
      trained. What papers do when fine-tuning with few images a device.
    group: group normalisation (Wu & He 2018, arXiv:1803.08494) of each image by itself.
    none: the identity.

  The running variance is the biased one, as in Flax (PyTorch keeps n / (n - 1) times that).

  Attributes:
    kind: one of the above.
    momentum: share of the old running statistics that a step keeps.
    epsilon: added to the variance.
    groups: groups of kind "group"; reduced to a divisor where channels do not divide by it.
    dtype: type of the output; None: that of the input.
    param_dtype: type of scale and bias.
  """

  kind: str = "batch"
  momentum: float = 0.9
  epsilon: float = 1e-5
  groups: int = 32
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Normalises x; in training the batch kinds also update the collection `batch_stats`."""
    check_norm(self.kind)
    if self.kind == "none":
      return x
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
    x32 = x.astype(jnp.float32)
    if self.kind == "group":
      x32, mean, variance = self._group_statistics(x32)
      scale, bias = (a.reshape(x32.shape[-2:]) for a in (scale, bias))
    else:
      if self.kind == "frozen_batch":
        scale, bias = lax.stop_gradient((scale, bias))
      mean, variance = self._batch_statistics(x32, train)
    gain = lax.rsqrt(variance + self.epsilon) * _align(scale, variance)
    y = _centre_and_scale(x32, mean, gain, bias)
    return y.reshape(x.shape).astype(self.dtype or x.dtype)

  def _group_statistics(self, x: Array) -> tuple[Array, Array, Array]:
    """Reshapes x to [b ... groups c/groups] and adds its mean and variance [b 1 ... groups 1]."""
    groups = math.gcd(self.groups, x.shape[-1])
    x = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 2), x.ndim - 1)
    return x, x.mean(axes, keepdims=True), x.var(axes, keepdims=True)

  def _batch_statistics(self, x: Array, train: bool) -> tuple[Array, Array]:
    """Mean and variance [c]: the batch's in training, else the running ones."""
    channels = x.shape[-1]
    mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
    variance = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
    if self.kind == "frozen_batch" or not train:
      return mean.value, variance.value
    axes = tuple(range(x.ndim - 1))
    split = is_split()
    shift = jnp.zeros(channels)
    if math.prod(x.shape[:-1]) <= _FEW:
      # The difference of mean squares below loses digits where a map's values lie close together,
      # as after pooling the whole image; for a small map another look at it costs nothing.
      shift = lax.stop_gradient(lax.pmean(x.mean(axes), AXIS) if split else x.mean(axes))
    centred = x - _align(shift, x)
    moments = centred.mean(axes), jnp.square(centred).mean(axes)
    pooled = lax.pmean(moments, AXIS) if split else moments
    if not self.is_initializing():
      keep = self.momentum
      batch_mean, batch_variance = pooled[0] + shift, _variance(*pooled)
      mean.value = keep * mean.value + (1 - keep) * batch_mean
      variance.value = keep * variance.value + (1 - keep) * batch_variance
      # For whoever recomputes the running statistics; nothing where nobody asked for it.
      self.sow("moments", "mean", batch_mean)
      self.sow("moments", "square", batch_variance + jnp.square(batch_mean))
    used = pooled if self.kind == "batch" else moments
    return used[0] + shift, _variance(*used)


@jax.custom_vjp
def _centre_and_scale(x: Array, mean: Array, gain: Array, bias: Array) -> Array:
  """(x - mean) gain + bias. The derivative keeps x alone and computes the difference again.

  JAX's own would also keep the difference, another map of the size of x: memory, and the time to
  write it. All arguments but x are broadcast over its first dimensions.
  """
  return (x - _align(mean, x)) * _align(gain, x) + _align(bias, x)


def _centre_and_scale_forward(
  x: Array, mean: Array, gain: Array, bias: Array
) -> tuple[Array, tuple[Array, ...]]:
  return _centre_and_scale(x, mean, gain, bias), (x, mean, gain, bias)


def _centre_and_scale_backward(
  saved: tuple[Array, ...], dy: Array
) -> tuple[Array, Array, Array, Array]:
  x, mean, gain, bias = saved
  # Two sums over the map give all of it: sum(dy) and sum(dy x). Summing dy (x - mean) would make
  # XLA write the difference out first.
  total = _sum_to(dy, gain.shape)
  dgain = _sum_to(dy * x, gain.shape) - mean * total
  dmean, dbias = _sum_to(-gain * total, mean.shape), _sum_to(total, bias.shape)
  return dy * _align(gain, x), dmean, dgain, dbias.astype(bias.dtype)


_centre_and_scale.defvjp(_centre_and_scale_forward, _centre_and_scale_backward)


def _sum_to(a: Array, shape: tuple[int, ...]) -> Array:
  """Sums what broadcasting had repeated."""
  full = (1,) * (a.ndim - len(shape)) + shape
  axes = tuple(i for i, n in enumerate(full) if n == 1 and a.shape[i] != 1)
  return a.sum(axes).reshape(shape)


def _variance(mean: Array, mean_square: Array) -> Array:
  # Rounding can take the difference below zero where a channel is nearly constant.
  return jnp.maximum(mean_square - jnp.square(mean), 0.0)


def _align(a: Array, like: Array) -> Array:
  return jnp.expand_dims(a, tuple(range(like.ndim - a.ndim)))


def is_split() -> bool:
  """Whether we are traced inside a map over `AXIS`.

  The same module serves the pmapped step and calls without any map: initialisation, evaluation,
  a notebook. An unbound name is an error in JAX, and that error is the public way of asking.
  """
  try:
    lax.axis_size(AXIS)
  except NameError:
    return False
  return True
