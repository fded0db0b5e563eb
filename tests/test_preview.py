"""What a training would see, drawn before it."""

import jax
import numpy as np
import pytest
from helpers.tiny import tiny_config
from PIL import Image

import jseg.config
from jseg import cli, tasks
from jseg.preview import _batches, preview
from jseg.step import parallel, shard
from jseg.types import InputError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


def test_it_is_the_batch_of_the_first_step(data_dir):
  config = tiny_config(data_dir, augment__rotation=20.0)
  dataset = jseg.config.load_dataset(config)
  network = jseg.config.make_model(config, len(dataset.classes.names))
  task = tasks.create(config, network, dataset.classes)
  ((images, targets),) = _batches(config, task, task.batches(dataset, config.seed), 1)

  class Spy:
    def training_labels(self, label):
      return label

    def apply(self, variables, image, **_):
      return image.sum((1, 2, 3)), {}

  # As `make_train_step` calls it at step 0 of a run.
  forward = tasks.semantic.forward.make_forward(Spy(), tasks.semantic.task._make_augment(config))
  key = jax.random.fold_in(jax.random.split(jax.random.key(config.seed))[1], 0)
  batch = shard(next(task.batches(dataset, config.seed)), jax.local_device_count())

  def step(batch, key):
    sums, expected, _ = forward({}, batch, key, [])
    return jax.lax.all_gather((sums, expected.label), "batch", tiled=True)

  sums, labels = parallel(step, in_axes=(0, None))(batch, key)
  np.testing.assert_allclose(images.sum((1, 2, 3)), sums, rtol=1e-4, atol=1e-2)
  np.testing.assert_array_equal(targets.label, labels)


def test_pictures_show_targets(data_dir, tmp_path, capsys):
  config = tiny_config(data_dir)
  assert preview(config, tmp_path / "a.png", 2) == 16
  assert np.asarray(Image.open(tmp_path / "a.png")).std() > 10
  with pytest.raises(InputError, match="batches: 0 must be at least 1"):
    preview(config, tmp_path / "a.png", 0)
  with pytest.raises(InputError, match="must end in"):
    preview(config, tmp_path / "a.txt")


def test_objects(data_dir, tmp_path):
  config = tiny_config(data_dir, "mask_rcnn")
  assert preview(config, tmp_path / "a.png") == 8


def test_the_command(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match=r"augment.rotat; did you mean augment.rotation"):
    cli.main(["show-batches", "--config=quickstart", "--config.augment.rotat=3"])
