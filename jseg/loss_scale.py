"""Dynamic loss scaling, for gradients in float16 (Micikevicius et al. 2018, arXiv:1710.03740).

Gradients below 6e-8 are 0 in float16. So the loss is multiplied by a scale before it is
differentiated, and the gradient divided by it in float32. The scale is halved by a step whose
gradient overflows, which changes nothing else, and doubled after many that don't.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jseg.types import Array, Params

LossScale = Mapping[str, Array]
"""`scale`, float32, and `since`, int32, steps since it changed; empty where none is needed."""

_FIRST = 2.0**15
_LEAST = 1.0
_PATIENCE = 1000  # steps without an overflow after which the scale is doubled


def begin(dtype: jax.typing.DTypeLike | None) -> LossScale:
  """The scale of a new run that computes in a dtype; empty unless that is float16."""
  if dtype is None or jnp.dtype(dtype) != jnp.float16:
    return {}
  return {"scale": jnp.float32(_FIRST), "since": jnp.int32(0)}


def scaled(loss: Array, scale: LossScale) -> Array:
  """The loss to differentiate."""
  return loss * scale["scale"] if scale else loss


def unscaled(grads: Params, scale: LossScale) -> Params:
  """The gradient of the loss, from that of the `scaled` one."""
  return jax.tree.map(lambda g: g / scale["scale"], grads) if scale else grads


def is_finite(grads: Params) -> Array:
  """Whether a gradient, summed over the devices, is finite throughout: bool, the same on all."""
  return jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]).all()


def may_fall(scale: LossScale) -> Array:
  """Whether a lower scale may help; where not, what overflows is the loss itself."""
  return scale["scale"] > _LEAST


def after(scale: LossScale, finite: Array) -> LossScale:
  """The scale for the next step, given whether the gradient was finite."""
  since = jnp.where(finite, scale["since"] + 1, 0)
  grown = since >= _PATIENCE
  value = jnp.where(grown, scale["scale"] * 2, scale["scale"])
  value = jnp.where(finite, value, jnp.maximum(scale["scale"] / 2, _LEAST))
  return {"scale": value, "since": jnp.where(grown, 0, since)}
