import json

import numpy as np
from PIL import Image
from rich.console import Console

from jseg import report
from jseg.metrics import ConfusionState
from jseg.types import IGNORE

PALETTE = np.array([[0, 0, 0], [200, 100, 0]], np.uint8)


def test_overlay_by_hand():
  image = np.full((1, 3, 3), 100, np.uint8)
  mask = np.array([[0, 1, IGNORE]], np.uint8)
  shown = report.overlay(image, mask, PALETTE, alpha=0.5)
  assert shown.tolist() == [[[50, 50, 50], [150, 100, 50], [100, 100, 100]]]
  grey = report.overlay(image[..., :1], mask, PALETTE, alpha=0.5)
  assert grey.tolist() == shown.tolist()


def test_the_table_names_classes_means_and_absent_ones():
  scores = ConfusionState(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])).compute()
  console = Console(width=100)
  with console.capture() as capture:
    console.print(report.score_table(scores, ["sky", "road", "bus"], "val"))
  text = capture.get()
  for part in ("sky", "75.0 %", "80.0 %", "absent", "77.5 %", "87.5 %"):
    assert part in text, part


def test_pictures_are_written(tmp_path):
  rng = np.random.default_rng(0)
  rows = [
    (rng.integers(0, 255, (20, 30, 3), np.uint8), mask, 1 - mask)
    for mask in rng.integers(0, 2, (5, 20, 30), np.uint8)
  ]
  report.save_samples(rows, ["a", "b"], PALETTE, tmp_path / "samples.png", "step 3")
  scores = ConfusionState(np.array([[3, 1], [0, 0]])).compute()
  report.save_confusion_plot(scores, ["a", "b"], tmp_path / "confusion.png")
  lines = [
    {"step": 1, "split": "train", "loss": 1.0, "miou": 0.1},
    {"step": 1, "split": "val", "miou": None},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  report.save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
  for name in ("samples", "confusion", "curves"):
    with Image.open(tmp_path / f"{name}.png") as picture:
      pixels = np.asarray(picture)
    assert min(pixels.shape[:2]) > 100
    assert pixels.std() > 10


def test_the_legend_leaves_out_what_the_image_has_not():
  both = report.legend({"a": 0.25, "b": 0.75}, PALETTE)
  one = report.legend({"a": 1.0, "b": 0.0}, PALETTE)
  assert both.height > one.height
  orange = (np.asarray(one) == PALETTE[1]).all(-1).sum()
  assert orange == 0
  assert (np.asarray(both) == PALETTE[1]).all(-1).sum() > 50
