"""The dense CRF after a trained network: evaluate, predict."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import jseg
from jseg import cli
from jseg.crf import CrfParams, dense_crf
from jseg.crf.settings import make_params, parse_params, run_params, to_dict
from jseg.data import read_image
from jseg.evaluate import evaluate_run
from jseg.loop import train
from jseg.metrics import confusion, host_confusion
from jseg.types import InputError

MILD = CrfParams(iterations=2, bilateral_sigma_xy=8.0, bilateral_sigma_rgb=20.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished run; tests must not change it but for its evaluation folder."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  train(tiny_config(tmp_path_factory.mktemp("data")), workdir)
  return workdir


def test_parameters_as_text(tmp_path):
  params = parse_params("bilateral_weight=4.5, iterations=3,method=exact", CrfParams(landmarks=7))
  assert params == CrfParams(bilateral_weight=4.5, iterations=3, method="exact", landmarks=7)
  path = tmp_path / "crf.json"
  path.write_text(json.dumps({"spatial_weight": [1, 2]}))
  assert parse_params(str(path)).spatial_weight == [1, 2]
  assert run_params(tmp_path).spatial_weight == [1, 2]
  assert run_params(tmp_path / "elsewhere") == CrfParams()
  assert make_params(json.loads(json.dumps(to_dict(MILD)))) == MILD


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("weight=3", r"no parameter 'weight'; choose from iterations, "),
    ("iterations=2.5", r"iterations 2.5 must be a whole number, such as 10"),
    ("iterations=true", r"iterations True must be a whole number"),
    ("bilateral_weight=much", r"bilateral_weight 'much' must be a number"),
    ("bilateral_weight=4,5", r"'5' is not KEY=VALUE; write --crf-params"),
    ("method=fast", r"method 'fast' is not known; choose lattice"),
    ("nowhere.json", r"nowhere.json can't be read \(No such file"),
  ],
)
def test_mistakes_in_parameters(text, match):
  with pytest.raises(InputError, match=match):
    parse_params(text)


@pytest.mark.parametrize(("text", "match"), [("[1]", "must hold an object"), ("{", "not valid")])
def test_mistakes_in_a_file_of_parameters(tmp_path, text, match):
  (tmp_path / "p.json").write_text(text)
  with pytest.raises(InputError, match=match):
    parse_params(str(tmp_path / "p.json"))


def test_the_hosts_confusion_is_the_devices():
  rng = np.random.default_rng(0)
  prediction = rng.integers(0, 3, (5, 7)).astype(np.uint8)
  label = rng.choice(np.array([0, 1, 2, 255], np.uint8), (5, 7))
  expected = confusion(prediction.astype(np.int32), label.astype(np.int32), 3)
  np.testing.assert_array_equal(host_confusion(prediction, label, 3), expected)


def test_a_segmenter_with_a_crf_is_the_crf_of_its_probabilities(run):
  image = np.random.default_rng(0).integers(0, 256, (40, 28, 3), np.uint8)
  plain = jseg.Segmenter.from_run(run)(image)
  refined = jseg.Segmenter.from_run(run, crf=MILD)(image)
  expected = dense_crf(np.log(plain.probabilities), image, MILD)
  np.testing.assert_allclose(refined.probabilities, expected, atol=1e-4)
  np.testing.assert_array_equal(refined.mask, refined.probabilities.argmax(-1))
  assert (refined.mask != plain.mask).any()
  tiled = jseg.Segmenter.from_run(run, tile=True, margin=0, crf=MILD)(image)
  assert tiled.mask.shape == (40, 28)


def test_a_crf_without_kernels_changes_nothing(run):
  off = CrfParams(spatial_weight=0.0, bilateral_weight=0.0)
  result = evaluate_run(run, crf=off, boundary=True, rand="disc")
  after = result.extra["crf"]
  assert after["miou"] == pytest.approx(result.scores.miou, abs=1e-9)
  assert after["boundary_miou"] == result.extra["boundary_miou"]
  assert after["rand"] == result.extra["rand"]


def test_evaluate_writes_measures_before_and_after(run, capsys):
  text = "iterations=2,bilateral_sigma_xy=8,bilateral_sigma_rgb=20"
  cli.main(["evaluate", str(run), "--crf-params", text, "--boundary"])
  shown = capsys.readouterr().out
  assert "without CRF" in shown
  saved = json.loads((run / "evaluation" / "val.json").read_text())
  assert saved["crf"]["params"] == to_dict(MILD)
  state = np.zeros((5, 5), np.int64)
  segmenter = jseg.Segmenter.from_run(run, crf=MILD)
  config, _ = jseg.checkpoint.load_run(run)
  source = jseg.config.load_dataset(config).source("val")
  for index in range(len(source)):
    mask, label = segmenter(source[index]["image"]).mask, source[index]["label"]
    state += host_confusion(mask, label, 5)
  union = state.sum(0) + state.sum(1) - state.diagonal()
  iou = state.diagonal()[union > 0] / union[union > 0]
  assert saved["crf"]["miou"] == pytest.approx(iou.mean())
  assert {"miou", "boundary_miou", "per_class"} <= saved.keys() & saved["crf"].keys()


def test_predict_refines(run, tmp_path):
  image = np.random.default_rng(1).integers(0, 256, (32, 40, 3), np.uint8)
  Image.fromarray(image).save(tmp_path / "a.png")
  arguments = ["predict", str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
  cli.main([*arguments, "--crf-params", "iterations=2,bilateral_sigma_xy=8,bilateral_sigma_rgb=20"])
  expected = jseg.Segmenter.from_run(run, crf=MILD)(read_image(tmp_path / "a.png")).mask
  with Image.open(tmp_path / "out" / "a.png") as written:
    np.testing.assert_array_equal(np.asarray(written), expected)


def test_a_crf_is_not_for_volumes():
  classes = jseg.data.ClassInfo.load  # not reached
  with pytest.raises(InputError, match="CRF after a network is for images; leave it out"):
    jseg.Segmenter(None, {}, classes, (8, 8, 8), 1, crf=MILD)
