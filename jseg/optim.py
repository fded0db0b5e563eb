"""Learning-rate schedules and optimizers: optax's own, by name, in the chain of a run."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import optax

from jseg.groups import Group, depth_factors, find, members, read_groups
from jseg.lookup import lookup
from jseg.parameters import parameter_name
from jseg.types import Arguments, Array, InputError, Params, Tree


def _poly(lr: float, steps: int, power: float, **_: object) -> optax.Schedule:
  return optax.polynomial_schedule(lr, 0.0, power, steps)


def _cosine(lr: float, steps: int, **_: object) -> optax.Schedule:
  return optax.cosine_decay_schedule(lr, steps)


def _constant(lr: float, **_: object) -> optax.Schedule:
  return optax.constant_schedule(lr)


def _step(
  lr: float, steps: int, milestones: Sequence[float], decay: float, **_: object
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


def scale_rates(factor: Callable[[str], float]) -> optax.GradientTransformation:
  """Multiplies each parameter's update by a factor of its name, a path with "/" between."""

  def scale(path: tuple[object, ...], update: Array) -> Array:
    return update * factor(parameter_name(path))

  return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def frozen(params: Params, prefixes: Sequence[str], groups: Sequence[Group] = ()) -> Params:
  """Marks the parameters that get no update.

  Args:
    params: parameters of the network.
    prefixes: names such as "backbone" or "backbone/conv1", below which they are.
    groups: groups, some of which may be frozen.

  Raises:
    InputError: a prefix or group names none of them, or nothing is left to train.
  """
  members(params, groups)
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  names = [parameter_name(path) for path in paths]
  for prefix in prefixes:
    if not any(_is_below(name, prefix) for name in names):
      top = sorted({name.partition("/")[0] for name in names})
      raise InputError(
        f"freeze: no parameter's name begins with {prefix!r}; the network has "
        f"{', '.join(top)}, and what is inside them, as in {names[0].rpartition('/')[0]!r}"
      )
  found = [
    any(_is_below(name, prefix) for prefix in prefixes)
    or ((group := find(name, groups)) is not None and group.freeze)
    for name in names
  ]
  if all(found):
    what = (*prefixes, *(group.match for group in groups if group.freeze))
    raise InputError(f"freeze: {what} leaves nothing to train; name fewer parts")
  return jax.tree.unflatten(jax.tree.structure(params), found)


def frozen_names(params: Params, prefixes: Sequence[str], groups: Sequence[object]) -> list[str]:
  """Returns the names of the `frozen` parameters, given `groups` as in a configuration."""
  marks = jax.tree_util.tree_leaves_with_path(frozen(params, prefixes, read_groups(groups)))
  return [parameter_name(path) for path, mark in marks if mark]


def _freeze(
  optimizer: optax.GradientTransformation, prefixes: Sequence[str], groups: Sequence[Group]
) -> optax.GradientTransformation:
  """Leaves what is `frozen` as it is; the other parameters are all that `optimizer` sees."""

  def labels(params: Params) -> Params:
    marks = frozen(params, prefixes, groups)
    return jax.tree.map(lambda f: "frozen" if f else "trained", marks)

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


# name: a function in optax's manner, `(learning_rate, ...) -> transformation`, or one `(schedule=,
# weight_decay=, momentum=, nesterov=) -> transformations`, applied in order; one of the user's own
# may be either, and return a single transformation.
OPTIMIZERS: dict[str, str | Callable[..., Sequence[optax.GradientTransformation]]] = {
  "sgd": _sgd,
  "adamw": "optax:adamw",
  "adabelief": "optax:adabelief",
  "adadelta": "optax:adadelta",
  "adagrad": "optax:adagrad",
  "adam": "optax:adam",
  "adamax": "optax:adamax",
  "adan": "optax:adan",
  "amsgrad": "optax:amsgrad",
  "lamb": "optax:lamb",
  "lars": "optax:lars",
  "lion": "optax:lion",
  "nadam": "optax:nadam",
  "nadamw": "optax:nadamw",
  "radam": "optax:radam",
  "rmsprop": "optax:rmsprop",
  "yogi": "optax:yogi",
}

_GIVEN = ("schedule", "learning_rate", "weight_decay", "momentum", "nesterov")
_MASKS = ("mask", "weight_decay_mask")

_Rule = Callable[[float], Sequence[optax.GradientTransformation]]
"""`(weight_decay) -> transformations` of the gradient to an update, learning rate included."""


def _make_rule(
  name: str, schedule: optax.Schedule, momentum: float, nesterov: bool, options: Arguments
) -> _Rule:
  """Looks up an optimizer by name.

  Raises:
    InputError: there is no such optimizer, or it refuses its options.
  """
  make = lookup("optimizer:", name, OPTIMIZERS)
  if not callable(make):
    raise InputError(f"optimizer: {name!r} is {make!r}; it must be a function")
  parameters = inspect.signature(make).parameters
  optaxs = "learning_rate" in parameters
  _check_options(name, options, parameters, optaxs)
  mask = next((m for m in _MASKS if m in parameters), None)

  def rule(weight_decay: float) -> Sequence[optax.GradientTransformation]:
    if not optaxs:
      arguments = {"weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
      made = make(schedule=schedule, **arguments, **options)
      return (made,) if isinstance(made, optax.GradientTransformation) else made
    if mask and "weight_decay" in parameters:
      return (make(schedule, weight_decay=weight_decay, **{mask: decayed}, **options),)
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    return decay, make(schedule, **options)

  if optaxs:
    _try(rule, name, options)
  return rule


def _check_options(
  name: str, options: Arguments, parameters: Mapping[str, inspect.Parameter], optaxs: bool
) -> None:
  """Raises InputError for options that an optimizer doesn't have, or that are keys of their own."""
  reserved = {*_GIVEN[:3], *_MASKS} if optaxs else set(_GIVEN)
  known = [
    p.name
    for p in parameters.values()
    if p.name not in reserved and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
  ]
  free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  for key in options:
    if key in reserved:
      keys = {"learning_rate": "lr", **dict.fromkeys(_MASKS, "groups")}
      raise InputError(f"options.{key}: set {keys.get(key, key)} instead")
    if key not in known and not free:
      hint = f"there are {', '.join(known)}" if known else "it has none"
      raise InputError(f"options.{key}: {name!r} has no such argument; {hint}")


def _try(rule: _Rule, name: str, options: Arguments) -> None:
  """Raises what an optimizer raises for its options, without computing anything."""
  params = {"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}

  def update(params: Params) -> Tree:
    made = optax.chain(*rule(0.0))
    return made.update(params, made.init(params), params)

  try:
    jax.eval_shape(update, params)
  except (TypeError, ValueError, AttributeError) as error:
    first = str(error).strip().partition("\n")[0]
    raise InputError(f"options: {name!r} refuses {dict(options)} ({first})") from None


def _by_decay(
  rule: _Rule, weight_decay: float, groups: Sequence[Group]
) -> Sequence[optax.GradientTransformation]:
  """The rule with each group's own weight decay."""

  def of(name: str) -> str:
    group = find(name, groups)
    own = None if group is None else group.weight_decay
    return str(float(weight_decay if own is None else own))

  def labels(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: of(parameter_name(path)), params)

  own = {float(group.weight_decay) for group in groups if group.weight_decay is not None}
  every = {float(weight_decay), *own}
  if len(every) == 1:
    return rule(weight_decay)
  rules = {str(value): optax.chain(*rule(value)) for value in every}
  return (optax.partition(rules, labels),)


def _rates(
  head_lr: float,
  bias_lr: float,
  layer_decay: float,
  pretrained: Collection[str],
  groups: Sequence[Group],
  order: Sequence[str],
) -> Sequence[optax.GradientTransformation]:
  """The factors of the parameters' rates, which multiply; nothing where all are 1."""
  if (head_lr, bias_lr, layer_decay) == (1, 1, 1) and all(group.lr == 1 for group in groups):
    return ()
  depths = depth_factors(order, layer_decay)

  def factor(name: str) -> float:
    if layer_decay != 1 and name not in depths:
      raise InputError(f"layer_decay: the place of {name!r} isn't known; name it in `order`")
    group = find(name, groups)
    return (
      (1.0 if name in pretrained else head_lr)
      * (bias_lr if name.rpartition("/")[2] == "bias" else 1.0)
      * (1.0 if group is None else group.lr)
      * depths.get(name, 1.0)
    )

  return (scale_rates(factor),)


def make_optimizer(
  schedule: optax.Schedule,
  pretrained: Collection[str] = (),
  order: Sequence[str] = (),
  *,
  optimizer: str | optax.GradientTransformation = "sgd",
  momentum: float = 0.9,
  nesterov: bool = False,
  options: Arguments | None = None,
  weight_decay: float = 1e-4,
  clip_norm: float = 0.0,
  clip_value: float = 0.0,
  clip_block: float = 0.0,
  head_lr: float = 1.0,
  bias_lr: float = 1.0,
  layer_decay: float = 1.0,
  groups: Sequence[object] = (),
  freeze: Sequence[str] = (),
) -> optax.GradientTransformation:
  """Makes the optimizer of a run, which turns gradients into updates.

  The factors of a parameter's learning rate (`head_lr`, `bias_lr`, `layer_decay`, its group's)
  multiply, as Caffe's `lr_mult` in the published networks.

  Args:
    schedule: learning rate by step.
    pretrained: names of the parameters that are not new.
    order: names of all parameters in the order in which the network makes them, for `layer_decay`
      (`jseg.state.parameter_order`).
    optimizer: "sgd", or one of optax's, with optax's defaults. Or your own as
      "package.module:name", a function in optax's manner, `(learning_rate, ...) -> transformation`,
      or `(schedule=, weight_decay=, momentum=, nesterov=) -> transformation`. In Python also a
      transformation, which has its own rate and decay.
    momentum: momentum of "sgd"; others have theirs in `options`.
    nesterov: whether "sgd" uses Nesterov's momentum.
    options: other arguments of the optimizer by name, as b2 of "adam".
    weight_decay: weight decay of kernels; biases and norms have none. It is decoupled where optax's
      function has it as an argument ("adamw", "lion", "lamb", ...); else it is added to the
      gradient, as in Caffe and PyTorch ("sgd", "adam", "rmsprop", ...).
    clip_norm: largest global norm of the gradient; 0 is no limit.
    clip_value: largest size of each number of the gradient, clipped before the norms; 0 is no
      limit.
    clip_block: largest root mean square of each parameter's gradient, clipped before the global
      norm; 0 is no limit.
    head_lr: factor of the learning rate of new parameters, those that are not pretrained.
    bias_lr: factor of the learning rate of biases; 2 in Caffe's recipes.
    layer_decay: factor of the learning rate from one block of the backbone to the block before it,
      in (0, 1]; 1 is off.
    groups: parameters that are trained in a way of their own, as {"match": "^backbone/", "lr": 0.1,
      "weight_decay": 0.0} or {"match": "norm", "freeze": True}: `match` is a regular expression
      found in their names, `lr` a factor of the learning rate. A parameter belongs to the first
      that matches.
    freeze: parts of the network that get no update, no weight decay either, and no part in
      clipping: names such as "backbone" or "backbone/conv1". Running statistics of norms in them
      are no parameters and go on changing, unless the network's norm is "frozen_batch".

  Raises:
    InputError: a value is impossible; names in `freeze` and `groups` are checked by the optimizer's
      `init`.
  """
  if not 0 <= momentum < 1:
    raise InputError(f"momentum: {momentum} must be at least 0 and below 1")
  if weight_decay < 0:
    raise InputError(f"weight_decay: {weight_decay} must be at least 0")
  for key, value in {
    "clip_norm": clip_norm,
    "clip_value": clip_value,
    "clip_block": clip_block,
  }.items():
    if not value >= 0:
      raise InputError(f"{key}: {value} must be above 0, or 0 for no limit")
  for key, value in {"head_lr": head_lr, "bias_lr": bias_lr}.items():
    if not value > 0:
      raise InputError(f"{key}: {value} must be above 0; 1 is the same rate as the others'")
  if not 0 < layer_decay <= 1:
    raise InputError(f"layer_decay: {layer_decay} must be above 0 and at most 1, which is off")
  parts = read_groups(groups)
  clips = [
    *([optax.clip(clip_value)] if clip_value else []),
    *([optax.clip_by_block_rms(clip_block)] if clip_block else []),
    *([optax.clip_by_global_norm(clip_norm)] if clip_norm else []),
  ]
  rates = _rates(head_lr, bias_lr, layer_decay, frozenset(pretrained), parts, order)
  if isinstance(optimizer, optax.GradientTransformation):
    _check_given(parts, options)
    around = [*clips, optimizer, *rates]
    chain = optax.chain(*around) if len(around) > 1 else optimizer
  else:
    make = _make_rule(optimizer, schedule, momentum, nesterov, options or {})
    chain = optax.chain(*clips, *_by_decay(make, weight_decay, parts), *rates)
  return _freeze(chain, freeze, parts) if freeze or parts else chain


def _check_given(groups: Sequence[Group], options: Arguments | None) -> None:
  """Raises InputError for what a transformation that was given in Python can't be told."""
  if options:
    raise InputError("options: a transformation given in Python has its arguments; leave them out")
  if any(group.weight_decay is not None for group in groups):
    raise InputError(
      "groups: a transformation given in Python has its own weight decay; leave weight_decay out"
    )
