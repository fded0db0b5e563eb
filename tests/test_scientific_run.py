"""Scientific images the whole way: trained, evaluated, predicted, exported; weights for them."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

import jseg
from jseg import cli, data
from jseg import config as configs
from jseg.evaluation import evaluate
from jseg.metrics import host_confusion
from jseg.models import Network
from jseg.predict import Segmenter, predict_files
from jseg.run import Run
from jseg.types import InputError, Outputs
from jseg.weights import adapt_kernel, image_kernels, transfer


class Pixelwise(Network):
  """One linear map of each pixel's channels, which compiles in no time."""

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(nn.Conv(self.num_classes, (1, 1), name="conv")(image))


BANDS = 5


def scene(seed):
  """An image of five bands, of which the fourth tells the class, and its mask."""
  rng = np.random.default_rng(seed)
  mask = (rng.random((12, 14)) < 0.3).astype(np.uint8)
  image = rng.normal(0.2, 0.02, (12, 14, BANDS)) * [1, 2, 3, 1000, 5]
  image[..., 3] += 400.0 * mask
  return image.astype(np.float32), mask


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("data") / "bands"
  for split, count in {"train": 8, "val": 3}.items():
    for kind in ("images", "masks"):
      (root / split / kind).mkdir(parents=True)
    for i in range(count):
      image, mask = scene(i + 100 * len(split))
      path = root / split / "images" / f"{i}"
      if i % 2:
        np.save(path.with_suffix(".npy"), image)
      else:
        tifffile.imwrite(
          path.with_suffix(".tif"),
          np.moveaxis(image, -1, 0),
          planarconfig="separate",
          photometric="minisblack",
        )
      Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
  (root / "classes.json").write_text(json.dumps({"classes": ["ground", "water"]}))
  return root


@pytest.fixture(scope="module")
def run(root):
  config = configs.default("test_scientific_run:Pixelwise")
  config.steps = config.eval_every = 40
  config.samples, config.compilation_cache = 2, ""
  config.optim.lr = 0.5
  config.augment.scale = (1.0, 1.0)
  keys = {"name": "scientific", "root": str(root), "data_dir": str(root.parent), "size": (12, 14)}
  config.data.update({**keys, "channels": BANDS, "scaling": "1%:99%", "shown": (3, 1, 0)})
  scores = jseg.train(config, root.parent / "run")
  assert scores.miou > 0.9
  return root.parent / "run"


def test_a_run_keeps_its_scaling(root, run):
  keys = Run.open(run).config.data
  pixels = np.concatenate([scene(i + 500)[0].reshape(-1, BANDS) for i in range(8)])
  np.testing.assert_allclose(keys.low, np.percentile(pixels, 1, 0), 1e-5)
  np.testing.assert_allclose(keys.high, np.percentile(pixels, 99, 0), 1e-5)
  shares = ((pixels - keys.low) / (np.array(keys.high) - keys.low)).clip(0, 1)
  np.testing.assert_allclose(keys.mean, shares.mean(0), 1e-4)
  np.testing.assert_allclose(keys.deviation, shares.std(0), 1e-4)


@pytest.mark.parametrize("protocol", ["shrink", "window"])
def test_prediction_by_command_line_is_what_evaluation_counts(root, run, protocol, tmp_path):
  command = ["predict", str(run), str(root / "val" / "images"), f"--out={tmp_path}"]
  cli.main([*command, f"--protocol={protocol}"])
  counts = np.zeros((2, 2), np.int64)
  for i in range(3):
    with Image.open(tmp_path / f"{i}.png") as mask:
      counts += host_confusion(np.asarray(mask), scene(i + 300)[1], 2)
    with Image.open(tmp_path / f"{i}_overlay.png") as overlay:
      assert (overlay.size, overlay.mode) == ((14, 12), "RGB")
  found = evaluate(run, protocol=protocol, worst=0)
  assert found.scores.pixel_accuracy == pytest.approx(np.trace(counts) / counts.sum())


def test_a_large_tiff_is_scaled_as_its_rows_are_read(run, tmp_path, monkeypatch):
  image = np.tile(scene(3)[0], (3, 4, 1))
  layout = {"photometric": "minisblack", "planarconfig": 1}
  tifffile.imwrite(tmp_path / "a.tif", image, tile=(16, 16), **layout)
  options = {"protocol": "window", "changes": {"data.eval_batch_size": 8}}
  predict_files(run, [tmp_path / "a.tif"], tmp_path / "whole", **options)
  monkeypatch.setattr("jseg.data.files.stored.LARGE", 0)
  monkeypatch.setattr("jseg.data.files.stored.StoredImage.__array__", lambda *_: pytest.fail("all"))
  assert predict_files(run, [tmp_path / "a.tif"], tmp_path / "rows", **options).failed == {}
  for name in ("a.png", "a_overlay.png"):
    assert (tmp_path / "rows" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  np.save(tmp_path / "few.npy", image[..., :2])
  tifffile.imwrite(tmp_path / "few.tif", image[..., :2], **layout)
  for name in ("few.npy", "few.tif"):
    failed = predict_files(run, [tmp_path / name], tmp_path / name[-3:], **options).failed
    assert "has 2 channel(s), and the run is of 5" in failed["few"]


def test_large_tiffs_are_evaluated_by_rows(root, run, tmp_path, monkeypatch):
  changes = {"data.size": (8, 8), "inference.scales": (1.0, 1.5), "data.eval_batch_size": 8}
  whole = evaluate(run, protocol="window", changes=changes, worst=0)
  monkeypatch.setattr("jseg.data.files.stored.LARGE", 0)
  monkeypatch.setattr("jseg.data.dataset._CACHE_BYTES", 0)
  monkeypatch.setattr("jseg.data.files.rows.StoredImage.__array__", lambda *_: pytest.fail("all"))
  monkeypatch.setattr("jseg.tasks.semantic.task._MOST_SHOWN", 7)  # of 14: every second is drawn
  changes["data.data_dir"] = str(tmp_path)
  rows = evaluate(run, protocol="window", changes=changes, worst=3)
  assert {path.name[:7] for path in tmp_path.rglob("val_*.npy")} == {
    "val_0_i",
    "val_0_l",
    "val_2_i",
    "val_2_l",
  }
  np.testing.assert_array_equal(rows.scores.counts, whole.scores.counts)
  assert rows.scores.calibration.ece == pytest.approx(whole.scores.calibration.ece, abs=1e-6)


def test_other_images_are_refused_by_name(run, tmp_path, capsys):
  np.save(tmp_path / "few.npy", scene(0)[0][..., :3])
  np.save(tmp_path / "whole.npy", scene(0)[0])
  with pytest.raises(SystemExit) as stopped:
    cli.main(["predict", str(run), str(tmp_path), f"--out={tmp_path / 'out'}"])
  printed = " ".join(f"{stopped.value} {''.join(capsys.readouterr())}".split())
  assert "has 3 channel(s), and the run is of 5" in printed
  assert (tmp_path / "out" / "whole.png").is_file()
  with pytest.raises(InputError, match="isn't scaled"):
    Segmenter.from_run(run)(scene(0)[0].astype(np.float64))
  with pytest.raises(InputError, match="crf: a CRF compares colors"):
    Segmenter.from_run(run, changes={"inference.crf": True})


def test_the_exported_function_takes_numbers_as_they_are(run):
  opened = Run.open(run)
  serving, (_, variables) = opened.task.serving(), opened.restore()
  assert (serving.dtype, serving.channels) == ("float32", BANDS)
  image = scene(7)[0]
  logits = serving.function(variables, jnp.asarray(image)[None])[0]
  scaled = data.scale(image, opened.config.data.low, opened.config.data.high)
  mask = Segmenter.from_run(run)(scaled).mask
  np.testing.assert_array_equal(logits.argmax(-1), mask)


# Weights.


def test_a_kernel_for_other_channels_by_hand():
  kernel = np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2)  # R 0 1, G 2 3, B 4 5
  np.testing.assert_array_equal(adapt_kernel(kernel, 1)[0, 0], [[6, 9]])
  np.testing.assert_array_equal(
    adapt_kernel(kernel, 4)[0, 0] * 4, np.array([[0, 1], [2, 3], [4, 5], [0, 1]]) * 3
  )
  np.testing.assert_array_equal(
    adapt_kernel(kernel, 6)[0, 0] * 2, [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3], [4, 5]]
  )
  np.testing.assert_allclose(adapt_kernel(kernel, 2)[0, 0], [[0, 1.5], [3, 4.5]])


@pytest.mark.parametrize("channels", [1, 3, 6, 9])
def test_an_image_of_like_channels_gives_what_it_gave(channels):
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
  gray = np.random.default_rng(1).normal(size=(3, 3, 1)).astype(np.float32)
  image = np.repeat(gray, channels, -1)
  np.testing.assert_allclose(
    np.einsum("hwc,hwcf->f", image, adapt_kernel(kernel, channels)),
    np.einsum("hwc,hwcf->f", np.repeat(gray, 3, -1), kernel),
    rtol=1e-4,
    atol=1e-5,
  )


def test_kernels_that_read_the_image():
  tiny = {name: jseg.models.get(name).TINY for name in ("unet", "deeplab_v3")}
  found = {
    name: image_kernels(jseg.models.create(name, 2, **arguments), (64, 64, 3))
    for name, arguments in tiny.items()
  }
  assert [len(names) for names in found.values()] == [1, 1], found
  assert found["deeplab_v3"] == {"backbone/conv1/kernel"}


def test_weights_of_colors_for_bands():
  """The first kernel alone is made for them; another that happens to have 3 inputs isn't."""
  shapes = {
    "first": {"kernel": np.zeros((1, 1, 6, 2), np.float32)},
    "head": {"kernel": np.zeros((1, 1, 6, 3), np.float32)},
  }
  given = {
    "first": {"kernel": np.ones((1, 1, 3, 2), np.float32)},
    "head": {"kernel": np.ones((1, 1, 3, 3), np.float32)},
  }
  new, report = transfer({"params": shapes}, {"params": given}, "w", lambda: {"first/kernel"})
  np.testing.assert_array_equal(new["params"]["first"]["kernel"], np.full((1, 1, 6, 2), 0.5))
  np.testing.assert_array_equal(new["params"]["head"]["kernel"], 0)
  assert report.adapted == ["first/kernel (its 3 channel(s) repeated and multiplied by 3/6)"]
  assert "of them made for other channels: first/kernel (its 3 channel(s) repeated" in str(report)
  assert "of another shape, so newly initialized: head/kernel" in str(report)


def test_a_run_of_three_channels_starts_one_of_five(run, root, tmp_path, capsys):
  for path in (root / "train" / "images").iterdir():
    three = tmp_path / "set" / path.relative_to(root).with_suffix(".npy")
    three.parent.mkdir(parents=True, exist_ok=True)
    np.save(three, data.read_scientific(path)[..., :3])
  shutil.copytree(root / "train" / "masks", tmp_path / "set" / "train" / "masks")
  shutil.copy(root / "classes.json", tmp_path / "set")
  config = Run.open(run).config.copy_and_resolve_references()
  with config.unlocked():
    config.steps, config.samples, config.optim.lr = 1, 0, 1e-30
    config.data.update(dict.fromkeys(("low", "high", "mean", "deviation", "shown"), ()))
    config.data.channels, config.data.root = 3, str(tmp_path / "set")
    config.data.eval_split = "train"
  jseg.train(config, tmp_path / "colors")
  bands = Run.open(run).config.copy_and_resolve_references()
  with bands.unlocked():
    bands.steps, bands.samples, bands.init_from = 1, 0, str(tmp_path / "colors")
    bands.optim.lr = 1e-30
  capsys.readouterr()
  jseg.train(bands, tmp_path / "bands")
  assert "made for other channels: conv/kernel" in " ".join(capsys.readouterr().out.split())
  kernels = [
    jax.device_get(Run.open(tmp_path / name).restore("latest")[1])["params"]["conv"]["kernel"]
    for name in ("colors", "bands")
  ]
  np.testing.assert_allclose(kernels[1], adapt_kernel(kernels[0], BANDS), 1e-6)
  about = json.loads((tmp_path / "bands" / "init.json").read_text())
  assert about["adapted"] == ["conv/kernel (its 3 channel(s) repeated and multiplied by 3/5)"]
