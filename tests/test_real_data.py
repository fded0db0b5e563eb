"""Real data sets go the whole way; skipped where JSEG_DATA_DIR doesn't name their folder."""

import os
import pathlib

import pytest
from helpers.tiny import tiny_config

import jseg
from jseg import data
from jseg.evaluation import evaluate
from jseg.loop import train

ROOT = pathlib.Path(os.environ.get("JSEG_DATA_DIR", "nowhere"))


def root(name):
  if not (ROOT / name).is_dir():
    pytest.skip(f"JSEG_DATA_DIR has no {name}")
  return ROOT / name


@pytest.mark.parametrize(
  ("name", "splits", "channels"),
  [
    ("camvid", {"train": 367, "val": 101, "test": 233}, 3),
    ("isbi2012", {"train": 24, "val": 6}, 1),
  ],
)
def test_a_folder_trains_evaluates_and_predicts(name, splits, channels, tmp_path):
  config = tiny_config(
    tmp_path / "data",
    steps=2,
    eval_every=2,
    data__name="folder",
    data__root=str(root(name)),
    data__options={},
    data__size=(48, 64),
    data__channels=channels,
  )
  scores = train(config, tmp_path / "run")
  dataset = jseg.config.load_dataset(config)
  assert dataset.splits == splits
  # Every labeled pixel of the split is counted, at original size.
  assert scores.matrix.sum() == dataset.pixel_counts("val").sum()
  result = evaluate(tmp_path / "run", checkpoint="latest")
  assert result.scores.miou == pytest.approx(scores.miou, abs=1e-4)
  example = dataset.source("val")[0]
  prediction = jseg.Segmenter.from_run(tmp_path / "run")(example["image"])
  assert prediction.mask.shape == example["label"].shape


@pytest.mark.parametrize("name", ["camvid", "isbi2012", "voc2012"])
def test_the_check_finds_nothing_wrong(name):
  report = data.check_folder(root(name))
  assert report.problems == []
