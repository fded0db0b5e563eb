import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jseg.parameters
from jseg.groups import depth_factors, describe_groups, read_groups
from jseg.optim import OPTIMIZERS, make_optimizer, make_schedule
from jseg.state import parameter_order
from jseg.types import InputError


@pytest.mark.parametrize(
  ("knobs", "expected"),
  [
    ({"schedule": "poly", "power": 2.0}, [1.0, 0.5625, 0.25, 0.0625, 0.0]),
    ({"schedule": "cosine"}, [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0]),
    ({"schedule": "constant"}, [1.0] * 5),
    ({"schedule": "step", "milestones": (0.5, 0.75)}, [1.0, 1.0, 0.1, 0.01, 0.01]),
    ({"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0]),
  ],
)
def test_schedules_by_hand(knobs, expected):
  schedule = make_schedule(steps=8 if "warmup_steps" in knobs else 4, lr=1.0, **knobs)
  np.testing.assert_allclose([schedule(i) for i in range(5)], expected, atol=1e-6)


def test_sgd_by_hand():
  optimizer = make_optimizer(lambda _: 0.1, momentum=0.5, weight_decay=0.01)
  params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0)}
  grads = {"kernel": jnp.full((1, 1), 1.0), "bias": jnp.full(1, 1.0)}
  state = optimizer.init(params)
  for kernel, bias in [(2 - 0.1 * 1.02, 1.9), (None, 1.9 - 0.1 * 1.5)]:
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    # The kernel is decayed, the bias is not.
    if kernel is not None:
      assert float(params["kernel"][0, 0]) == pytest.approx(kernel)
    assert float(params["bias"][0]) == pytest.approx(bias)


def test_adamw_leaves_out_biases_from_decay():
  optimizer = make_optimizer(lambda _: 0.1, optimizer="adamw", weight_decay=0.5)
  params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0)}
  grads = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  assert float(updates["kernel"][0, 0]) == pytest.approx(-0.1 * 0.5 * 2.0)
  assert float(updates["bias"][0]) == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rates_of_new_parameters_and_biases(optimizer):
  def layer():
    return {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0), "scale": jnp.full(1, 2.0)}

  params = {"backbone": {"conv": layer()}, "classifier": layer(), "block": {"backbone": layer()}}
  grads = jax.tree.map(lambda p: p / 4, params)

  filled = [f"backbone/conv/{name}" for name in ("kernel", "bias", "scale")]

  def updates(**factors):
    chain = make_optimizer(lambda _: 0.1, filled, optimizer=optimizer, weight_decay=0.01, **factors)
    return chain.update(grads, chain.init(params), params)[0]

  plain = updates()
  if optimizer == "sgd":  # the kernel is decayed; the bias isn't, whatever its rate
    assert float(plain["classifier"]["kernel"][0, 0]) == pytest.approx(-0.1 * (0.5 + 0.02))
    assert float(plain["classifier"]["bias"][0]) == pytest.approx(-0.1 * 0.5)
  factors = jax.tree.map(jnp.divide, updates(head_lr=10.0, bias_lr=2.0), plain)
  backbone, head = ({"kernel": k, "bias": 2 * k, "scale": k} for k in (1.0, 10.0))
  expected = {"backbone": {"conv": backbone}, "classifier": head, "block": {"backbone": head}}
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(factors), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=str(path))


def test_momentum_gathers_in_the_head_as_elsewhere():
  optimizer = make_optimizer(lambda _: 0.1, momentum=0.5, weight_decay=0.0, head_lr=10.0)
  params = {"fc": {"kernel": jnp.zeros((1, 1))}}
  grads = jax.tree.map(jnp.ones_like, params)
  updates, state = optimizer.update(grads, optimizer.init(params), params)
  assert float(updates["fc"]["kernel"][0, 0]) == pytest.approx(-1.0)
  updates, _ = optimizer.update(grads, state, params)
  assert float(updates["fc"]["kernel"][0, 0]) == pytest.approx(-1.5)


def test_clipping():
  optimizer = make_optimizer(lambda _: 1.0, momentum=0.0, weight_decay=0.0, clip_norm=1.0)
  params = {"kernel": jnp.zeros((1, 2))}
  updates, _ = optimizer.update({"kernel": jnp.array([[3.0, 4.0]])}, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"], [[-0.6, -0.8]], rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_parameters_stay_and_the_others_move_as_without_them(optimizer):
  def layer():
    return {"kernel": jnp.full((1, 2), 2.0), "bias": jnp.full(2, 2.0)}

  params = {"backbone": {"conv1": layer(), "conv10": layer()}, "classifier": layer()}
  knobs = {"optimizer": optimizer, "momentum": 0.9, "weight_decay": 0.1, "clip_norm": 1.0}
  knobs |= {"head_lr": 10.0, "bias_lr": 2.0}

  def trained(params, **more):
    chain = make_optimizer(lambda _: 0.1, ["backbone/conv10/kernel"], **knobs, **more)
    state = chain.init(params)
    for step in range(3):
      grads = jax.tree.map(lambda p, step=step: p / (step + 1), params)
      updates, state = chain.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params, state

  # The prefix is a whole part of a name: conv10 isn't conv1.
  result, state = trained(params, freeze=("backbone/conv1", "classifier/bias"))
  for name in ("kernel", "bias"):
    np.testing.assert_array_equal(result["backbone"]["conv1"][name], 2.0)
  np.testing.assert_array_equal(result["classifier"]["bias"], 2.0)
  rest = {"backbone": {"conv10": layer()}, "classifier": {"kernel": layer()["kernel"]}}
  alone, alone_state = trained(rest)
  assert float(alone["classifier"]["kernel"][0, 0]) != 2.0
  np.testing.assert_array_equal(
    result["backbone"]["conv10"]["kernel"], alone["backbone"]["conv10"]["kernel"]
  )
  np.testing.assert_array_equal(
    result["backbone"]["conv10"]["bias"], alone["backbone"]["conv10"]["bias"]
  )
  np.testing.assert_array_equal(result["classifier"]["kernel"], alone["classifier"]["kernel"])
  # No memory goes to moments of what is frozen, and a run without it has the state it always had.
  sizes = [sum(a.size for a in jax.tree.leaves(s)) for s in (state, alone_state)]
  assert sizes[0] == sizes[1]
  states = [make_optimizer(lambda _: 0.1, **knobs, **f).init(rest) for f in ({}, {"freeze": ()})]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
  ("freeze", "match"),
  [
    (
      ("backbon",),
      r"begins with 'backbon'; the network has backbone, classifier, .*'backbone/conv1'",
    ),
    (("backbone", "conv1"), r"no parameter's name begins with 'conv1'"),
    (("",), r"begins with ''"),
    (("backbone", "classifier/"), r"\('backbone', 'classifier/'\) leaves nothing to train"),
  ],
)
def test_names_to_freeze_are_checked(freeze, match):
  params = {
    "backbone": {"conv1": {"kernel": jnp.ones((1, 1))}},
    "classifier": {"bias": jnp.ones(1)},
  }
  optimizer = make_optimizer(lambda _: 0.1, freeze=freeze)
  with pytest.raises(InputError, match=match):
    jax.jit(optimizer.init)(params)


@pytest.mark.parametrize(
  ("make", "knobs", "match"),
  [
    (make_schedule, {"lr": 0.0}, r"lr: 0.0 must be above 0"),
    (make_schedule, {"lr": -1.0}, r"lr: -1.0 must be above 0"),
    (make_schedule, {"lr": float("nan")}, r"lr: nan must be above 0"),
    (make_schedule, {"schedule": "exp"}, r"'exp' is unknown; choose from poly, cosine"),
    (make_schedule, {"warmup_steps": 10}, r"warmup_steps: 10 must be .* below steps=10"),
    (make_optimizer, {"optimizer": "lyon"}, r"'lyon' is unknown; did you mean lion"),
    (make_optimizer, {"optimizer": "optax:__version__"}, r"it must be a function"),
    (make_optimizer, {"clip_value": -1.0}, r"clip_value: -1.0 must"),
    (make_optimizer, {"clip_block": float("nan")}, r"clip_block: nan must"),
    (make_optimizer, {"layer_decay": 0.0}, r"layer_decay: 0.0 must be above 0 and at most 1"),
    (
      make_optimizer,
      {"optimizer": "adam", "options": {"beta2": 0.9}},
      r"options.beta2: 'adam' has no such argument; there are b1, b2",
    ),
    (
      make_optimizer,
      {"optimizer": "adam", "options": {"b2": "high"}},
      r"options: 'adam' refuses \{'b2': 'high'\}",
    ),
    (make_optimizer, {"options": {"momentum": 0.5}}, r"options.momentum: set momentum instead"),
    (
      make_optimizer,
      {"optimizer": "lion", "options": {"learning_rate": 0.5}},
      r"options.learning_rate: set lr instead",
    ),
    (
      make_optimizer,
      {"optimizer": optax.sgd(1.0), "options": {"b2": 0.9}},
      r"options: a transformation given in Python",
    ),
    (
      make_optimizer,
      {"optimizer": optax.sgd(1.0), "groups": ({"match": "a", "weight_decay": 0.1},)},
      r"groups: a transformation given in Python",
    ),
    (make_optimizer, {"momentum": 1.0}, r"momentum: 1.0 must"),
    (make_optimizer, {"weight_decay": -1.0}, r"weight_decay: -1.0 must"),
    (make_optimizer, {"clip_norm": -1.0}, r"clip_norm: -1.0 must"),
    (make_optimizer, {"head_lr": 0.0}, r"head_lr: 0.0 must be above 0"),
    (make_optimizer, {"bias_lr": float("nan")}, r"bias_lr: nan must be above 0"),
  ],
)
def test_impossible_values(make, knobs, match):
  arguments = {"steps": 10} if make is make_schedule else {"schedule": lambda _: 1.0}
  with pytest.raises(InputError, match=match):
    make(**arguments, **knobs)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant", "step"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_schedules_equal_their_formulas_at_every_step(schedule, warmup_steps):
  # What runs of earlier versions were trained with: written out, not made of optax's parts.
  steps, lr, power, milestones, decay = 40, 0.3, 0.9, (0.25, 0.7, 0.7), 0.5
  made = make_schedule(
    steps=steps,
    lr=lr,
    schedule=schedule,
    power=power,
    warmup_steps=warmup_steps,
    milestones=milestones,
    decay=decay,
  )
  for step in range(steps):
    t = min(max((step - warmup_steps) / (steps - warmup_steps), 0), 1)
    shape = {
      "poly": (1 - t) ** power,
      "cosine": (1 + np.cos(np.pi * t)) / 2,
      "constant": 1,
      "step": decay ** sum(t >= m for m in milestones),
    }[schedule]
    rise = min((step + 1) / max(warmup_steps, 1), 1)
    # Float32 in a dozen operations; one step off is 1e-2 and more.
    np.testing.assert_allclose(made(step), lr * rise * shape, rtol=1e-5, atol=1e-7)


def test_ones_own_optimizer_and_schedule_by_name(tmp_path, monkeypatch):
  (tmp_path / "my_rules.py").write_text(
    "import optax\n"
    "def signs(schedule, **_):\n"
    "  return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(schedule))\n"
    "def half(lr, steps, **_):\n"
    "  return lambda step: lr / 2\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  schedule = make_schedule(steps=5, lr=1.0, schedule="my_rules:half")
  optimizer = make_optimizer(schedule, optimizer="my_rules:signs")
  updates, _ = optimizer.update(jnp.array([3.0, -0.1]), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
  np.testing.assert_allclose(updates, [-0.5, 0.5])


PARAMS = {
  "backbone": {
    "conv1": {"kernel": jnp.full((1, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "conv2": {"kernel": jnp.full((1, 2), 2.0)},
  },
  "head": {"kernel": jnp.full((1, 2), 2.0), "bias": jnp.full(2, 2.0)},
}
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def moves(grads=ONES, **knobs):
  """Each parameter's first update, by name, at a rate of 1."""
  chain = make_optimizer(lambda _: 1.0, **{"momentum": 0.0, "weight_decay": 0.0, **knobs})
  updates, _ = chain.update(grads, chain.init(PARAMS), PARAMS)
  leaves = jax.tree_util.tree_leaves_with_path(updates)
  return {jseg.parameters.parameter_name(path): float(leaf.ravel()[0]) for path, leaf in leaves}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_by_name_moves_against_the_gradient_and_decays_kernels_alone(name):
  # Gradients of -1 let the parameters grow; a decay of .75 x 2 lets kernels shrink.
  grads = jax.tree.map(jnp.negative, ONES)
  plain = moves(grads, optimizer=name)
  decayed = moves(grads, optimizer=name, weight_decay=0.75)
  for parameter, step in plain.items():
    assert step > 0
    if parameter.endswith("bias"):
      assert decayed[parameter] == step
    else:
      assert decayed[parameter] < 0


def test_options_reach_the_optimizer():
  # Lion's step is a sign, and its decay is decoupled: -(1 + .5 x 2).
  assert moves(optimizer="lion", weight_decay=0.5)["head/kernel"] == -2.0
  # RMSProp divides by the root of (1 - decay) g^2.
  step = moves(optimizer="rmsprop", options={"decay": 0.75, "eps": 0.0})["head/kernel"]
  assert step == pytest.approx(-1 / 0.25**0.5)
  # Any function in optax's manner has a name.
  assert moves(optimizer="optax:sign_sgd")["head/bias"] == -1.0


def test_clipping_by_value_block_and_norm_by_hand():
  grads = {"a": {"kernel": jnp.array([[3.0, -4.0]])}, "b": {"kernel": jnp.array([[0.3, 0.4]])}}

  def clipped(**knobs):
    chain = make_optimizer(lambda _: 1.0, momentum=0.0, weight_decay=0.0, **knobs)
    updates, _ = chain.update(grads, chain.init(grads), grads)
    return [-updates[name]["kernel"][0] for name in "ab"]

  a, b = clipped(clip_value=1.0)
  np.testing.assert_allclose([a, b], [[1.0, -1.0], [0.3, 0.4]], rtol=1e-6)
  # Root mean squares are sqrt(12.5) and sqrt(.125): only the first is above 1.
  a, b = clipped(clip_block=1.0)
  np.testing.assert_allclose([a, b], [np.array([3.0, -4.0]) / 12.5**0.5, [0.3, 0.4]], rtol=1e-6)
  # First the values, then the norm of what is left: sqrt(1 + 1 + .09 + .16).
  a, b = clipped(clip_value=1.0, clip_norm=0.75)
  np.testing.assert_allclose([a, b], np.array([[1.0, -1.0], [0.3, 0.4]]) / 2, rtol=1e-6)


def test_groups_have_their_rate_decay_and_freeze_by_hand():
  groups = (
    {"match": "^backbone/conv1/bias$", "freeze": True},
    {"match": "conv1", "lr": 0.1, "weight_decay": 0.25},
    {"match": "bias", "lr": 3.0},
  )
  expected = {
    "backbone/conv1/bias": 0.0,
    "backbone/conv1/kernel": -0.1 * (1 + 0.25 * 2),
    "backbone/conv2/kernel": -(1 + 0.5 * 2),
    "head/bias": -3.0,
    "head/kernel": -(1 + 0.5 * 2),
  }
  assert moves(weight_decay=0.5, groups=groups) == pytest.approx(expected)
  # Factors multiply.
  doubled = moves(weight_decay=0.5, groups=groups, bias_lr=2.0)
  assert doubled == pytest.approx(expected | {"head/bias": -6.0})


def test_a_transformation_of_ones_own_is_clipped_scaled_and_frozen():
  own = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0))
  knobs = {"optimizer": own, "clip_value": 0.5, "freeze": ("backbone",)}
  found = moves(**knobs, groups=({"match": "head/bias", "lr": 0.5},))
  frozen = dict.fromkeys(("backbone/conv1/bias", "backbone/conv1/kernel"), 0.0)
  frozen |= {"backbone/conv2/kernel": 0.0}
  assert found == pytest.approx(frozen | {"head/bias": -0.75, "head/kernel": -1.5})
  # Alone it stays what it is, so that its state in older checkpoints still fits.
  assert make_optimizer(lambda _: 1.0, optimizer=own) is own


def test_rates_fall_with_the_depth():
  class Backbone(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(1, name="stem")(x)
      x = nn.LayerNorm(name="a_norm")(x)  # of the stem's block, and before it in the alphabet
      return nn.Dense(1, name="b_layer")(x)

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      x = nn.Dense(1, name="head")(Backbone(name="backbone")(x))
      return nn.Dense(1, name="a_score")(x)

  order = parameter_order(Net(), (2, 2, 1))
  assert order[0] == "backbone/stem/kernel"
  assert order[-1] == "a_score/bias"
  blocks = depth_factors(order, 0.5)
  assert {name.rpartition("/")[0]: factor for name, factor in blocks.items()} == {
    "backbone/stem": 0.25,
    "backbone/a_norm": 0.25,
    "backbone/b_layer": 0.5,
    "head": 1.0,
    "a_score": 1.0,
  }
  # Without a backbone, its own parts.
  assert depth_factors(["z/kernel", "z/bias", "a/kernel"], 0.5) == {
    "z/kernel": 0.5,
    "z/bias": 0.5,
    "a/kernel": 1.0,
  }
  names = ["backbone/conv1/kernel", "backbone/conv1/bias", "backbone/conv2/kernel"]
  found = moves(layer_decay=0.5, order=[*names, "head/kernel", "head/bias"])
  assert found == {
    "backbone/conv1/bias": -0.25,
    "backbone/conv1/kernel": -0.25,
    "backbone/conv2/kernel": -0.5,
    "head/bias": -1.0,
    "head/kernel": -1.0,
  }
  with pytest.raises(InputError, match="layer_decay: the place of 'backbone/conv1/bias'"):
    moves(layer_decay=0.5)


@pytest.mark.parametrize(
  ("groups", "match"),
  [
    (("backbone",), r"groups\[0\]: 'backbone' must be a dict with a regular expression"),
    (({"lr": 1.0},), r"groups\[0\]: {'lr': 1.0} must be a dict"),
    (({"match": "a", "rate": 1.0},), r"groups\[0\]: 'rate' is unknown; there are match, lr"),
    (({"match": "a"}, {"match": "("}), r"groups\[1\]: '\(' is no regular expression"),
    (({"match": "a", "lr": 0},), r"lr 0 must be a number above 0; freeze=True stops them"),
    (({"match": "a", "lr": "high"},), r"lr 'high' must be a number"),
    (({"match": "a", "weight_decay": -1},), r"weight_decay -1 must be a number of at least 0"),
    (({"match": "a", "freeze": 1},), r"freeze 1 must be True or False"),
    (({"match": "a", "freeze": True, "lr": 2.0},), r"frozen parameters have no lr"),
    (({"match": "bakbone/conv1"},), r"groups\[0\]: .* 'bakbone/conv1'; there are backbone/conv1"),
    (({"match": "^zz"},), r"no parameter's name matches '\^zz'; there are backbone, head"),
    (
      ({"match": "backbone"}, {"match": "conv1"}),
      r"groups\[1\]: all parameters that 'conv1' matches belong to the earlier 'backbone'",
    ),
    (({"match": "", "freeze": True},), r"freeze: \(''\,\) leaves nothing to train"),
  ],
)
def test_groups_that_mean_nothing(groups, match):
  with pytest.raises(InputError, match=match):
    moves(groups=groups)


def test_groups_are_told_with_what_they_hold():
  groups = read_groups(({"match": "conv", "lr": 0.1, "weight_decay": 0}, {"match": "bias"}))
  assert describe_groups(PARAMS, groups) == [
    "'conv': learning rate x 0.1, weight decay 0, 3 parameters of 6 numbers",
    "'bias': learning rate x 1, 1 parameters of 2 numbers",
    "all others, 1 parameters of 2 numbers",
  ]
