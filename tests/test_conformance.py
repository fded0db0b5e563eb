"""What every network of the registry must do. A new one is tested by its line there."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.variables import draw

from jseg import models
from jseg.nn.devices import AXIS
from jseg.nn.initializers import initialize

K = 5
SIZE = {2: (37, 50), 3: (11, 13, 18)}
SEMANTIC = [name for name in models.names() if models.get(name).task == "semantic"]
every_network = pytest.mark.parametrize("name", SEMANTIC)
# Settings that change the arithmetic, beside each network's defaults.
VARIANTS = [
  ("fcn8s", {"padding": "published", "at_once": True, "learn_upsampling": False}),
  ("fcn32s", {"backbone": "alexnet"}),
  ("unet", {"padding": "VALID", "norm": "none"}),
  ("unet", {"backbone": "resnet18", "width": 0.125, "decoder": (8, 8, 4, 4, 4)}),
  ("deeplab_v1", {"msc": True}),
  ("deeplab_v3", {"form": "cascade", "multi_grid": (1, 2, 1)}),
]
# Its sixty convolutions take a minute to differentiate, and train as everyone else's.
UNTRAINED = ("fcn32s", {"backbone": "googlenet", "width": 0.25})
# One of each kind: batch norm, a third axis, scores on a grid of their own, two outputs.
several_networks = pytest.mark.parametrize("name", ["unet", "unet3d", "deeplab_v1", "deeplab_v3"])
every_network_and_variant = pytest.mark.parametrize(
  ("name", "overrides"), [(name, {}) for name in SEMANTIC] + VARIANTS, ids=str
)


@functools.cache
def build(name, size, overrides):
  model = models.create(name, K, **{**models.get(name).TINY, **dict(overrides)})
  image = jax.random.normal(jax.random.key(0), (2, *size, 3))
  return model, draw(model, image), image


def make(name, size=None, **overrides):
  """A tiny network, variables and an image of an awkward size."""
  size = size or SIZE[models.get(name).ndim]
  return build(name, size, tuple(overrides.items()))


@functools.cache
def infer(model):
  """Compiled once for all tests: (variables, image) -> (outputs, collections that may change)."""
  return jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))


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
  return cross_entropy(outputs, model.training_labels(label)), new.get("batch_stats", {})


@pytest.mark.parametrize(
  ("name", "overrides"), [(name, {}) for name in SEMANTIC] + VARIANTS + [UNTRAINED], ids=str
)
def test_logits_cover_the_image_and_are_the_same_every_time(name, overrides):
  model, variables, image = make(name, **overrides)
  apply = infer(model)
  outputs, kept = apply(variables, image)
  # Only training changes statistics.
  chex.assert_trees_all_equal(kept.get("batch_stats", {}), variables.get("batch_stats", {}))
  assert outputs.logits.shape == (*image.shape[:-1], K)
  assert outputs.logits.dtype == jnp.float32
  chex.assert_tree_all_finite(outputs)
  assert outputs.logits.std(tuple(range(1, outputs.logits.ndim - 1))).min() > 0
  chex.assert_trees_all_equal(apply(variables, image)[0], outputs)
  # Each image by itself, whatever else is in the batch. The largest logit is the scale.
  other = apply(variables, image.at[0].set(0.0))[0].logits
  np.testing.assert_allclose(other[1], outputs.logits[1], atol=2e-5 * abs(other).max())


@every_network
def test_gray_images(name):
  model = models.create(name, K, **models.get(name).TINY)
  image = jax.ShapeDtypeStruct((2, *SIZE[models.get(name).ndim], 1), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  assert jax.eval_shape(model.apply, variables, image).logits.shape == (*image.shape[:-1], K)


@every_network
def test_its_own_initial_values_are_finite(name):
  model, variables, image = make(name)
  initial = jax.jit(model.init)(jax.random.key(1), image)
  chex.assert_trees_all_equal_shapes_and_dtypes(initial, variables)
  chex.assert_tree_all_finite(initial)
  made = initialize(model, jax.random.key(1), image.shape[1:])
  chex.assert_trees_all_close(made, initial, rtol=3e-7)


@functools.cache
def gradients(name, **overrides):
  """(the step, its arguments, what it gives): value and gradient of a loss, new statistics."""
  # Large enough for norms of the coarsest maps to see more than a value of each image.
  size = {2: (64, 64), 3: (24, 24, 16)}[models.get(name).ndim]
  if overrides.get("padding") == "VALID":
    size = (44, 52)  # unpadded networks need a crop that fits
  # Dropout is drawn by device.
  quiet = {"dropout": 0.0} if "dropout" in models.arguments(name) else {}
  model, variables, image = make(name, size=size, **quiet, **overrides)
  label = jax.random.randint(jax.random.key(3), image.shape[:-1], 0, K)

  def step(params, image, label):
    def loss(params):
      return train_loss(model, variables, params, image, label)

    return jax.value_and_grad(loss, has_aux=True)(params)

  arguments = variables["params"], image, label
  return step, arguments, jax.device_get(jax.jit(step)(*arguments))


@every_network_and_variant
def test_every_parameter_is_trained(name, overrides):
  _, _, one = gradients(name, **overrides)
  chex.assert_tree_all_finite(one)
  (_, stats), grads = one
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert abs(leaf).max() > 0, jax.tree_util.keystr(path)
  old = make(name, **overrides)[1].get("batch_stats", {})
  chex.assert_trees_all_equal_shapes_and_dtypes(stats, old)
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.subtract, stats, old)):
    assert abs(leaf).max() > 0, jax.tree_util.keystr(path)


def distance(a, b):
  """How far two gradients are apart: of the leaf where it is most, relatively.

  The gradient of a bias before a batch norm is nothing but rounding, so that each leaf has a share
  of the whole's norm beside its own.
  """
  whole = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(a)))
  relative = jax.tree.map(
    lambda x, y: np.linalg.norm(x - y) / (np.linalg.norm(x) + 1e-2 * whole), a, b
  )
  return max(jax.tree.leaves(relative))


@several_networks
def test_two_devices_equal_one(name):
  step, (params, image, label), one = gradients(name)

  @functools.partial(jax.pmap, axis_name=AXIS, in_axes=(None, 0, 0), devices=jax.devices()[:2])
  def step_of_two(params, image, label):
    (loss, stats), grads = step(params, image, label)
    return (jax.lax.psum(loss, AXIS), stats), jax.lax.psum(grads, AXIS)

  two = jax.device_get(step_of_two(params, image[:, None], label[:, None]))
  for a in jax.tree.leaves(two):
    np.testing.assert_array_equal(a[0], a[1])
  two = jax.tree.map(lambda a: a[0], two)
  ((loss, stats), grads), ((loss_of_two, stats_of_two), grads_of_two) = one, two
  np.testing.assert_allclose(loss_of_two, loss, rtol=1e-5)
  chex.assert_trees_all_close(stats_of_two, stats, rtol=1e-4, atol=1e-5)
  # Rounding may take a value to the other side of a ReLU, which changes a gradient by a hundredth:
  # so does rounding the image otherwise. Local statistics, or a mean in place of a sum, are off by
  # a third of a leaf and more.
  apart = [distance(grads, grads_of_two)]
  for i in range(8):
    if apart[-1] < 1e-3:
      break
    close = image * (1 + 1e-7 * jax.random.normal(jax.random.key(i), image.shape))
    apart.append(distance(jax.device_get(jax.jit(step)(params, close, label)[1]), grads_of_two))
  assert apart[-1] < 1e-3, apart


@every_network
def test_bfloat16_parameters_stay_float32(name):
  _, variables, image = make(name)
  half = models.create(name, K, **models.get(name).TINY, dtype=jnp.bfloat16)
  outputs, shapes = jax.eval_shape(half.init_with_output, jax.random.key(1), image)
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, variables)
  assert outputs.logits.dtype == jnp.float32


@several_networks
def test_bfloat16_is_close(name):
  model, variables, image = make(name)
  half = models.create(name, K, **models.get(name).TINY, dtype=jnp.bfloat16)
  exact = infer(model)(variables, image)[0].logits
  rough = jax.jit(half.apply)(variables, image).logits
  difference = abs(rough - exact).mean() / exact.std()
  # Each layer rounds a few times, to 2^-9 of its values; these errors add like random steps.
  layers = sum(a.ndim > 1 for a in jax.tree.leaves(variables["params"]))
  assert 2**-12 < difference < 8 * 2**-9 * np.sqrt(layers)
