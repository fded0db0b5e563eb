"""The losses of a task, and what they weigh."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jseg.config
from jseg.data import ClassInfo
from jseg.losses import make_loss
from jseg.state import TrainState
from jseg.step import make_train_step, shard
from jseg.tasks.instance import InstanceTask
from jseg.tasks.semantic.forward import Targets, make_losses
from jseg.types import IGNORE, InputError, Outputs

LOGITS = jnp.array([[[[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]]])
LABEL = jnp.array([[[0, 0, IGNORE]]])


def entropies():
  log_p = jax.nn.log_softmax(LOGITS[0, 0])
  return -float(log_p[0, 0]), -float(log_p[1, 0])


def test_border_weights_are_added_to_the_class_weights_and_divide_nothing():
  # Equation 2 of U-Net: w = w_c + border; the count stays that of the pixels.
  border = jnp.array([[[0.0, 4.0, 9.0]]])
  losses = make_losses(make_loss(), jnp.array([2.0, 7.0]))
  total, count = losses(Outputs(LOGITS), Targets(LABEL, border))["main"]
  first, second = entropies()
  np.testing.assert_allclose(total, 2 * first + (2 + 4) * second, rtol=1e-6)
  assert float(count) == 2
  total, _ = make_losses(make_loss())(Outputs(LOGITS), Targets(LABEL, border))["main"]
  np.testing.assert_allclose(total, first + (1 + 4) * second, rtol=1e-6)


def test_class_weights_make_a_weighted_mean():
  losses = make_losses(make_loss(), jnp.array([2.0, 7.0]))
  total, count = losses(Outputs(LOGITS), Targets(LABEL))["main"]
  np.testing.assert_allclose(total / count, sum(entropies()) / 2, rtol=1e-6)
  assert float(count) == 4


def test_auxiliary_outputs_are_losses_by_their_own_names():
  outputs = Outputs(LOGITS, {"side": 2 * LOGITS})
  losses = make_losses(make_loss())(outputs, Targets(LABEL))
  assert list(losses) == ["main", "side"]
  side, count = make_loss()(2 * LOGITS, LABEL)
  np.testing.assert_allclose(losses["main"][0], sum(entropies()), rtol=1e-6)
  np.testing.assert_allclose(losses["side"][0], side, rtol=1e-6)
  assert float(losses["side"][1]) == float(count) == 2
  with pytest.raises(InputError, match='"main" is the name of the logits'):
    make_losses(make_loss())(Outputs(LOGITS, {"main": LOGITS}), Targets(LABEL))


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize(
  "loss",
  [
    {"name": "ohem", "hardest": 0.0, "threshold": 0.5},
    {"name": "ohem", "hardest": 0.3, "threshold": 0.0},
    {"name": "ohem", "hardest": 0.4, "threshold": 0.5},
    {"name": "ohem+dice", "hardest": 0.3, "threshold": 0.0},
  ],
)
def test_losses_that_pick_their_pixels_equal_one_device(devices, loss):
  # OHEM keeps other numbers of pixels on every device, and others of the auxiliary output than of
  # the logits: what is picked, sums and counts are those of the global batch all the same.
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 6, 6, 3)).astype(np.float32)
  x *= np.linspace(0.1, 3, 8, dtype=np.float32).reshape(-1, 1, 1, 1)  # hard images come first
  label = rng.choice([0, 1, 2, IGNORE], (8, 6, 6)).astype(np.int32)
  batch = {"x": x, "label": label}
  losses = make_losses(make_loss(**loss))

  def align(row):
    return row.reshape(1, 1, 1, -1)

  def forward(variables, batch, key, mutable):
    params = variables["params"]
    outputs = Outputs(batch["x"] * align(params["w"]), {"side": batch["x"] * align(params["v"])})
    return outputs, Targets(batch["label"]), {}

  def train(devices):
    optimizer = optax.sgd(1.0)
    params = {"w": jnp.array([1.0, -0.5, 0.3]), "v": jnp.array([0.4, 0.2, -1.0])}
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), {})
    step = make_train_step(optimizer, forward, losses, weights={"side": 0.4})
    state, metrics = step(state, shard(batch, devices), jax.random.key(0))
    return jax.device_get(dataclasses.asdict(state)["params"]), jax.device_get(metrics)

  params, metrics = train(devices)
  expected, one = train(1)
  assert metrics["losses"]["main"][1] == one["losses"]["main"][1]
  if loss["threshold"]:
    assert one["losses"]["main"][1] != one["losses"]["side"][1]
  # Sums of 288 float32 numbers in another order; weighing by local counts is off by 1e-2.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected
  )
  np.testing.assert_allclose(metrics["loss"], one["loss"], rtol=1e-5)
  first = {name: value for name, (value, _) in one["losses"].items()}
  np.testing.assert_allclose(one["loss"], first["main"] + 0.4 * first["side"], rtol=1e-6)


def test_what_measures_objects_is_asked_for_before_they_are_trained_on(monkeypatch):
  monkeypatch.setitem(sys.modules, "pycocotools", None)
  task = InstanceTask(jseg.config.default("mask_rcnn"), None, ClassInfo(("background", "cell")))
  with pytest.raises(InputError, match=r'need pycocotools .*: pip install "pycocotools>='):
    task.evaluator(None, "val")
