"""What every network of the registry must do. A new one is tested by its line there."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg import models
from jseg.nn import AXIS

K = 5
every_network = pytest.mark.parametrize("name", models.names())


def make(name, channels=3, size=(37, 50), **overrides):
  """A tiny network, its variables and an image of an awkward size."""
  model = models.create(name, K, **{**models.tiny(name), **overrides})
  image = jax.random.normal(jax.random.key(0), (2, *size, channels))
  variables = jax.jit(model.init)(jax.random.key(1), image)
  # Biases of zero and scales of one would hide what is done to them.
  variables["params"] = jax.tree.map(
    lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape), variables["params"]
  )
  return model, variables, image


def cross_entropy(outputs, label):
  logits = [outputs.logits, *outputs.aux.values()]
  return sum(-(jax.nn.one_hot(label, K) * jax.nn.log_softmax(a)).sum() for a in logits)


def train_loss(model, variables, params, image, label):
  outputs, new = model.apply(
    {**variables, "params": params},
    image,
    train=True,
    mutable=["batch_stats"],
    rngs={"dropout": jax.random.key(2)},
  )
  return cross_entropy(outputs, label), new.get("batch_stats", {})


@every_network
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_cover_the_image_and_are_the_same_every_time(name, channels):
  model, variables, image = make(name, channels)
  apply = jax.jit(model.apply)
  outputs = apply(variables, image)
  assert outputs.logits.shape == (2, 37, 50, K)
  assert outputs.logits.dtype == jnp.float32
  chex.assert_tree_all_finite(outputs)
  chex.assert_trees_all_equal(apply(variables, image), outputs)
  # Each image by itself, whatever else is in the batch. The largest logit is the scale.
  other = apply(variables, image.at[0].set(0.0)).logits
  np.testing.assert_allclose(other[1], outputs.logits[1], atol=2e-5 * abs(other).max())


@every_network
def test_jit_equals_eager(name):
  model, variables, image = make(name, size=(18, 23))
  jitted, eager = jax.jit(model.apply)(variables, image), model.apply(variables, image)
  scale = abs(eager.logits).max()
  np.testing.assert_allclose(jitted.logits / scale, eager.logits / scale, atol=2e-5)


@every_network
def test_every_parameter_is_trained_and_statistics_follow(name):
  model, variables, image = make(name)
  label = jax.random.randint(jax.random.key(3), image.shape[:3], 0, K)
  grad = jax.jit(
    jax.value_and_grad(lambda p: train_loss(model, variables, p, image, label), has_aux=True)
  )
  (loss, stats), grads = grad(variables["params"])
  chex.assert_tree_all_finite((loss, stats, grads))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert abs(leaf).max() > 0, jax.tree_util.keystr(path)
  old = variables.get("batch_stats", {})
  chex.assert_trees_all_equal_shapes_and_dtypes(stats, old)
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.subtract, stats, old)):
    assert abs(leaf).max() > 0, jax.tree_util.keystr(path)
  evaluate = jax.jit(functools.partial(model.apply, train=False, mutable=["batch_stats"]))
  _, kept = evaluate(variables, image)
  chex.assert_trees_all_equal(kept.get("batch_stats", {}), old)


@every_network
def test_bfloat16_is_close_and_parameters_stay_float32(name):
  model, variables, image = make(name)
  half = models.create(name, K, **models.tiny(name), dtype=jnp.bfloat16)
  shapes = jax.eval_shape(half.init, jax.random.key(1), image)
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, variables)
  exact = jax.jit(model.apply)(variables, image).logits
  rough = jax.jit(half.apply)(variables, image).logits
  assert rough.dtype == jnp.float32
  difference = abs(rough - exact).mean() / exact.std()
  assert 0 < difference < 0.05


@every_network
def test_two_devices_equal_one(name):
  model, variables, image = make(name, size=(24, 24))
  label = jax.random.randint(jax.random.key(3), image.shape[:3], 0, K)

  def step(params, image, label):
    def loss(params):
      return train_loss(model, variables, params, image, label)

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.lax.psum((value, grads), AXIS), stats

  def on(devices):
    mapped = jax.pmap(step, AXIS, in_axes=(None, 0, 0), out_axes=0, devices=jax.devices()[:devices])
    split = [a.reshape(devices, -1, *a.shape[1:]) for a in (image, label)]
    return jax.device_get(mapped(variables["params"], *split))

  one, two = on(1), on(2)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True
  ):
    np.testing.assert_array_equal(b[0], b[1])
    tolerance = 1e-3 * abs(a).max() + 1e-4
    assert abs(a[0] - b[0]).max() < tolerance, jax.tree_util.keystr(path)
