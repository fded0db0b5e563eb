"""Seeing where a network fails: its images one by one, how sure the score is, and calibration."""

import csv
import io
import json

import numpy as np
import pytest
from helpers.untrained import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jseg
from jseg import cli
from jseg.evaluation import evaluate
from jseg.metrics import Calibration, ConfusionState, binned, host_binned, outcomes
from jseg.metrics.images import ImageScores, bootstrap_miou, image_scores, mean_iou
from jseg.run import Run
from jseg.tasks.semantic.predict import SemanticPredictor
from jseg.types import IGNORE, InputError

SHAPES = ("background", "disc", "rectangle", "triangle", "star")


def test_outcomes_by_hand():
  matrix = np.array([[5, 1, 0], [2, 7, 0], [0, 0, 0]])
  counts = outcomes(matrix)
  np.testing.assert_array_equal(counts, [[5, 7, 0], [2, 1, 0], [1, 2, 0]])
  assert mean_iou(counts) == pytest.approx((5 / 8 + 7 / 10) / 2)  # the third class isn't there
  assert mean_iou(counts) == ConfusionState(matrix).compute().miou
  assert np.isnan(mean_iou(np.zeros((3, 3))))


def test_the_interval_by_hand():
  # Of two images, both are drawn half of the time, and either one twice a quarter of it.
  good, bad = outcomes(np.diag([4, 4])), outcomes(np.array([[0, 4], [0, 4]]))
  assert bootstrap_miou(np.stack([good, bad])) == (mean_iou(bad), mean_iou(good))
  assert bootstrap_miou(np.stack([good, bad]), level=0.4) == pytest.approx(
    (mean_iou(good + bad), mean_iou(good + bad))
  )
  assert bootstrap_miou(np.stack([bad] * 9)) == pytest.approx((0.25, 0.25))
  assert bootstrap_miou(good[None]) is None
  assert bootstrap_miou(np.zeros((3, 3, 2))) is None


def test_the_interval_shrinks_as_the_root_of_the_images():
  rng = np.random.default_rng(0)

  def width(n):
    right = rng.integers(100, 900, n)
    matrices = [np.array([[r, 1000 - r], [1000 - r, r]]) for r in right]
    low, high = bootstrap_miou(np.stack([outcomes(m) for m in matrices]))
    return high - low

  assert width(25) / width(400) == pytest.approx(4, rel=0.25)


def test_calibration_by_hand():
  confidence = np.array([[0.5, 0.55, 0.9], [0.95, 1.0, 0.7]], np.float32)
  mask = np.array([[0, 1, 1], [1, 1, 0]])
  label = np.array([[0, 0, 1], [1, 0, IGNORE]])
  state = Calibration.empty().update(host_binned(confidence, mask, label))
  # Fifteenths: .5 and .55 are in (7, 8] and (8, 9]; .9 in (13, 14]; .95 and 1 in (14, 15].
  assert {i: n for i, n in enumerate(state.pixels) if n} == {7: 1, 8: 1, 13: 1, 14: 2}
  assert [state.right[i] for i in (7, 8, 13, 14)] == [1, 0, 1, 1]
  gaps = [0.5, 0.55, 0.1, 1.95 - 1]
  assert state.ece == pytest.approx(sum(gaps) / 5, abs=1e-6)
  assert np.isnan(Calibration.empty().ece)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_device_and_the_host_bin_alike(seed):
  rng = np.random.default_rng(seed)
  confidence = rng.choice(np.linspace(0.05, 1, 60), (9, 11)).astype(np.float32)
  mask, label = rng.integers(0, 3, (9, 11)), rng.choice([0, 1, 2, IGNORE], (9, 11))
  for one, other in zip(
    binned(confidence, mask, label), host_binned(confidence, mask, label), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_name_is_no_formula():
  names = ["=1+1", "+x", "-x", "@x", "\tx", "plain", 'a,"b"\nc']
  scores = ImageScores(np.arange(7), {"miou": np.array([0.5, np.nan, 1, 0, 0, 0, 0])}, "miou")
  rows = list(csv.reader(io.StringIO(scores.to_csv(names))))
  assert [row[0] for row in rows[1:]] == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", *names[5:]]
  assert [row[1] for row in rows[1:4]] == ["0.5", "", "1"]


def test_the_worst_come_first_and_images_of_nothing_are_left_out():
  scores = ImageScores(np.array([3, 5, 8, 9]), {"f1": np.array([0.5, np.nan, 0.1, 0.1])}, "f1")
  assert scores.worst(2) == [(8, 0.1), (9, 0.1)]
  assert [index for index, _ in scores.worst(9)] == [8, 9, 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("runs") / "run", classes=SHAPES)


def read(path):
  with path.open() as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize("protocol", ["shrink", "window"])
def test_each_image_is_a_line_and_the_lines_add_up(run, protocol):
  result = evaluate(run, protocol=protocol, worst=2, changes={"data.eval_batch_size": 3})
  rows, source = read(run / "evaluation" / "val_images.csv"), Run.open(run).dataset().source("val")
  assert [row["name"] for row in rows] == [source[i]["name"] for i in range(len(source))]
  totals = np.array(
    [
      [sum(int(row[f"{kind}_{i}"]) for row in rows) for i in range(5)]
      for kind in ("tp", "fp", "fn")
    ]
  )
  np.testing.assert_array_equal(totals, outcomes(result.scores.matrix))
  assert sum(int(row["pixels"]) for row in rows) == result.scores.matrix.sum()
  saved = json.loads((run / "evaluation" / "val.json").read_text())
  assert saved["miou_interval"]["low"] <= saved["miou"] <= saved["miou_interval"]["high"]
  # The same from the masks and confidences of single images.
  segmenter = jseg.Segmenter.from_run(run, protocol=protocol)
  expected = Calibration.empty()
  for i in range(len(source)):
    prediction = segmenter(source[i]["image"])
    counted = host_binned(prediction.confidence, prediction.mask, source[i]["label"])
    expected = expected.update(counted)
  assert saved["calibration"]["ece"] == pytest.approx(expected.ece, abs=1e-3)
  assert sum(saved["calibration"]["pixels"]) == result.scores.matrix.sum()
  for name in ("worst", "calibration"):
    with Image.open(run / "evaluation" / f"val_{name}.png") as picture:
      assert picture.size[0] > 300


def test_the_command_says_how_sure_the_score_is(run, capsys):
  cli.main(["evaluate", str(run), "--worst", "0"])
  shown = " ".join(capsys.readouterr().out.split())
  assert "mIoU over other images of the kind" in shown
  assert "expected calibration error" in shown
  with pytest.raises(InputError, match="worst: -1 must be a number of images"):
    evaluate(run, worst=-1)


def test_a_crf_after_windows_sees_each_image_once(run, monkeypatch):
  seen, scored = [], SemanticPredictor._scored

  def count(self, variables, images, *rest):
    seen.extend(image.shape for image in images)
    return scored(self, variables, images, *rest)

  monkeypatch.setattr(SemanticPredictor, "_scored", count)
  changes = {"data.size": (24, 24), "inference.overlap": 0.0}
  crf = {**changes, "inference.crf": True, "inference.crf_params.iterations": 1}
  result = evaluate(run, protocol="window", changes=crf, worst=0)
  assert len(seen) == len(Run.open(run).dataset().source("val"))
  plain = evaluate(run, protocol="window", changes=changes, worst=0)
  before = result.extra["without_crf"]
  assert before["per_class"] == plain.scores.to_dict(SHAPES)["per_class"]
  assert (result.scores.matrix != plain.scores.matrix).any()


def test_the_numbers_of_images_have_the_columns_that_others_read():
  columns = image_scores(np.arange(12).reshape(2, 3, 2)).columns
  assert list(columns) == [
    "pixels",
    "miou",
    *(f"{k}_{i}" for i in (0, 1) for k in ("tp", "fp", "fn")),
  ]
  assert columns["pixels"].tolist() == [0 + 1 + 4 + 5, 6 + 7 + 10 + 11]
