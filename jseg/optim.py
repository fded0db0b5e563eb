"""Learning-rate schedules and optimizers: optax's own, by name, in the chain of a run."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import optax

from jseg.lookup import lookup
from jseg.parameters import parameter_name
from jseg.types import Array, InputError, Params


def _poly(lr: float, steps: int, power: float, **_: Any) -> optax.Schedule:
  return optax.polynomial_schedule(lr, 0.0, power, steps)


def _cosine(lr: float, steps: int, **_: Any) -> optax.Schedule:
  return optax.cosine_decay_schedule(lr, steps)


def _constant(lr: float, **_: Any) -> optax.Schedule:
  return optax.constant_schedule(lr)


def _step(
  lr: float, steps: int, milestones: Sequence[float], decay: float, **_: Any
) -> optax.Schedule:
  boundaries: dict[int, float] = {}
  for milestone in milestones:
    step = math.ceil(round(milestone * steps, 6))  # .7 x 10 is a little more than 7
    boundaries[step] = boundaries.get(step, 1.0) * decay
  return optax.piecewise_constant_schedule(lr, boundaries)


# name: `(lr=, steps=, power=, milestones=, decay=) -> schedule`, over the steps after the warm-up.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
  "poly": _poly,
  "cosine": _cosine,
  "constant": _constant,
  "step": _step,
}


def make_schedule(
  *,
  steps: int,
  lr: float = 1e-3,
  schedule: str = "poly",
  power: float = 0.9,
  warmup_steps: int = 0,
  milestones: Sequence[float] = (0.6, 0.9),
  decay: float = 0.1,
) -> optax.Schedule:
  """The learning rate as a function of the step.

  Args:
    steps: length of the whole run; the schedule ends there.
    lr: highest learning rate, reached after the warm-up.
    schedule: "poly", lr (1 - t)^power (Chen et al. 2017, arXiv:1606.00915, section 4.1.1);
      "cosine", lr (1 + cos(pi t)) / 2; "constant"; "step", lr decay^(milestones passed); t runs
      from 0 to 1 over the steps after the warm-up. Or your own as "package.module:name", a function
      `(lr=, steps=, power=, milestones=, decay=) -> schedule` over these steps.
    power: exponent of "poly".
    warmup_steps: steps over which the rate rises linearly from lr / warmup_steps to lr.
    milestones: fractions t at which "step" changes the rate.
    decay: factor of the rate at each milestone of "step".

  Raises:
    InputError: a value is impossible.
  """
  make = lookup("schedule:", schedule, SCHEDULES)
  if not lr > 0:
    raise InputError(f"lr: {lr} must be above 0; 0.01 is a usual start for sgd")
  if not 0 <= warmup_steps < max(steps, 1):
    raise InputError(f"warmup_steps: {warmup_steps} must be at least 0 and below {steps=}")
  shape = make(lr=lr, steps=steps - warmup_steps, power=power, milestones=milestones, decay=decay)
  if not warmup_steps:
    return shape
  # The last step of the rise has the full rate: the schedule begins one step after it.
  rise = optax.linear_schedule(lr / warmup_steps, lr, max(warmup_steps - 1, 1))
  return optax.join_schedules([rise, shape], [warmup_steps])


def decayed(params: Params) -> Params:
  """Marks the parameters that weight decay applies to: kernels, not biases, scales or offsets."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def scale_by_group(
  head_lr: float, bias_lr: float, pretrained: Collection[str]
) -> optax.GradientTransformation:
  """Multiplies updates: by `head_lr` but for `pretrained` parameters, by `bias_lr` for biases.

  The factors of both multiply, as Caffe's `lr_mult` in the published networks. Names are paths with
  "/" between.
  """

  def scale(path: Any, update: Array) -> Array:
    name = parameter_name(path)
    head = 1.0 if name in pretrained else head_lr
    return update * head * (bias_lr if path[-1].key == "bias" else 1.0)

  return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def frozen(params: Params, prefixes: Sequence[str]) -> Params:
  """Marks the parameters below `prefixes`, names such as "backbone" or "backbone/conv1".

  Raises:
    InputError: a prefix names none of them, or nothing is left to train.
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  names = [parameter_name(path) for path in paths]
  for prefix in prefixes:
    if not any(_is_below(name, prefix) for name in names):
      top = sorted({name.partition("/")[0] for name in names})
      raise InputError(
        f"freeze: no parameter's name begins with {prefix!r}; the network has "
        f"{', '.join(top)}, and what is inside them, as in {names[0].rpartition('/')[0]!r}"
      )
  found = [any(_is_below(name, prefix) for prefix in prefixes) for name in names]
  if all(found):
    raise InputError(f"freeze: {tuple(prefixes)} leaves nothing to train; name fewer parts")
  return jax.tree.unflatten(jax.tree.structure(params), found)


def _freeze(
  optimizer: optax.GradientTransformation, prefixes: Sequence[str]
) -> optax.GradientTransformation:
  """Leaves what is `frozen` as it is; the other parameters are all that `optimizer` sees."""

  def labels(params: Params) -> Any:
    return jax.tree.map(lambda f: "frozen" if f else "trained", frozen(params, prefixes))

  return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _is_below(name: str, prefix: str) -> bool:
  return f"{name}/".startswith(f"{prefix.rstrip('/')}/")


def _sgd(
  schedule: optax.Schedule, weight_decay: float, momentum: float, nesterov: bool
) -> Sequence[optax.GradientTransformation]:
  return (
    optax.add_decayed_weights(weight_decay, mask=decayed),
    optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov),
  )


def _adamw(
  schedule: optax.Schedule, weight_decay: float, **_: Any
) -> Sequence[optax.GradientTransformation]:
  return (optax.adamw(schedule, weight_decay=weight_decay, mask=decayed),)


# name: `(schedule=, weight_decay=, momentum=, nesterov=) -> transformations`, applied in order; one
# of the user's own may return a single transformation.
OPTIMIZERS: dict[str, Callable[..., Sequence[optax.GradientTransformation]]] = {
  "sgd": _sgd,
  "adamw": _adamw,
}


def make_optimizer(
  schedule: optax.Schedule,
  pretrained: Collection[str] = (),
  *,
  optimizer: str = "sgd",
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 1e-4,
  clip_norm: float = 0.0,
  head_lr: float = 1.0,
  bias_lr: float = 1.0,
  freeze: Sequence[str] = (),
) -> optax.GradientTransformation:
  """Makes the optimizer of a run, which turns gradients into updates.

  Args:
    schedule: learning rate by step.
    pretrained: names of the parameters that are not new; see `scale_by_group`.
    optimizer: "sgd" (weight decay is added to the gradient, as in Caffe and PyTorch) or "adamw"
      (decoupled; betas .9 and .999). Or your own as "package.module:name", a function
      `(schedule=, weight_decay=, momentum=, nesterov=) -> transformation`.
    momentum: momentum of "sgd".
    nesterov: whether "sgd" uses Nesterov's momentum.
    weight_decay: weight decay of kernels; biases and norms have none.
    clip_norm: largest global norm of the gradient; 0 is no limit.
    head_lr: factor of the learning rate of new parameters, those that are not pretrained.
    bias_lr: factor of the learning rate of biases; 2 in Caffe's recipes.
    freeze: parts of the network that get no update, no weight decay either, and no part in
      `clip_norm`: names such as "backbone" or "backbone/conv1". Running statistics of norms in them
      are no parameters and go on changing, unless the network's norm is "frozen_batch".

  Raises:
    InputError: a value is impossible; names in `freeze` are checked by the optimizer's `init`.
  """
  make = lookup("optimizer:", optimizer, OPTIMIZERS)
  if not 0 <= momentum < 1:
    raise InputError(f"momentum: {momentum} must be at least 0 and below 1")
  if weight_decay < 0:
    raise InputError(f"weight_decay: {weight_decay} must be at least 0")
  if clip_norm < 0:
    raise InputError(f"clip_norm: {clip_norm} must be above 0, or 0 for no limit")
  for key, value in {"head_lr": head_lr, "bias_lr": bias_lr}.items():
    if not value > 0:
      raise InputError(f"{key}: {value} must be above 0; 1 is the same rate as the others'")
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  rule = make(schedule=schedule, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)
  if isinstance(rule, optax.GradientTransformation):
    rule = (rule,)
  scale = (head_lr, bias_lr) != (1, 1)
  groups = [scale_by_group(head_lr, bias_lr, frozenset(pretrained))] if scale else []
  chain = optax.chain(*clip, *rule, *groups)
  return _freeze(chain, freeze) if freeze else chain
