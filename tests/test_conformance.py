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
SIZE = {2: (37, 50), 3: (11, 13, 18)}
SEMANTIC = [name for name in models.names() if models.task(name) == "semantic"]
every_network = pytest.mark.parametrize("name", SEMANTIC)
# Settings that change the arithmetic, beside each network's defaults.
VARIANTS = [
  ("fcn8s", {"padding": "published", "at_once": True, "learn_upsampling": False}),
  ("fcn32s", {"backbone": "alexnet"}),
  ("unet", {"padding": "VALID", "norm": "none"}),
  ("deeplab_v1", {"msc": True}),
  ("deeplab_v3", {"form": "cascade", "multi_grid": (1, 2, 1)}),
]
# Its sixty convolutions take a minute to differentiate, and train as everyone else's.
UNTRAINED = ("fcn32s", {"backbone": "googlenet", "width": 0.25})
every_network_and_variant = pytest.mark.parametrize(
  ("name", "overrides"), [(name, {}) for name in SEMANTIC] + VARIANTS, ids=str
)


@functools.cache
def build(name, size, overrides):
  model = models.create(name, K, **{**models.tiny(name), **dict(overrides)})
  image = jax.random.normal(jax.random.key(0), (2, *size, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(1), image)
  # Not the network's own initial values, whose zeros and ones would hide what is done to them.
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    fan_in = np.prod(leaf.shape[:-1])
    if leaf.ndim > 1:
      return jnp.asarray(rng.normal(0, np.sqrt(2 / fan_in), leaf.shape), leaf.dtype)
    centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
    return jnp.asarray(centre + rng.uniform(-0.1, 0.1, leaf.shape), leaf.dtype)

  return model, jax.tree_util.tree_map_with_path(draw, shapes), image


def make(name, size=None, **overrides):
  """A tiny network, variables and an image of an awkward size."""
  size = size or SIZE[models.ndim(name)]
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
  align = getattr(model, "training_labels", lambda label: label)
  return cross_entropy(outputs, align(label)), new.get("batch_stats", {})


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
def test_grey_images(name):
  model = models.create(name, K, **models.tiny(name))
  image = jax.ShapeDtypeStruct((2, *SIZE[models.ndim(name)], 1), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  assert jax.eval_shape(model.apply, variables, image).logits.shape == (*image.shape[:-1], K)


@every_network
def test_its_own_initial_values_are_finite(name):
  model, variables, image = make(name)
  initial = jax.jit(model.init)(jax.random.key(1), image)
  chex.assert_trees_all_equal_shapes_and_dtypes(initial, variables)
  chex.assert_tree_all_finite(initial)


# Op by op every shape is a program: of all building blocks, in networks that have few layers.
@pytest.mark.parametrize(
  "name", ["unet", "unet3d", "segnet_basic", "patch_classifier", "fcn8s", "deeplab_v1"]
)
def test_jit_equals_eager(name):
  model, variables, image = make(name, size=(18, 23, 16)[: models.ndim(name)])
  jitted, eager = jax.jit(model.apply)(variables, image), model.apply(variables, image)
  scale = abs(eager.logits).max()
  np.testing.assert_allclose(jitted.logits / scale, eager.logits / scale, atol=2e-5)


@every_network_and_variant
def test_every_parameter_is_trained_and_two_devices_equal_one(name, overrides):
  # Dropout is drawn by device.
  quiet = {"dropout": 0.0} if "dropout" in models.knobs(name) else {}
  # Large enough for norms of the coarsest maps to see more than a value of each image; but in a
  # deep SegNet rounding moves some maximum to a neighbour, the likelier the more there are.
  size = {2: (24, 24) if name == "segnet" else (64, 64), 3: (24, 24, 16)}[models.ndim(name)]
  if overrides.get("padding") == "VALID":
    size = (44, 52)  # unpadded networks need a crop that fits
  model, variables, image = make(name, size=size, **quiet, **overrides)
  label = jax.random.randint(jax.random.key(3), image.shape[:-1], 0, K)

  def step(params, image, label):
    def loss(params):
      return train_loss(model, variables, params, image, label)

    return jax.value_and_grad(loss, has_aux=True)(params)

  @functools.partial(jax.pmap, axis_name=AXIS, in_axes=(None, 0, 0), devices=jax.devices()[:2])
  def step_of_two(params, image, label):
    (loss, stats), grads = step(params, image, label)
    return (jax.lax.psum(loss, AXIS), stats), jax.lax.psum(grads, AXIS)

  params = variables["params"]
  one = (_, stats), grads = jax.device_get(jax.jit(step)(params, image, label))
  chex.assert_tree_all_finite(one)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert abs(leaf).max() > 0, jax.tree_util.keystr(path)
  old = variables.get("batch_stats", {})
  chex.assert_trees_all_equal_shapes_and_dtypes(stats, old)
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.subtract, stats, old)):
    assert abs(leaf).max() > 0, jax.tree_util.keystr(path)

  if overrides:
    return  # variants of these networks meet other devices no other way
  two = jax.device_get(step_of_two(params, image[:, None], label[:, None]))
  # The gradient of a bias before batch norm is zero but for rounding, of the size of all others'.
  rounding = 1e-6 * max(abs(a).max() for a in jax.tree.leaves(grads))
  leaves = jax.tree_util.tree_leaves_with_path(one)
  for (path, a), b in zip(leaves, jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(b[0], b[1])
    tolerance = 1e-3 * abs(a).max() + 1e-4 + rounding
    assert abs(a - b[0]).max() < tolerance, jax.tree_util.keystr(path)


@every_network
def test_bfloat16_is_close_and_parameters_stay_float32(name):
  model, variables, image = make(name)
  half = models.create(name, K, **models.tiny(name), dtype=jnp.bfloat16)
  shapes = jax.eval_shape(half.init, jax.random.key(1), image)
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, variables)
  exact = infer(model)(variables, image)[0].logits
  rough = jax.jit(half.apply)(variables, image).logits
  assert rough.dtype == jnp.float32
  difference = abs(rough - exact).mean() / exact.std()
  # Unpooling puts a value elsewhere where rounding moves the maximum to a neighbour.
  assert 0 < difference < (0.15 if name.startswith("segnet") else 0.05)
