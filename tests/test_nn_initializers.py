"""Initial values, beside those of JAX and Flax."""

import functools
import logging
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.doubles import doubles

from jseg import models
from jseg.nn import initializers, upsample
from jseg.nn.initializers import he_normal, initialize, normal, root_of_inputs, uniform
from jseg.state import create_train_state

KEY = jax.random.fold_in(jax.random.key(3), 7)
scaled = nn.initializers.variance_scaling
PAIRS = [
  (normal(0.01), nn.initializers.normal(0.01)),
  (he_normal, scaled(2.0, "fan_in", "normal")),
  (uniform(root_of_inputs(3)), scaled(1.0, "fan_in", "uniform")),
  (upsample.he_normal_per_tap, scaled(2.0, "fan_in", "normal", batch_axis=(0, 1))),
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (1, 1, 512, 513), (2, 2, 300, 500)])
def test_values_are_those_of_flax(pair, shape):
  ours, theirs = (init(KEY, shape) for init in pair)
  assert ours.dtype == jnp.float32
  assert isinstance(ours, jax.Array)
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("init", [pair[0] for pair in PAIRS])
def test_values_are_the_same_in_a_program(init):
  shape = (2, 2, 300, 500)
  # XLA takes two constant factors together.
  traced = jax.jit(lambda key: init(key, shape))(KEY)
  np.testing.assert_allclose(traced, init(KEY, shape), rtol=3e-7)


def test_values_are_drawn_in_as_few_parts_as_needed(monkeypatch):
  places = []
  draw = initializers._draw_part
  monkeypatch.setattr(
    initializers, "_draw_part", lambda d, words: places.append(int(words[2])) or draw(d, words)
  )
  part = initializers._PART
  for size in (1, part, part + 1, 2 * part):
    normal(1.0)(KEY, (size,))
  assert places == [0, 0, 0, part, 0, part]


def test_a_batch_of_keys_and_keys_of_old_draw_too():
  keys = jax.random.split(KEY, 3)
  each = jnp.stack([he_normal(key, (3, 3, 4, 5)) for key in keys])
  drawn = jax.vmap(lambda key: he_normal(key, (3, 3, 4, 5)))(keys)
  np.testing.assert_allclose(drawn, each, rtol=3e-7)
  words = jax.random.key_data(KEY)
  np.testing.assert_array_equal(he_normal(words, (3, 4)), he_normal(KEY, (3, 4)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_are_drawn_as_jax_does(dtype):
  with doubles(dtype == "float64"):
    values = normal(0.5)(KEY, (64, 9), dtype)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, nn.initializers.normal(0.5)(KEY, (64, 9), dtype))


def test_other_generators_and_their_old_form_draw_as_jax_does():
  key = jax.random.key(1, impl="rbg")
  np.testing.assert_array_equal(normal(0.5)(key, (3, 4)), nn.initializers.normal(0.5)(key, (3, 4)))
  with jax.threefry_partitionable(False):
    np.testing.assert_array_equal(
      normal(0.5)(KEY, (3, 5)), nn.initializers.normal(0.5)(KEY, (3, 5))
    )
  assert normal(0.5)(KEY, (3, 0)).shape == (3, 0)


def test_deviations_are_those_that_are_asked_for():
  shape = (3, 3, 64, 100)
  assert np.std(he_normal(KEY, shape)) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.01)
  assert np.std(upsample.he_normal_per_tap(KEY, shape)) == pytest.approx(
    math.sqrt(2 / 64), rel=0.01
  )
  values = np.asarray(uniform(0.3)(KEY, shape))
  assert -0.3 <= values.min() < -0.29 < 0.29 < values.max() < 0.3


class Own(nn.Module):
  """A user's network: layers of Flax, and values that depend on the image."""

  @nn.compact
  def __call__(self, image):
    x = nn.BatchNorm(use_running_average=False)(nn.Conv(3, (3, 3))(image))
    start = self.variable("state", "start", lambda: image.mean() + 2)
    half = self.param("half", lambda key: jnp.full((2, 3), 0.1, jnp.bfloat16))
    self.variable("state", "known", lambda: {"mask": half > 0, "range": jnp.arange(3)})
    return x + start.value


def test_values_are_those_of_flax_for_any_network():
  model = Own()
  made, plain = initialize(model, KEY, (8, 9, 2)), model.init(KEY, jnp.zeros((1, 8, 9, 2)))
  assert jax.tree.structure(made) == jax.tree.structure(plain)
  jax.tree.map(np.testing.assert_array_equal, made, plain)
  assert made["state"]["start"] == 2


def test_the_network_itself_is_neither_compiled_nor_run(caplog):
  model = models.create("unet", 3, widths=(4, 8, 24))
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    initialize(model, KEY, (40, 56, 3))
  told = [r.message for r in caplog.records if "XLA" in r.message]
  compiled = {message.split("jit(")[1].split(")")[0] for message in told}
  assert compiled <= {"_draw_part", "_threefry_fold_in", "convert_element_type"}


def test_a_state_may_be_made_in_a_program():
  model, optimizer = models.create("unet", 3, widths=(4, 8)), optax.sgd(0.1, momentum=0.9)
  make = functools.partial(create_train_state, model, optimizer, image_shape=(16, 16, 3), ema=True)
  chex.assert_trees_all_close(jax.jit(make)(KEY), make(KEY), rtol=3e-7)
  chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(make, KEY), make(KEY))


def test_shapes_alone_can_be_had():
  model = models.create("unet", 3, widths=(4, 8))
  shapes = jax.eval_shape(lambda key: initialize(model, key, (16, 16, 3)), KEY)
  made = initialize(model, KEY, (16, 16, 3))
  assert jax.tree.map(jnp.shape, made) == jax.tree.map(lambda a: a.shape, shapes)
