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
    # Here and not in the functions below, so that their gradients add up in float32.
    x32 = x.astype(jnp.float32)
    if self.kind == "group":
      groups = math.gcd(self.groups, channels)
      y = _group_norm(x32, scale, bias, groups=groups, epsilon=self.epsilon)
    else:
      if self.kind == "frozen_batch":
        scale, bias = lax.stop_gradient((scale, bias))
      mean, variance = self._batch_statistics(x32, train)
      y = _normalize(x32, mean, variance, scale, bias, epsilon=self.epsilon)
    return y.astype(self.dtype or x.dtype)

  def _batch_statistics(self, x: Array, train: bool) -> tuple[Array, Array]:
    """Mean and variance [c]: the batch's in training, else the running ones."""
    channels = x.shape[-1]
    mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
    variance = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
    if self.kind == "frozen_batch" or not train:
      return mean.value, variance.value
    batch, used = _statistics(x, split=is_split(), local=self.kind == "local_batch")
    if not self.is_initializing():
      fixed = lax.stop_gradient(batch)
      mean.value, variance.value = _running(
        (mean.value, variance.value), fixed, momentum=self.momentum
      )
      if self.is_mutable_collection("moments"):  # for precise batch norm
        self.sow("moments", "mean", fixed[0])
        self.sow("moments", "square", fixed[1] + jnp.square(fixed[0]))
    return used


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


@traced_once("split", "local")
def _statistics(
  x: Array, *, split: bool, local: bool
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
  """Mean and variance [c] of the whole batch, and those to use: the same, or the device's own."""
  axes = tuple(range(x.ndim - 1))
  shift = jnp.zeros(x.shape[-1])
  if math.prod(x.shape[:-1]) <= _FEW:
    # The difference of mean squares below loses digits where a map's values lie close together, as
    # after pooling the whole image; for a small map a second pass costs nothing.
    shift = lax.stop_gradient(lax.pmean(x.mean(axes), AXIS) if split else x.mean(axes))
  centered = x - _align(shift, x)
  moments = centered.mean(axes), jnp.square(centered).mean(axes)
  pooled = lax.pmean(moments, AXIS) if split else moments
  batch = pooled[0] + shift, _variance(*pooled)
  return batch, (moments[0] + shift, _variance(*moments)) if local else batch


@traced_once("momentum")
def _running(old: Sequence[Array], batch: Sequence[Array], *, momentum: float) -> list[Array]:
  return [momentum * a + (1 - momentum) * b for a, b in zip(old, batch, strict=True)]


@traced_once("groups", "epsilon")
def _group_norm(x: Array, scale: Array, bias: Array, *, groups: int, epsilon: float) -> Array:
  """Normalizes each of the groups of channels of each image of [b ... c]."""
  grouped = x.reshape(*x.shape[:-1], groups, -1)
  axes = (*range(1, x.ndim - 1), x.ndim)
  mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
  scale, bias = (a.reshape(grouped.shape[-2:]) for a in (scale, bias))
  return _normalize(grouped, mean, variance, scale, bias, epsilon=epsilon).reshape(x.shape)


@traced_once("epsilon")
def _normalize(
  x: Array, mean: Array, variance: Array, scale: Array, bias: Array, *, epsilon: float
) -> Array:
  """(x - mean) / sqrt(variance + epsilon) scale + bias; mean and variance broadcast against x."""
  gain = _rsqrt(variance + epsilon) * _align(scale, variance)
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
