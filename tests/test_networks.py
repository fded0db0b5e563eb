"""Whole runs beyond U-Net on shapes: volumes, transfer, weight maps, recomputed statistics."""

import json

import jax
import nibabel
import numpy as np
import pytest
from helpers.tiny import tiny_config
from PIL import Image

import jseg
from jseg import cli
from jseg.loop import train
from jseg.nn.initializers import initialize
from jseg.predict import Segmenter
from jseg.run import load_model
from jseg.tasks.inference import Inference
from jseg.tasks.semantic.predict import SemanticPredictor
from jseg.types import InputError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


def variables_of(run, checkpoint="latest"):
  return jax.device_get(load_model(run, checkpoint)[1])


def lines(run):
  return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
  """Six volumes with a bright ball each, stored with its axes turned."""
  root = tmp_path_factory.mktemp("scans")
  (root / "classes.json").write_text('{"classes": ["outside", "ball"], "mask_values": [0, 7]}')
  rng = np.random.default_rng(0)
  x, y, z = np.indices((14, 18, 11))
  for index in range(6):
    split = "train" if index < 4 else "val"
    center = rng.integers(5, 8, 3)
    ball = (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2 <= 14
    image = 900 + 300 * ball + rng.normal(0, 30, ball.shape)
    for kind, array in (("images", image.astype(np.float32)), ("masks", (7 * ball))):
      path = root / split / kind / f"scan{index}.nii.gz"
      path.parent.mkdir(parents=True, exist_ok=True)
      affine = np.diag([-1.0, 1.0, 1.0, 1.0])
      nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), path)
  return root


@pytest.fixture(scope="module")
def volume_run(tmp_path_factory, data_dir, scans):
  run = tmp_path_factory.mktemp("runs") / "volumes"
  config = tiny_config(
    data_dir,
    "unet3d",
    steps=24,
    eval_every=24,
    checkpoint_every=24,
    data__name="volumes",
    data__root=str(scans),
    data__options={},
    data__size=(12, 20, 16),
    data__channels=1,
    data__batch_size=4,
    augment__crop=(8, 12, 12),
    augment__rotation=10.0,
    loss__name="cross_entropy+dice",
  )
  scores = train(config, run)
  assert scores.dice[1] > 0.5
  return run


def test_volumes_are_trained_evaluated_and_predicted(volume_run, scans, tmp_path):
  cli.main(["evaluate", str(volume_run)])
  saved = json.loads((volume_run / "evaluation" / "val.json").read_text())
  assert saved["per_class"]["ball"]["dice"] > 0.5
  assert sum(c["pixels"] for c in saved["per_class"].values()) == 2 * 14 * 18 * 11
  folder = scans / "val" / "images"
  cli.main(["predict", str(volume_run), str(folder), "--out", str(tmp_path)])
  both = total = 0
  for path in folder.iterdir():
    # The mask lies on the scan: same axes, same affine, the data set's own values.
    mask = nibabel.load(tmp_path / path.name)
    image = nibabel.load(path)
    np.testing.assert_array_equal(mask.affine, image.affine)
    truth = np.asarray(nibabel.load(scans / "val" / "masks" / path.name).dataobj)
    guess = np.asarray(mask.dataobj)
    assert set(np.unique(guess)) <= {0, 7}
    both += ((guess == 7) & (truth == 7)).sum()
    total += (guess == 7).sum() + (truth == 7).sum()
  assert 2 * both / total == pytest.approx(saved["per_class"]["ball"]["dice"], abs=1e-3)
  with Image.open(tmp_path / "scan4_overlay.png") as overlay:
    assert overlay.size == (14, 18)


def test_a_volume_larger_than_the_canvas_is_tiled(volume_run):
  segmenter = Segmenter.from_run(volume_run)
  rng = np.random.default_rng(0)
  volume = rng.normal(size=(30, 20, 33, 1)).astype(np.float32)
  prediction = segmenter(volume)
  assert prediction.mask.shape == (30, 20, 33)
  np.testing.assert_allclose(prediction.probabilities.sum(-1), 1, atol=1e-5)
  with pytest.raises(InputError, match=r"takes volumes, not an array of shape \(8, 8, 1\)"):
    SemanticPredictor(None, segmenter.classes, (8, 8, 8), 1)({}, np.zeros((8, 8, 1), np.uint8))


def test_images_for_a_network_of_volumes(tmp_path, data_dir, scans):
  config = tiny_config(data_dir, "unet3d", data__size=(8, 8, 8), augment__crop=())
  with pytest.raises(InputError, match=r"unet3d takes volumes, but shapes holds images; .*unet"):
    train(config, tmp_path / "run")
  config = tiny_config(data_dir, data__name="volumes", data__root=str(scans), data__options={})
  with pytest.raises(InputError, match=r"unet takes images, but volumes holds volumes; .*unet3d"):
    train(config, tmp_path / "run")
  small = {"data__name": "volumes", "data__root": str(scans), "data__options": {}}
  config = tiny_config(data_dir, "unet3d", data__size=(8, 20, 16), data__channels=1, **small)
  with pytest.raises(InputError, match=r"cannot hold a volume of \(11, 18, 14\) voxels"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_crop_that_does_not_fit_and_weights_of_other_classes(tmp_path, data_dir):
  config = tiny_config(data_dir, knobs={"padding": "VALID", "norm": "none"}, augment__crop=(33, 44))
  with pytest.raises(InputError, match=r"height 33 does not fit padding VALID.* crops of 32 or 34"):
    train(config, tmp_path / "crop")
  config = tiny_config(data_dir, loss__class_weights=(1.0, 2.0))
  with pytest.raises(InputError, match=r"2 numbers, but shapes has 5 classes \(background, disc"):
    train(config, tmp_path / "weights")
  config = tiny_config(data_dir, "patch_classifier", augment__crop=(14, 20))
  with pytest.raises(InputError, match=r"a crop of 14 x 20 holds no patch of 15"):
    train(config, tmp_path / "patch")


def test_each_fcn_starts_from_the_one_before(tmp_path, data_dir, capsys):
  few = {"steps": 2, "eval_every": 2, "checkpoint_every": 2, "samples": 0}
  train(tiny_config(data_dir, "fcn32s", **few), tmp_path / "fcn32s")
  before = variables_of(tmp_path / "fcn32s")["params"]
  capsys.readouterr()
  # A rate so small that what was taken is still there after two steps.
  tiny_rate = {
    **few,
    "optim__lr": 1e-9,
    "optim__head_lr": 1e7,
    "init_from": str(tmp_path / "fcn32s"),
  }
  train(tiny_config(data_dir, "fcn16s", **tiny_rate), tmp_path / "fcn16s")
  after = variables_of(tmp_path / "fcn16s")["params"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after["backbone"], before["backbone"]
  )
  np.testing.assert_allclose(after["score_fr"]["kernel"], before["score_fr"]["kernel"], atol=1e-6)
  # Only what is new has a rate that moves it: its scores start at zero.
  assert abs(after["score_pool4"]["kernel"]).max() > 1e-5
  told = " ".join(capsys.readouterr().out.split())
  assert "newly initialized: score_pool4/bias, score_pool4/kernel" in told
  assert "in it but not in the network: upscore/kernel" in told
  record = json.loads((tmp_path / "fcn16s" / "init.json").read_text())
  assert record["unused"] == ["upscore/kernel"]
  assert "score_fr/kernel" in record["taken"]
  assert "score_pool4/kernel" in record["kept"]
  with pytest.raises(InputError, match=r"nothing in .*fcn32s fits this network"):
    train(tiny_config(data_dir, **tiny_rate), tmp_path / "unet")


def test_recomputed_statistics_are_those_that_are_measured_and_saved(tmp_path, data_dir):
  plain = {"steps": 8, "eval_every": 4, "samples": 0}
  train(tiny_config(data_dir, **plain, precise_bn_batches=2), tmp_path / "whole")
  train(tiny_config(data_dir, **plain), tmp_path / "plain")
  whole, moving = variables_of(tmp_path / "whole"), variables_of(tmp_path / "plain")
  jax.tree.map(np.testing.assert_array_equal, whole["params"], moving["params"])
  for a, b in zip(
    jax.tree.leaves(whole["batch_stats"]), jax.tree.leaves(moving["batch_stats"]), strict=True
  ):
    assert abs(a - b).max() > 0
  # The numbers in the log are those of the saved statistics.
  cli.main(["evaluate", str(tmp_path / "whole"), "--checkpoint", "latest"])
  saved = json.loads((tmp_path / "whole" / "evaluation" / "val.json").read_text())
  assert saved["miou"] == pytest.approx(lines(tmp_path / "whole")[-1]["miou"], abs=1e-6)


def test_published_unet_with_weight_map_and_region_measures(tmp_path, data_dir):
  config = tiny_config(
    data_dir,
    knobs={"padding": "VALID", "norm": "none", "dropout": 0.5},
    samples=0,
    data__size=(48, 48),
    augment__crop=(60, 60),
    loss__border_weight=10.0,
    loss__balance="median",
  )
  scores = train(config, tmp_path / "run")
  assert scores.matrix.sum() > 0
  arguments = ["evaluate", str(tmp_path / "run"), "--metrics", "boundary", "rand=disc"]
  cli.main(arguments)
  saved = json.loads((tmp_path / "run" / "evaluation" / "val.json").read_text())
  assert 0 <= saved["boundary_miou"] <= saved["miou"] + 0.2
  assert set(saved["boundary_iou"]) == set(saved["per_class"])
  assert 0 < saved["rand"] <= 1
  with pytest.raises(SystemExit, match=r"there is no class 'disk'; choose from background, disc"):
    cli.main([*arguments[:-1], "rand=disk"])
  with pytest.raises(SystemExit, match="metrics: boundary, boundary names one twice"):
    cli.main([*arguments[:-1], "boundary"])


def test_tiles_give_what_the_whole_image_gives():
  # Unpadded, a pixel sees 20 around it: margins of 32 hide the tiles.
  model = jseg.models.create("unet", 3, widths=(4, 8, 8), padding="VALID", norm="none")
  image = np.random.default_rng(0).integers(0, 255, (150, 203, 3), dtype=np.uint8)
  variables = initialize(model, jax.random.key(0), (64, 64, 3))
  classes = jseg.data.ClassInfo(("a", "b", "c"))
  tiled = SemanticPredictor(model, classes, (96, 128), inference=Inference("tile", margin=32))(
    variables, image
  )
  whole = SemanticPredictor(model, classes, (150, 203))(variables, image)
  np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-5)
  for margin, message in ((64, r"64 pixels on both sides leave nothing"), (-2, r"-2 must be at")):
    with pytest.raises(InputError, match=f"margin: {message}"):
      SemanticPredictor(model, classes, (96, 128), inference=Inference("tile", margin=margin))
