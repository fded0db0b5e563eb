"""What the check refuses or tells of a folder, preparation and training refuse or tell; no more."""

import os

import numpy as np
import pytest
from helpers.mangled import CHANGES, make_folder, mangle
from helpers.mangled_sets import SETS

from jseg import config as configs
from jseg import data, tasks
from jseg.types import InputError

# Each costs a few tenths of a second; 200 of each kind were seen to agree.
COUNT = int(os.environ.get("JSEG_MANGLED_FOLDERS", "16"))


def agree(root, data_dir, name="folder"):
  """Asserts that check and training agree; returns "refused", "told" or "fine"."""
  report, refusal = attempt(data.check_folder, root)
  if report is None:
    assert attempt(data.load, name, root=root, data_dir=data_dir) == (None, refusal)
    return "refused"
  problems = [str(problem) for problem in report.problems]
  dataset, refusal = attempt(train_on, root, data_dir, name)
  if dataset is None:
    first = refusal.split("\n")[0]
    assert any(first.startswith(problem.split("\n")[0]) for problem in problems), (first, problems)
    return "refused"
  assert problems == []
  # The check lists objects that are left out one by one.
  summed = [note for note in dataset.notes if note.kind == "left out"]
  alone = [note for note in report.notes if note.fix == "It is left out"]
  assert sum(int(note.problem.split()[2]) for note in summed) == len(alone)
  others = [note for note in dataset.notes if note.kind != "left out"]
  assert sorted(map(str, others)) == sorted(str(n) for n in report.notes if n not in alone)
  assert dataset.splits == {split: contents.count for split, contents in report.splits.items()}
  k = len(dataset.classes.names)
  for split, contents in report.splits.items():
    assert dataset.pixel_counts(split).tolist() == contents.pixels[:k].tolist()
    assert dataset.object_counts(split)[0] == contents.objects.sum()
    assert len(dataset.source(split)) == contents.count
  return "told" if report.notes else "fine"


def train_on(root, data_dir, name):
  """What `jseg.train` does with a data set before it trains."""
  dataset = data.load(name, root=root, data_dir=data_dir)
  network = "mask_rcnn" if dataset.has_objects else "unet" if dataset.ndim == 2 else "unet3d"
  config = configs.default(network)
  config.data.name = name
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


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("seed", range(COUNT // 2))
def test_check_and_training_of_other_sets_agree(kind, seed, tmp_path):
  make, changes = SETS[kind]
  rng = np.random.default_rng(seed)
  make(tmp_path / "set", rng)
  done = [changes[rng.integers(len(changes))] for _ in range(rng.integers(0, 3))]
  for change in done:
    change(tmp_path / "set", rng)
  name = "folder" if kind == "objects" else kind
  outcome = agree(tmp_path / "set", tmp_path / "data", name)
  assert outcome == "fine" if not done else outcome in ("refused", "told", "fine")
