"""Normalization: one layer, whose kind is an argument."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jseg.nn.devices import AXIS, is_split
from jseg.nn.layer import Layer
from jseg.nn.once import traced_once
from jseg.types import Array, InputError, Variables

_FEW = 1024  # pixels of a map, over the batch, up to which accuracy goes before speed
KINDS = ("batch", "local_batch", "frozen_batch", "group", "none")


def check_norm(kind: str, argument: str = "norm") -> None:
  """Raises InputError, which names the argument, if `Norm` has no such kind."""
  if kind not in KINDS:
    raise InputError(f"{argument}: {kind!r} is unknown; choose from {', '.join(KINDS)}")


class Norm(Layer):
  """Normalizes each channel of [b ... c], then scales and shifts it. Statistics are float32.

  Kinds:
    batch: batch normalization (Ioffe & Szegedy 2015, arXiv:1502.03167) over the whole batch, on
      however many devices it lies.
    local_batch: batch normalization over each device's share of the batch. The running statistics
      are still the mean over devices, so that all devices hold the same.
    frozen_batch: normalization by the running statistics, in training too, with a scale and bias
      that are not trained; for fine-tuning with few images per device.
    group: group normalization (Wu & He 2018, arXiv:1803.08494) of each image by itself.
    none: the identity.

  The running variance is the biased one, as in Flax (PyTorch keeps n / (n - 1) times that).

  Attributes:
    kind: one of the kinds above.
    momentum: share of the old running statistics that a training step keeps.
    epsilon: constant added to the variance.
    groups: number of groups of kind "group"; reduced to a divisor of the number of channels.
    dtype: dtype of the output; None: that of the input.
  """

  kind: str = "batch"
  momentum: float = 0.9
  epsilon: float = 1e-5
  groups: int = 32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Normalizes x; in training the batch kinds also update the collection `batch_stats`."""
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
    gain = _rsqrt(variance + self.epsilon) * _align(scale, variance)
    y = _center_and_scale(x32, mean, gain, bias)
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
      # as after pooling the whole image; for a small map a second pass costs nothing.
      shift = lax.stop_gradient(lax.pmean(x.mean(axes), AXIS) if split else x.mean(axes))
    centered = x - _align(shift, x)
    moments = centered.mean(axes), jnp.square(centered).mean(axes)
    pooled = lax.pmean(moments, AXIS) if split else moments
    if not self.is_initializing():
      keep = self.momentum
      batch_mean, batch_variance = pooled[0] + shift, _variance(*pooled)
      mean.value = keep * mean.value + (1 - keep) * batch_mean
      variance.value = keep * variance.value + (1 - keep) * batch_variance
      # For precise batch norm; stores nothing unless "moments" is mutable.
      self.sow("moments", "mean", batch_mean)
      self.sow("moments", "square", batch_variance + jnp.square(batch_mean))
    used = pooled if self.kind == "batch" else moments
    return used[0] + shift, _variance(*used)


def average_moments(moments: Sequence[Variables]) -> Variables:
  """Exact running statistics over several training batches.

  "Precise batch norm": Badrinarayanan et al. 2017, section 4; Wu & Johnson 2021, arXiv:2105.07576.

  Args:
    moments: collections "moments" that `Norm` stores where they are mutable, one per batch.

  Returns:
    The collection "batch_stats" of the same norms.
  """
  average = jax.tree.map(lambda *a: jnp.stack(a).mean(0), *moments)

  def statistics(tree: Variables) -> Variables:
    if "square" not in tree:
      return {name: statistics(child) for name, child in tree.items()}
    (mean,), (square,) = tree["mean"], tree["square"]
    return {"mean": mean, "var": _variance(mean, square)}

  return statistics(average)


@traced_once()
def _center_and_scale(x: Array, mean: Array, gain: Array, bias: Array) -> Array:
  return _scaled(x, mean, gain, bias)


@jax.custom_vjp
def _scaled(x: Array, mean: Array, gain: Array, bias: Array) -> Array:
  """(x - mean) gain + bias. The derivative keeps only x and computes the difference again.

  JAX's own would also keep the difference, another map of the size of x: memory, and the time to
  write it. All arguments but x are broadcast over its first dimensions.
  """
  return (x - _align(mean, x)) * _align(gain, x) + _align(bias, x)


def _scaled_forward(
  x: Array, mean: Array, gain: Array, bias: Array
) -> tuple[Array, tuple[Array, ...]]:
  return _scaled(x, mean, gain, bias), (x, mean, gain, bias)


def _scaled_backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array, Array]:
  x, mean, gain, bias = saved
  # Two sums over the map give all of it: sum(dy) and sum(dy x). Summing dy (x - mean) would make
  # XLA write the difference out first.
  total = _sum_to(dy, gain.shape)
  dgain = _sum_to(dy * x, gain.shape) - mean * total
  dmean, dbias = _sum_to(-gain * total, mean.shape), _sum_to(total, bias.shape)
  return dy * _align(gain, x), dmean, dgain, dbias.astype(bias.dtype)


_scaled.defvjp(_scaled_forward, _scaled_backward)


def _sum_to(a: Array, shape: tuple[int, ...]) -> Array:
  """Sums over the dimensions along which broadcasting repeated an array of this shape."""
  full = (1,) * (a.ndim - len(shape)) + shape
  axes = tuple(i for i, n in enumerate(full) if n == 1 and a.shape[i] != 1)
  return a.sum(axes).reshape(shape)


def _variance(mean: Array, mean_square: Array) -> Array:
  # Rounding can take the difference below zero where a channel is nearly constant. Not a maximum,
  # for whose derivative JAX would keep a quotient that halves it where both are equal.
  variance = mean_square - jnp.square(mean)
  return jnp.where(variance < 0, 0, variance)


@jax.custom_jvp
def _rsqrt(x: Array) -> Array:
  """1 / sqrt(x). The derivative keeps only this; JAX's own would also keep its quotient by x."""
  return lax.rsqrt(x)


@_rsqrt.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  root = _rsqrt(*primals)
  return root, -0.5 * tangents[0] * root * root * root


def _align(a: Array, like: Array) -> Array:
  return jnp.expand_dims(a, tuple(range(like.ndim - a.ndim)))
