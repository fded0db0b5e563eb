"""Gradients in float16: steps that overflow change the scale, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jseg import config as configs
from jseg import loss_scale
from jseg.log import MetricsAccumulator
from jseg.state import TrainState, create_train_state
from jseg.step import make_train_step, shard
from jseg.types import InputError


@pytest.mark.parametrize(
  ("since", "finite", "expected"),
  [(0, True, (8.0, 1)), (998, True, (8.0, 999)), (999, True, (16.0, 0)), (5, False, (4.0, 0))],
)
def test_the_scale_falls_at_once_and_rises_slowly(since, finite, expected):
  scale = {"scale": jnp.float32(8), "since": jnp.int32(since)}
  after = loss_scale.after(scale, jnp.bool_(finite))
  assert (float(after["scale"]), int(after["since"])) == expected


def test_the_scale_never_falls_below_one():
  scale = {"scale": jnp.float32(1), "since": jnp.int32(0)}
  assert float(loss_scale.after(scale, jnp.bool_(False))["scale"]) == 1.0
  assert not loss_scale.may_fall(scale)


def test_only_float16_is_scaled():
  config = configs.default("unet", widths=(2,))
  found = {}
  for dtype in configs.DTYPES:
    model = configs.make_model(configs.change(config, {"dtype": dtype}), 2)
    state = create_train_state(model, optax.sgd(0.1), jax.random.key(0), (8, 8, 3))
    found[dtype] = sorted(state.loss_scale)
  assert found == {"float32": [], "bfloat16": [], "float16": ["scale", "since"]}


def forward(variables, batch, key, mutable):
  w = variables["params"]["w"].astype(jnp.float16)
  return w * batch["x"].astype(jnp.float16), None, {"batch_stats": {"seen": batch["x"].sum()}}


def losses(outputs, _):
  return {"main": (outputs.astype(jnp.float32).sum(), jnp.float32(outputs.size))}


def step_on(x, scale, parts=1):
  """(state before, state, metrics) of a step on two devices."""
  optimizer = optax.sgd(1.0, momentum=0.9)
  params = {"w": jnp.float32(2)}
  state = TrainState(
    jnp.int32(0),
    params,
    {"seen": jnp.float32(0)},
    optimizer.init(params),
    {"w": jnp.float32(2)},
    {"scale": jnp.float32(scale), "since": jnp.int32(7)},
  )
  before = jax.device_get(state)
  step = make_train_step(optimizer, forward, losses, ema=0.5, accumulate=parts)
  batch = shard({"x": np.array(x, np.float32)}, 2)
  return before, *jax.device_get(step(state, batch, jax.random.key(0)))


@pytest.mark.parametrize("parts", [1, 2])
def test_small_gradients_survive_and_large_ones_are_skipped_on_all_devices(parts):
  # Each of four gradients is x / 4 = 2^-26, half of float16's smallest number.
  _, state, metrics = step_on([2.0**-24] * 4, 2.0**15, parts)
  assert float(metrics["grad_norm"]) == 2.0**-24
  assert (int(metrics["skipped"]), int(state.loss_scale["since"])) == (0, 8)
  # Only the second device's share overflows.
  before, state, metrics = step_on([1.0, 1.0, 1.0, 6e4], 2.0**15, parts)
  assert int(metrics["skipped"]) == 1
  assert (float(state.loss_scale["scale"]), int(state.loss_scale["since"])) == (2.0**14, 0)
  rest = dataclasses.replace(state, step=before.step, loss_scale=before.loss_scale)
  jax.tree.map(np.testing.assert_array_equal, rest, before)
  assert int(state.step) == 1


def test_where_the_scale_is_not_the_cause_the_loss_is_no_number():
  _, _, metrics = step_on([1.0, 1.0, 1.0, 1e6], 1.0)
  assert int(metrics["skipped"]) == 0
  assert np.isnan(metrics["loss"])


class Counting:
  metric, title = "miou", "mIoU"

  def training_metrics(self, counts):
    return {"seen": float(counts["seen"])}


def test_skipped_steps_are_counted_and_left_out_of_the_means():
  log = MetricsAccumulator(Counting(), 2, lambda step: "")
  with log.fetching():
    pass
  for step, (loss, skipped) in enumerate([(4.0, 0), (np.inf, 1), (2.0, 0)], 1):
    means = {"loss": loss, "losses": {"main": (loss, 1.0)}, "grad_norm": 1.0}
    log.add(step, {**means, "seen": 5, "skipped": skipped})
  line = log.flush()
  assert (line["loss"], line["seen"], line["skipped_steps"]) == (3.0, 10.0, 1.0)
  log.add(4, {**means, "loss": np.nan, "skipped": 0})
  with pytest.raises(InputError, match="the loss became nan at step 4"):
    log.flush()


def test_a_window_of_skipped_steps_alone_is_no_other_window_again():
  log = MetricsAccumulator(Counting(), 2, lambda step: "")
  counts = {"seen": 5, "losses": {"main": (1.0, 1.0)}, "grad_norm": 1.0}
  lines = []
  for step, (loss, skipped) in enumerate([(np.inf, 1), (4.0, 0), (np.inf, 1)], 1):
    with log.fetching():
      pass
    log.add(step, {**counts, "loss": loss, "skipped": skipped})
    lines.append(log.flush())
    assert "images/s" in log.status()
  assert [line.get("loss") for line in lines] == [None, 4.0, None]
  assert [line["skipped_steps"] for line in lines] == [1.0, 0.0, 1.0]
  assert all({"seconds", "waiting_for_input", "images_per_second"} <= line.keys() for line in lines)
