"""Runs side by side: what is read, what is refused or told, and how sure a difference is."""

import csv
import json
import math
import re

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

import jseg.config
from jseg import cli, comparison
from jseg.comparison import compare, count
from jseg.data import ClassInfo
from jseg.metrics.images import paired_intervals
from jseg.models import Network
from jseg.run import Run
from jseg.types import InputError, Outputs

NAMES = ["sky", "sea"]
COUNTS = {
  "a": [[[4, 0], [0, 4], [4, 0]], [[8, 8], [0, 0], [0, 0]]],
  "b": [[[6, 2], [0, 2], [2, 0]], [[8, 8], [0, 0], [0, 0]]],
}


@pytest.fixture(autouse=True)
def nothing_is_traced(monkeypatch):
  monkeypatch.setattr(comparison, "count", lambda model, shape: (10, 2e9))


def write(folder, counts, images=("x", "y"), classes=NAMES, step=6, model="unet", table=True):
  """A run directory with a log and an evaluation."""
  run = Run(folder, jseg.config.default(model), ClassInfo(classes))
  run.write()
  key = "iou" if model == "unet" else "ap"
  metric = "miou" if model == "unet" else "map"
  totals = np.array(counts).sum(0)
  iou = totals[0] / totals.sum(0)
  lines = [
    {"step": 3, "split": "train", "loss": 2.0, metric: 0.9, "images_per_second": 5.0},
    {"step": 3, "split": "val", metric: float(iou.mean()) - 0.1},
    {"step": 6, "split": "train", "loss": 1.0, metric: 0.9, "images_per_second": 7.0},
    {"step": 6, "split": "val", metric: float(iou.mean())},
  ]
  run.files.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  run.files.evaluation.mkdir()
  by_class = {name: {key: float(value)} for name, value in zip(classes, iou, strict=True)}
  scores = {"step": step, metric: float(iou.mean()), "per_class": by_class}
  run.files.scores("val").write_text(json.dumps(scores))
  if table:
    columns = [f"{kind}_{i}" for i in range(2) for kind in ("tp", "fp", "fn")]
    with (run.files.evaluation / "val_images.csv").open("w", newline="") as file:
      writer = csv.writer(file)
      writer.writerow(["name", "miou", *columns])
      for name, each in zip(images, counts, strict=True):
        writer.writerow([name, "", *np.array(each).T.reshape(-1).tolist()])
  return folder


def test_scores_are_compared_class_by_class(tmp_path):
  result = compare([write(tmp_path / name, COUNTS[name]) for name in "ab"])
  first, other = result.entries
  assert (first.name, other.name) == ("a", "b")
  assert first.by_class == {"sky": 12 / 16, "sea": 8 / 12}
  assert (first.best, first.best_step, first.images_per_second) == (first.score, 6, 6.0)
  (difference,) = result.differences
  assert difference.by_class == pytest.approx({"sky": 14 / 16 - 12 / 16, "sea": 10 / 12 - 8 / 12})
  assert difference.mean == pytest.approx((difference.by_class["sky"] + 1 / 6) / 2)
  assert result.notes == []
  low, high = difference.intervals["sky"]
  assert (low, high) == pytest.approx((0.0, 6 / 8 - 4 / 8))  # of one image twice, of the other


def test_intervals_are_of_images_drawn_in_pairs():
  first, other = np.array(COUNTS["a"]), np.array(COUNTS["b"])
  sky, sea, mean = paired_intervals(first, other)
  assert sky == pytest.approx((0.0, 6 / 8 - 4 / 8))
  assert sea == pytest.approx((0.0, 2 / 4 - 0 / 4))
  assert mean == pytest.approx((0.0, (1 / 4 + 1 / 2) / 2))
  assert paired_intervals(first, first) == [(0.0, 0.0)] * 3
  reverse = paired_intervals(other, first)
  assert reverse[0] == pytest.approx((-1 / 4, 0.0))
  assert all(math.isnan(low) for low, _ in paired_intervals(first[:1], other[:1]))


def test_a_class_that_is_nowhere_has_no_interval():
  counts = np.zeros((3, 3, 2), int)
  counts[:, 0, 0] = 5
  sky, sea, mean = paired_intervals(counts, counts)
  assert sky == mean == (0.0, 0.0)
  assert math.isnan(sea[0])


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"table": False}, r"no intervals, as b has no counts of single images; evaluate it"),
    ({"images": ("x", "z")}, r"evaluated on different images \(1 of 2 are in both\)"),
    ({"images": ("x", "x")}, r"evaluated on different images"),
    ({"classes": ["sky", "land"]}, r"different classes \(only in the first: sea; only in the se"),
    ({"step": 3}, r"evaluation of val is of step 3, but the best in the log is step 6; measure"),
    ({"model": "mask_rcnn"}, r"of different tasks \(semantic, instance\): no score is compared"),
  ],
)
def test_what_does_not_go_together_is_told(tmp_path, changes, match):
  runs = [write(tmp_path / "a", COUNTS["a"]), write(tmp_path / "b", COUNTS["b"], **changes)]
  result = compare(runs)
  assert any(re.search(match, note) for note in result.notes), result.notes
  if "step" not in changes:
    assert not result.differences[0].intervals
  if "model" in changes:
    assert not result.differences[0].by_class


def test_counts_of_another_evaluation_are_not_believed(tmp_path):
  runs = [write(tmp_path / name, COUNTS[name]) for name in "ab"]
  (runs[1] / "evaluation" / "val_images.csv").write_bytes(
    (runs[0] / "evaluation" / "val_images.csv").read_bytes()
  )
  result = compare(runs)
  assert any("the images of b are of another evaluation" in note for note in result.notes)
  assert not result.differences[0].intervals


def test_mistakes_are_refused(tmp_path):
  run = write(tmp_path / "a", COUNTS["a"])
  with pytest.raises(InputError, match="two runs or more"):
    compare([run])
  with pytest.raises(InputError, match="named twice"):
    compare([run, tmp_path / "b" / ".." / "a"])
  with pytest.raises(InputError, match="no run directory"):
    compare([run, tmp_path / "nowhere"])
  other = write(tmp_path / "c", COUNTS["b"])
  (other / "evaluation" / "val_images.csv").write_text("name,tp_0,fp_0,fn_0,tp_1,fp_1,fn_1\nx,q\n")
  with pytest.raises(InputError, match=r"val_images.csv is damaged .*; measure it: jseg evaluate"):
    compare([run, other])


def test_the_command_prints_and_draws(tmp_path, capsys):
  runs = [str(write(tmp_path / name, COUNTS[name])) for name in "ab"]
  cli.main(["compare", *runs, "--out", str(tmp_path / "out")])
  said = capsys.readouterr().out
  assert "sky" in said
  assert "+12.5 [+0.0, +25.0]" in said
  saved = json.loads((tmp_path / "out" / "compare.json").read_text())
  assert saved["differences"][0]["by_class"]["sky"] == pytest.approx(0.125)
  with Image.open(tmp_path / "out" / "compare.png") as picture:
    colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
  assert {(31, 119, 180), (255, 127, 14)} <= colors  # a bar of each


class OneByOne(Network):
  """A layer of which everything is known."""

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(nn.Dense(self.num_classes, use_bias=False)(image), {})


def test_operations_are_those_of_one_image():
  assert count(OneByOne(5), (4, 6, 3)) == (3 * 5, 2 * 3 * 5 * 4 * 6)
