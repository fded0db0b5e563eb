"""What the check refuses or tells of a folder, preparation and training refuse or tell; no more."""

import os

import numpy as np
import pytest
from helpers.mangled import CHANGES, make_folder, mangle

from jseg import config as configs
from jseg import data, tasks
from jseg.types import InputError

# Each costs a few tenths of a second; 200 were seen to agree.
COUNT = int(os.environ.get("JSEG_MANGLED_FOLDERS", "16"))


def agree(root, data_dir):
  """Asserts that check and training agree; returns "refused", "told" or "fine"."""
  report, refusal = attempt(data.check_folder, root)
  if report is None:
    assert attempt(data.load, "folder", root=root, data_dir=data_dir) == (None, refusal)
    return "refused"
  problems = [str(problem) for problem in report.problems]
  dataset, refusal = attempt(train_on, root, data_dir)
  if dataset is None:
    first = refusal.split("\n")[0]
    assert any(first.startswith(problem.split("\n")[0]) for problem in problems), (first, problems)
    return "refused"
  assert problems == []
  assert sorted(map(str, dataset.notes)) == sorted(map(str, report.notes))
  assert dataset.splits == {split: contents.count for split, contents in report.splits.items()}
  k = len(dataset.classes.names)
  for split, contents in report.splits.items():
    assert dataset.pixel_counts(split).tolist() == contents.pixels[:k].tolist()
    assert len(dataset.source(split)) == contents.count
  return "told" if report.notes else "fine"


def train_on(root, data_dir):
  """What `jseg.train` does with a folder before it trains."""
  dataset = data.load("folder", root=root, data_dir=data_dir)
  config = configs.default("mask_rcnn" if dataset.has_objects else "unet")
  config.data.name = "folder"
  model = configs.make_model(config, len(dataset.classes.names))
  tasks.create(config, model, dataset.classes).check_data(dataset)
  return dataset


def attempt(function, *args, **kwargs):
  """(the result, None), or (None, what was refused)."""
  try:
    return function(*args, **kwargs), None
  except InputError as error:
    return None, str(error)


@pytest.mark.parametrize("seed", range(COUNT))
def test_check_and_training_agree(seed, tmp_path):
  rng = np.random.default_rng(seed)
  make_folder(tmp_path / "set", rng)
  done = [mangle(tmp_path / "set", rng) for _ in range(rng.integers(1, 3))]
  assert agree(tmp_path / "set", tmp_path / "data") in ("refused", "told", "fine"), done


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_change_alone(change, tmp_path):
  rng = np.random.default_rng(0)
  make_folder(tmp_path / "set", rng)
  change(tmp_path / "set", rng)
  agree(tmp_path / "set", tmp_path / "data")
