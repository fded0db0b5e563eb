"""What is told of a batch whose loss isn't finite; `test_end_to_end.py` has the file itself."""

import types

import numpy as np
import pytest

import jseg.config
import jseg.state
from jseg import suspects
from jseg.data import ClassInfo, training_indices
from jseg.run import Run
from jseg.suspects import Suspects


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """The last two of three batches of 4 volumes, out of 30."""
  config = jseg.config.change(jseg.config.default("unet3d"), {"data.batch_size": 4, "seed": 5})
  run = Run(tmp_path, config, ClassInfo(["a", "b"]))
  source = [{"name": f"scan{i}"} for i in range(30)]
  monkeypatch.setattr(suspects, "make_augmented", lambda task: lambda batch, key: ([], []))
  monkeypatch.setattr(suspects, "save_previews", lambda pictures, legend, path: None)
  task = types.SimpleNamespace(target_pictures=lambda images, targets: [], legend=list)
  found = Suspects(run, task, source, jseg.state.run_keys(0)[1], 2)
  for step in (1, 2, 3):
    image = np.full((4, 2, 3, 3, 1), step, np.float32)
    image[1, 0, 0, 0, 0] = np.nan if step == 3 else 0
    found.add(step, {"image": image, "label": np.zeros((4, 2, 3, 3), np.uint8)})
  return found


def names(step):
  return [f"scan{i}" for i in training_indices(30, batch_size=4, seed=5, batch=step - 1)]


def test_the_files_of_the_step_are_named_and_its_batch_is_saved(kept, tmp_path):
  said = kept.explain(2)
  assert said.startswith(f"The step's batch is {', '.join(names(2))}. It is saved, as it was read")
  with np.load(tmp_path / "not_finite" / "0000002.npz") as saved:
    assert saved["name"].tolist() == names(2)
    assert saved["image"].max() == saved["step"] == 2


def test_a_file_whose_own_numbers_are_not_finite_is_named(kept):
  assert f"; image itself isn't finite in {names(3)[1]}: mend the file. It is" in kept.explain(3)


def test_a_batch_that_is_no_longer_kept_has_no_story(kept):
  assert kept.explain(1) == ""


def test_a_full_disk_does_not_hide_the_loss(kept, tmp_path):
  (tmp_path / "not_finite").write_text("a file in the way")
  assert "It isn't saved: " in kept.explain(2)
