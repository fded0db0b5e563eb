import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jseg import config as configs
from jseg.memory import compile_step, out_of_memory, savers
from jseg.state import TrainState
from jseg.step import make_train_step
from jseg.types import InputError


def test_a_step_is_compiled_once_and_its_sizes_told():
  optimizer = optax.sgd(0.5, momentum=0.9)
  params = {"w": jnp.zeros((256, 1024))}
  state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), {})
  traces = []

  def forward(variables, batch, key, mutable):
    traces.append(None)
    return batch["x"] @ variables["params"]["w"], None, {}

  def losses(outputs, _):
    return {"main": (jnp.square(outputs - 1).sum(), jnp.float32(outputs.size))}

  step = make_train_step(optimizer, forward, losses)
  batch = {"x": np.ones((1, 2, 256), np.float32)}
  compiled, sizes = compile_step(step, state, batch, jax.random.key(0))
  assert re.fullmatch(
    r"MiB on a device: parameters 1\.0, optimizer 1\.0, activations and the like [\d.]+",
    sizes,
  )
  state, metrics = compiled(state, batch, jax.random.key(0))
  assert float(metrics["loss"]) == 1.0
  assert len(traces) == 1


def fail(config, text):
  with out_of_memory(config):
    raise jax.errors.JaxRuntimeError(text)


def test_out_of_memory_names_the_settings_in_order(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  config = configs.default("unet")
  with pytest.raises(InputError, match=r"^out of memory \(RESOURCE_EXHAUSTED: 8 GiB\)\. ") as error:
    fail(config, "RESOURCE_EXHAUSTED: 8 GiB\nand an allocation table")
  keys = ("accumulate=4", "remat=stages", "dtype=bfloat16", "augment.crop", "data.eval_batch_size")
  places = [str(error.value).index(key) for key in keys]
  assert places == sorted(places)
  changes = {"accumulate": 4, "remat": "all", "dtype": "bfloat16"}
  assert len(savers(configs.change(config, changes))) == 2
  assert "remat=all" in savers(configs.change(config, {**changes, "remat": "stages"}))[0]


def test_other_failures_are_not_taken_for_it():
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    fail(configs.default("unet"), "INTERNAL: something else")
