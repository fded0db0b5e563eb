"""The pmapped steps: devices, void pixels, exact counting."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jseg import models
from jseg.augment import make_augment
from jseg.images import normalize, prepare
from jseg.losses import make_loss
from jseg.metrics import ConfusionState, confusion
from jseg.models import Network
from jseg.nn import Conv, Norm
from jseg.nn.devices import AXIS
from jseg.nn.norm import average_moments
from jseg.optim import make_optimizer
from jseg.state import TrainState, create_train_state
from jseg.step import make_moments_step, make_train_step, shard
from jseg.tasks.semantic.forward import (
  count_batch,
  decide_at_full_size,
  make_eval_step,
  make_forward,
  make_losses,
  training_counts,
)
from jseg.types import IGNORE, Outputs

K = 3
SIZE = (16, 16)


def make_batch(seed, batch=8):
  """Images with very different numbers of void pixels: the last ones are nearly all void."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, K, (batch, *SIZE)).astype(np.uint8)
  image = (80 * label[..., None] + rng.integers(0, 40, (batch, *SIZE, 3))).astype(np.uint8)
  for i in range(batch):
    label[i, : 2 * i] = IGNORE
  return {"image": image, "label": label, "size": np.full((batch, 2), SIZE, np.int32)}


@functools.cache
def build(freeze, widths, augment):
  model = models.create("unet", K, widths=widths, norm="batch")
  knobs = {"momentum": 0.9, "weight_decay": 1e-3, "freeze": freeze}
  optimizer = make_optimizer(optax.constant_schedule(0.1), **knobs)
  step = make_train_step(
    optimizer,
    make_forward(model, make_augment(size=SIZE, scale=(1.0, 1.0), **dict(augment))),
    make_losses(make_loss()),
    training_counts,
    ema=0.9,
    freeze=freeze,
    norms=True,
  )
  state = create_train_state(model, optimizer, jax.random.key(0), (*SIZE, 3), ema=True)
  return model, step, jax.device_get(state)


def make_parts(freeze=(), widths=(4, 8), **augment):
  """(model, step, a state that the step may use up); the same are made and compiled once."""
  model, step, state = build(freeze, widths, tuple(augment.items()))
  return model, step, jax.tree.map(jnp.array, state)


def on_devices(state, devices):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (AXIS,))
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def test_frozen_parts_have_no_gradient():
  batch = shard(make_batch(0), 1)
  names = sorted(jax.device_get(make_parts(widths=(4,))[2].params))
  norms = {}
  for freeze in ((), tuple(names[::2]), tuple(names[1::2])):
    _, step, state = make_parts(freeze, widths=(4,))
    before = jax.device_get(state.params)
    state, metrics = step(on_devices(state, 1), batch, jax.random.key(1))
    norms[freeze] = float(metrics["grad_norm"])
    for name, part in jax.device_get(state.params).items():
      same = jax.tree.leaves(jax.tree.map(np.array_equal, part, before[name]))
      assert all(same) if name in freeze else not any(same), name
      gradient, update = metrics["norms"][name]
      assert (gradient == 0) == (name in freeze)
      moved = optax.tree.norm(jax.tree.map(np.subtract, part, before[name]))
      assert float(update) == pytest.approx(float(moved), rel=1e-3, abs=1e-7)
    parts = [float(gradient) for gradient, _ in metrics["norms"].values()]
    assert norms[freeze] == pytest.approx(np.linalg.norm(parts), rel=1e-5)
  whole, *halves = norms.values()
  assert whole**2 == pytest.approx(sum(x**2 for x in halves), rel=1e-4)
  assert min(halves) > 0


def accumulated(devices, parts, loss="cross_entropy+dice"):
  """(state, metrics) after two steps on batches of 8, with dropout and augmentation."""
  model = models.create("unet", K, widths=(2, 4), norm="frozen_batch", dropout=0.5)
  optimizer = make_optimizer(optax.constant_schedule(0.1), freeze=("Conv_0",))
  step = make_train_step(
    optimizer,
    make_forward(model, make_augment(size=SIZE, scale=(0.5, 2.0), brightness=0.3)),
    make_losses(make_loss(name=loss), jnp.array([1.0, 2.0, 0.5])),
    training_counts,
    freeze=("Conv_0",),
    accumulate=parts,
  )
  state = create_train_state(model, optimizer, jax.random.key(0), (*SIZE, 3))
  state = on_devices(state, devices)
  for i in range(2):
    state, metrics = step(state, shard(make_batch(i), devices), jax.random.key(1))
  return jax.device_get((state, metrics))


@pytest.fixture(scope="module")
def at_once():
  return accumulated(1, 1)


@pytest.mark.parametrize(("devices", "parts"), [(1, 4), (2, 2)])
def test_parts_make_the_step_of_the_whole_batch(at_once, devices, parts):
  # Images have from 16 to 2 rows of known labels, so that means of the parts' means are far off;
  # dropout and augmentation are drawn as in the whole. Float32 in another order of adding.
  state, metrics = accumulated(devices, parts)
  reference, reference_metrics = at_once
  np.testing.assert_array_equal(metrics["confusion"].sum(), reference_metrics["confusion"].sum())
  for name in ("loss", "losses", "grad_norm"):
    for a, b in zip(
      jax.tree.leaves(metrics[name]), jax.tree.leaves(reference_metrics[name]), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5)
  for name in ("params", "opt_state"):
    for a, b in zip(
      jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(reference, name)), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_running_statistics_go_through_every_part():
  model, optimizer = TwoNorms(K), make_optimizer(lambda _: 0.0)
  augment = make_augment(size=SIZE, scale=(1.0, 1.0), flip=0.0)
  step = make_train_step(
    optimizer, make_forward(model, augment), make_losses(make_loss()), accumulate=2
  )
  state = create_train_state(model, optimizer, jax.random.key(0), (*SIZE, 3))
  batch = make_batch(0, batch=4)
  batch["label"][:] = 0
  state, _ = step(state, shard(batch, 1), jax.random.key(1))
  first, second = normalize(batch["image"]).reshape(2, -1, 3).mean(1)
  found = state.batch_stats["first"]["mean"]
  np.testing.assert_allclose(found, 0.9 * 0.1 * first + 0.1 * second, atol=1e-6)


def run(devices, steps=10):
  _, step, state = make_parts(brightness=0.2)
  state = on_devices(state, devices)
  matrix = ConfusionState.empty(K)
  losses = []
  for i in range(steps):
    state, metrics = step(state, shard(make_batch(i), devices), jax.random.key(1))
    matrix = matrix.update(metrics["confusion"])
    losses.append(float(metrics["loss"]))
    assert int(metrics["confusion"].sum()) == int(metrics["losses"]["main"][1]) > 0
  return jax.device_get(state), matrix.matrix, losses


@pytest.fixture(scope="module")
def one_device():
  return run(1)


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_equal_one_device_on_the_same_global_batch(one_device, devices):
  # Float32: sums are added in another order, which ten steps of SGD at lr .05 carry on. Means of
  # device means, or statistics of one device's batch norm, are off by more than 1e-2 here.
  state, matrix, losses = run(devices)
  reference, reference_matrix, reference_losses = one_device
  assert int(state.step) == 10
  assert losses[-1] < losses[0] - 0.1
  np.testing.assert_allclose(losses, reference_losses, rtol=1e-4)
  assert abs(matrix - reference_matrix).sum() <= 2e-3 * reference_matrix.sum()
  for name in ("params", "batch_stats", "ema", "opt_state"):
    for a, b in zip(
      jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(reference, name)), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-3)


def test_a_batch_without_a_valid_pixel_changes_nothing_but_the_decay():
  _, step, state = make_parts()
  batch = make_batch(0)
  batch["label"][:] = IGNORE
  before = jax.device_get(state.params)
  state, metrics = step(state, shard(batch, 1), jax.random.key(1))
  assert float(metrics["loss"]) == 0.0
  assert [float(x) for x in metrics["losses"]["main"]] == [0.0, 0.0]
  assert float(metrics["grad_norm"]) == 0.0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), jax.device_get(state.params), before
  )


def test_the_average_follows_the_parameters():
  _, step, state = make_parts()
  start = jax.device_get(state.params)
  state, _ = step(state, shard(make_batch(0), 1), jax.random.key(1))
  # Step 0: the decay is min(.9, 1 / 10).
  expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, start, state.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, expected)
  assert state.variables()["params"] is state.ema


def make_eval_set(count=11, seed=0):
  """Logits and labels of images of different sizes, each on its canvas."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(5, 17, (count, 2)).astype(np.int32)
  label_sizes = rng.integers(5, 31, (count, 2)).astype(np.int32)
  logits = rng.normal(size=(count, *SIZE, K)).astype(np.float32)
  label = np.full((count, 30, 30), IGNORE, np.uint8)
  for i, (h, w) in enumerate(label_sizes):
    label[i, :h, :w] = rng.choice([0, 1, 2, IGNORE], (h, w))
  return {"logits": logits, "size": sizes, "label": label, "label_size": label_sizes}


def count_split(examples, batch, devices):
  """Confusion matrix of a split that is cut in batches, the last one filled up with padding."""
  count = len(examples["label"])
  step = jax.pmap(
    lambda b: jax.lax.psum(count_batch(b["logits"], b)[0].sum(0), AXIS),
    axis_name=AXIS,
    out_axes=None,
  )
  state = ConfusionState.empty(K)
  batch = -(-batch // devices) * devices
  for start in range(0, count, batch):
    part = {k: v[start : start + batch] for k, v in examples.items()}
    missing = batch - len(part["label"])
    fill = {"logits": 0, "size": 1, "label": IGNORE, "label_size": 1}
    part = {
      k: np.concatenate([v, np.full((missing, *v.shape[1:]), fill[k], v.dtype)])
      for k, v in part.items()
    }
    state = state.update(step(shard(part, devices)))
  return state.matrix


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_confusion_matrix_is_identical_for_all_batch_sizes_and_devices(batch, devices):
  examples = make_eval_set()
  np.testing.assert_array_equal(
    count_split(examples, batch, devices), count_split(examples, len(examples["label"]), 1)
  )


def test_counting_happens_at_the_label_size_and_ignores_the_padding():
  examples = make_eval_set(count=5)
  expected = np.zeros((K, K), np.int64)
  for i, (h, w) in enumerate(examples["label_size"]):
    rows, columns = examples["size"][i]
    valid = jnp.array(examples["logits"][i, :rows, :columns])
    full = jax.image.resize(valid, (h, w, K), "linear", antialias=False)
    label = jnp.array(examples["label"][i, :h, :w])
    expected += np.asarray(confusion(jnp.argmax(full, -1), label, K))
  counted = np.asarray(count_batch(jnp.array(examples["logits"]), examples)[0]).sum(0)
  # Another formula for the same interpolation: a near tie may fall the other way.
  assert abs(counted - expected).sum() <= 4
  assert counted.sum() == (examples["label"] != IGNORE).sum()


def test_large_images_are_decided_in_blocks_of_rows():
  examples = make_eval_set(count=3)
  canvas = examples["label"].shape[1:]
  for i in range(3):
    logits, size, label_size = (jnp.array(examples[k][i]) for k in ("logits", "size", "label_size"))
    label, confidence = decide_at_full_size(logits, size, label_size, canvas, True)
    again, cut = decide_at_full_size(logits, size, label_size, canvas, True, rows=7)
    inside = tuple(map(slice, examples["label_size"][i]))
    np.testing.assert_array_equal(label[inside], again[inside])
    np.testing.assert_allclose(confidence[inside], cut[inside], rtol=1e-5)


def test_eval_step_ignores_what_is_outside_the_image():
  model, _, state = make_parts()
  step = make_eval_step(model, prepare)
  batch = make_batch(0, batch=2)
  batch["label_size"] = batch["size"] = np.array([[16, 16], [9, 12]], np.int32)
  batch["label"][1, 9:], batch["label"][1, :, 12:] = IGNORE, IGNORE
  batch["index"] = np.array([7, 3], np.int32)
  index, clean, _ = step(state.variables(), shard(batch, 1))
  batch["image"][1, 9:], batch["image"][1, :, 12:] = 255, 255
  np.testing.assert_array_equal(clean, step(state.variables(), shard(batch, 1))[1])
  np.testing.assert_array_equal(index, [7, 3])
  np.testing.assert_array_equal(clean.sum((1, 2)), (batch["label"] != IGNORE).sum((1, 2)))


class TwoNorms(Network):
  @nn.compact
  def __call__(self, image, *, train=False):
    x = Norm("batch", name="first")(image, train=train)
    x = Norm("batch", name="second")(3 * x + 1, train=train)
    return Outputs(Conv(self.num_classes, (1, 1))(x))


@pytest.mark.parametrize(("devices", "parts"), [(1, 1), (2, 1), (2, 2)])
def test_recomputed_statistics_are_those_of_all_the_batches(devices, parts):
  model = TwoNorms(K)
  augment = make_augment(size=SIZE, scale=(1.0, 1.0), flip=0.0)
  state = create_train_state(model, make_optimizer(lambda _: 0.1), jax.random.key(0), (*SIZE, 3))
  step = make_moments_step(make_forward(model, augment), parts)
  batches = [make_batch(seed) for seed in range(3)]
  for batch in batches:
    batch["label"][:] = 0
  stats = average_moments(
    [step(state, shard(batch, devices), jax.random.key(1)) for batch in batches]
  )
  images = np.concatenate([normalize(b["image"]) for b in batches]).reshape(-1, 3)
  np.testing.assert_allclose(stats["first"]["mean"], images.mean(0), atol=1e-5)
  np.testing.assert_allclose(stats["first"]["var"], images.var(0), rtol=1e-4)
  # The second sees what the first made of each batch: mean 0, variance 1, times 3, plus 1.
  np.testing.assert_allclose(stats["second"]["mean"], np.ones(3), atol=1e-4)
  np.testing.assert_allclose(stats["second"]["var"], np.full(3, 9.0), rtol=1e-3)


def test_labels_and_weights_go_with_the_image():
  # The unpadded U-Net is compared in the middle; a weight of 5 on its left half adds 5 times its
  # cross-entropy there.
  model = models.create("unet", K, widths=(2, 4), padding="VALID", norm="none")
  size = (24, 24)  # gives 8 x 8

  def loss_with(weight):
    step = make_train_step(
      make_optimizer(optax.constant_schedule(0.1)),
      make_forward(model, make_augment(size=size, scale=(1.0, 1.0), flip=0.0)),
      make_losses(make_loss()),
      training_counts,
    )
    state = create_train_state(model, make_optimizer(lambda _: 0.1), jax.random.key(0), (*size, 3))
    image = np.random.default_rng(0).integers(0, 255, (1, *size, 3)).astype(np.uint8)
    label = np.zeros((1, *size), np.uint8)
    label[:, :, 12:] = IGNORE
    batch = {"image": image, "label": label, "size": np.array([size], np.int32)}
    if weight is not None:
      batch["weight"] = np.full((1, *size), weight, np.float32)
    _, metrics = step(state, shard(batch, 1), jax.random.key(0))
    assert float(metrics["losses"]["main"][1]) == 8 * 4
    return float(metrics["loss"])

  plain = loss_with(None)
  assert plain > 0
  np.testing.assert_allclose(loss_with(5.0), 6 * plain, rtol=1e-5)


@pytest.mark.parametrize(("devices", "parts"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 4)])
def test_each_loss_is_divided_by_its_own_global_count(devices, parts):
  # Loss: w mean(x) + 0.5 w mean(x^2 where known) + a loss of nothing; w begins at 2. The first half
  # of the batch has one known value, the second three.
  x = np.array([1.0, 2, 3, 4, 5, 6, 7, 8], np.float32)
  known = np.array([0, 1, 0, 0, 1, 1, 0, 1], bool)

  def forward(variables, batch, key, mutable):
    return variables["params"]["w"] * batch["x"], batch, {}

  def losses(outputs, batch):
    mask = batch["known"]
    squares = jnp.where(mask, outputs * batch["x"], 0.0).sum()
    return {
      "all": (outputs.sum(), jnp.float32(outputs.size)),
      "known": (squares, mask.sum(dtype=jnp.float32)),
      "none": (0.0 * outputs.sum(), jnp.float32(0)),
    }

  optimizer = optax.sgd(1.0)
  params = {"w": jnp.float32(2)}
  state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), {})
  mapped = make_train_step(
    optimizer,
    forward,
    losses,
    lambda _, b: {"seen": b["known"].sum()},
    weights={"known": 0.5, "none": 3.0},
    accumulate=parts,
  )
  state, metrics = mapped(state, shard({"x": x, "known": known}, devices), jax.random.key(0))
  slope = 4.5 + 0.5 * (4 + 25 + 36 + 64) / 4
  np.testing.assert_allclose(state.params["w"], 2 - slope, rtol=1e-6)
  np.testing.assert_allclose(metrics["loss"], 2 * slope, rtol=1e-6)
  assert [float(n) for n in metrics["losses"]["known"]] == [2 * 129 / 4, 4.0]
  assert [float(n) for n in metrics["losses"]["none"]] == [0.0, 0.0]
  assert (int(metrics["seen"]), float(metrics["losses"]["all"][1])) == (4, 8.0)
