"""Learning-rate schedules and the optax chain."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jseg.types import Array, InputError

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine", "constant", "step")


def make_schedule(
  *,
  steps: int,
  lr: float = 1e-3,
  schedule: str = "poly",
  power: float = 0.9,
  warmup_steps: int = 0,
  milestones: Sequence[float] = (0.6, 0.9),
  decay: float = 0.1,
) -> Callable[[Array | int], Array]:
  """The learning rate as a function of the step.

  Args:
    steps: length of the whole run; the schedule ends there.
    lr: highest learning rate, reached after the warm-up.
    schedule: "poly", lr (1 - t)^power (Chen et al. 2017, arXiv:1606.00915, section 4.1.1);
      "cosine", lr (1 + cos(pi t)) / 2; "constant"; "step", lr decay^(milestones
      passed). t runs from 0 to 1 over the steps after the warm-up.
    power: exponent of "poly".
    warmup_steps: steps over which the rate rises linearly from lr / warmup_steps to lr.
    milestones: of "step", each a fraction t.
    decay: of "step", the factor at each milestone.

  Raises:
    InputError: a value is impossible.
  """
  if schedule not in SCHEDULES:
    raise InputError(f"optim.schedule: {schedule!r} is unknown; choose from {', '.join(SCHEDULES)}")
  if not lr > 0:
    raise InputError(f"optim.lr: {lr} must be above 0; 0.01 is a usual start for sgd")
  if not 0 <= warmup_steps < max(steps, 1):
    raise InputError(f"optim.warmup_steps: {warmup_steps} must be at least 0 and below {steps=}")

  def shape(t: Array) -> Array:
    if schedule == "poly":
      return (1.0 - t) ** power
    if schedule == "cosine":
      return (1.0 + jnp.cos(jnp.pi * t)) / 2.0
    if schedule == "step":
      return decay ** jnp.sum(t >= jnp.asarray(milestones))
    return jnp.ones_like(t)

  def rate(step: Array | int) -> Array:
    step = jnp.asarray(step, jnp.float32)
    t = jnp.clip((step - warmup_steps) / (steps - warmup_steps), 0.0, 1.0)
    rise = jnp.minimum((step + 1.0) / max(warmup_steps, 1), 1.0)
    return lr * rise * shape(t)

  return rate


def decayed(params: Any) -> Any:
  """Marks the parameters that weight decay applies to: kernels, not biases, scales, offsets."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def scale_by_group(
  head_lr: float, bias_lr: float, pretrained: Collection[str]
) -> optax.GradientTransformation:
  """Multiplies updates: by `head_lr` but for `pretrained` parameters, by `bias_lr` for biases.

  The factors of both multiply, as Caffe's `lr_mult` in the published networks. Names are paths with
  "/" between.
  """

  def scale(path: Any, update: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    head = 1.0 if name in pretrained else head_lr
    return update * head * (bias_lr if path[-1].key == "bias" else 1.0)

  return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def frozen(params: Any, prefixes: Sequence[str]) -> Any:
  """Marks the parameters below `prefixes`, names such as "backbone" or "backbone/conv1".

  Raises:
    InputError: a prefix names none of them, or nothing is left to train.
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
  for prefix in prefixes:
    if not any(_is_below(name, prefix) for name in names):
      top = sorted({name.partition("/")[0] for name in names})
      raise InputError(
        f"optim.freeze: no parameter's name begins with {prefix!r}; the network has "
        f"{', '.join(top)}, and what is inside them, as in {names[0].rpartition('/')[0]!r}"
      )
  found = [any(_is_below(name, prefix) for prefix in prefixes) for name in names]
  if all(found):
    raise InputError(f"optim.freeze: {tuple(prefixes)} leaves nothing to train; name fewer parts")
  return jax.tree.unflatten(jax.tree.structure(params), found)


def _freeze(
  optimizer: optax.GradientTransformation, prefixes: Sequence[str]
) -> optax.GradientTransformation:
  """Leaves what is `frozen` as it is; the other parameters are all that `optimizer` sees."""

  def labels(params: Any) -> Any:
    return jax.tree.map(lambda f: "frozen" if f else "trained", frozen(params, prefixes))

  return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _is_below(name: str, prefix: str) -> bool:
  return f"{name}/".startswith(f"{prefix.rstrip('/')}/")


def make_optimizer(
  schedule: Callable[[Array | int], Array],
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
  """Gradients to updates.

  Args:
    schedule: learning rate by step.
    pretrained: names of the parameters that are not new; see `scale_by_group`.
    optimizer: "sgd" (weight decay is added to the gradient, as in Caffe and torch) or "adamw"
      (decoupled; betas .9 and .999).
    momentum: of "sgd".
    nesterov: of "sgd".
    weight_decay: for kernels only; biases and norms are left out.
    clip_norm: largest global norm of the gradient; 0 is no limit.
    head_lr: factor of the learning rate of new parameters, those that are not pretrained.
    bias_lr: factor of the learning rate of biases; 2 in Caffe's recipes.
    freeze: parts of the network that get no update, no weight decay either, and no part in
      `clip_norm`: names such as "backbone" or "backbone/conv1". Running statistics of norms in them
      are no parameters and go on changing, unless the network's norm is "frozen_batch".

  Raises:
    InputError: a value is impossible; names in `freeze` are checked by the optimizer's `init`.
  """
  if optimizer not in OPTIMIZERS:
    raise InputError(
      f"optim.optimizer: {optimizer!r} is unknown; choose from {', '.join(OPTIMIZERS)}"
    )
  if not 0 <= momentum < 1:
    raise InputError(f"optim.momentum: {momentum} must be at least 0 and below 1")
  if weight_decay < 0:
    raise InputError(f"optim.weight_decay: {weight_decay} must be at least 0")
  if clip_norm < 0:
    raise InputError(f"optim.clip_norm: {clip_norm} must be above 0, or 0 for no limit")
  for key, value in {"head_lr": head_lr, "bias_lr": bias_lr}.items():
    if not value > 0:
      raise InputError(f"optim.{key}: {value} must be above 0; 1 is the same rate as the others'")
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  groups = []
  if (head_lr, bias_lr) != (1, 1):
    groups.append(scale_by_group(head_lr, bias_lr, frozenset(pretrained)))
  if optimizer == "adamw":
    rule = [optax.adamw(schedule, weight_decay=weight_decay, mask=decayed)]
  else:
    rule = [
      optax.add_decayed_weights(weight_decay, mask=decayed),
      optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov),
    ]
  chain = optax.chain(*clip, *rule, *groups)
  return _freeze(chain, freeze) if freeze else chain
