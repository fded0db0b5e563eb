import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jseg.optim import make_optimizer, make_schedule
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
    (make_optimizer, {"optimizer": "lion"}, r"'lion' is unknown; choose from sgd, adamw"),
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
