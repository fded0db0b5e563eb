"""The losses of a task, and what they weigh; its batches, readings and metrics of volumes."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import optax
import pytest

import jseg.config
from jseg.data import ClassInfo
from jseg.data.files.instances import Annotation, make_objects
from jseg.losses import make_loss
from jseg.state import TrainState
from jseg.step import make_train_step, shard
from jseg.tasks.instance import InstanceTask
from jseg.tasks.multilabel import MultilabelTask
from jseg.tasks.semantic import SemanticTask
from jseg.tasks.semantic.forward import Targets, make_losses
from jseg.tasks.semantic.predict import SemanticPrediction
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


@pytest.fixture
def volume_task(tmp_path):
  """Makes a task of volumes and its data set, two scans of 9 x 8 x 7 voxels of 1, 2 and 3 mm."""
  scan = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
  (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "mask_values": [3, 7]}))
  for split in ("train", "val"):
    for kind, array in (("images", scan), ("masks", np.where(scan > 0, 7, 3).astype(np.uint8))):
      (tmp_path / split / kind).mkdir(parents=True)
      file = nibabel.Nifti1Image(array, np.diag([1.0, 2, 3, 1]))
      nibabel.save(file, tmp_path / split / kind / "scan.nii.gz")

  def make(**changes):
    config = jseg.config.default("unet3d", widths=(2,))
    changes = {"size": (4, 4, 4), "channels": 1, "batch_size": 2, "name": "volumes", **changes}
    changes |= {"root": str(tmp_path), "data_dir": str(tmp_path / "prepared")}
    config = jseg.config.change(config, {f"data.{key}": value for key, value in changes.items()})
    return jseg.config.make_task(config)

  return make


def test_volumes_of_any_size_are_trained_on_by_patches(volume_task):
  with pytest.raises(InputError, match=r"cannot hold a volume of \(7, 8, 9\).*data.patches=True"):
    volume_task()
  task, dataset = volume_task(patches=True)
  batch = next(task.batches(dataset, 0))
  assert batch["image"].shape == (2, 4, 4, 4, 1)
  assert batch["image"].dtype == np.float32
  assert batch["size"].tolist() == [[4, 4, 4]] * 2


def test_volumes_are_predicted_as_they_were_prepared(volume_task, tmp_path):
  options = {"options.spacing": (1.5, 2.0, 1.0), "options.window": (0, 1)}
  task, dataset = volume_task(patches=True, **options)
  example, path = dataset.source("val")[0], tmp_path / "val" / "images" / "scan.nii.gz"
  image = task.read(path)
  assert image.shape == (14, 8, 9, 1)  # in half the spacing along z, the file's last axis
  np.testing.assert_allclose(image, example["image"], atol=2e-3)
  predictor = task.predictor()
  assert predictor.preparation.spacing == (1.5, 2.0, 1.0)
  prediction = SemanticPrediction(
    image,
    example["label"],
    task.classes,
    lambda: None,
    image.shape[:3],
    preparation=predictor.preparation,
  )
  saved = nibabel.load(prediction.save(tmp_path / "out", "scan", like=path)[0])
  truth = nibabel.load(tmp_path / "val" / "masks" / "scan.nii.gz")
  np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(truth.dataobj))
  np.testing.assert_array_equal(saved.affine, truth.affine)


def test_metrics_of_volumes(volume_task):
  task, dataset = volume_task(patches=True)
  with pytest.raises(InputError, match="metrics: rand is not for volumes; choose from surface"):
    task.measure({}, dataset, "val", metrics=("rand=b",))


@pytest.mark.parametrize("task", [SemanticTask, MultilabelTask])
def test_a_prediction_is_drawn_where_the_truth_is_void_too(task):
  palette = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)
  overlapping = {"combinations": ((1, 0), (0, 1))} if task is MultilabelTask else {}
  label = np.array([[0, IGNORE], [1, IGNORE]], np.uint8)
  mask = np.array([[0, 1], [1, 1]], np.uint8)
  if overlapping:
    mask = mask[..., None] == np.arange(2)
  prediction = types.SimpleNamespace(image=np.zeros((2, 2, 3), np.uint8), mask=mask)
  one = task(jseg.config.default("unet"), None, ClassInfo(("sky", "road"), palette, **overlapping))
  _, truth, drawn = one.pictures(prediction, {"label": label})
  assert (drawn[:, 0] == truth[:, 0]).all()
  assert (drawn[:, 1] == drawn[1, 0]).all()
  assert (drawn[:, 1] != truth[:, 1]).any(-1).all()


def test_found_objects_are_drawn_in_the_colors_of_the_true_ones():
  masks = np.zeros((2, 20, 20), bool)
  masks[0, :8, :8] = masks[1, 12:, 12:] = True
  truth, found = (
    make_objects((20, 20), [Annotation(mask, 1) for mask in order])
    for order in (masks, masks[::-1])
  )
  found = dataclasses.replace(found, scores=np.array([0.9, 0.8], np.float32))
  task = InstanceTask(jseg.config.default("mask_rcnn"), None, ClassInfo(("nothing", "cell")))
  prediction = types.SimpleNamespace(image=np.full((20, 20, 3), 100, np.uint8), objects=found)
  plain, shown, drawn = task.pictures(prediction, {"objects": truth})
  middles = [shown.shape[0] * place // 20 for place in (5, 17)]  # below the tags
  for y in middles:
    assert drawn[y, y].tolist() == shown[y, y].tolist() != plain[y, y].tolist()
  assert shown[middles[0], middles[0]].tolist() != shown[middles[1], middles[1]].tolist()
