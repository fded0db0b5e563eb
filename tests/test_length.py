"""Epochs, stopping early, and another length on resuming."""

import json

import flax.linen as nn
import numpy as np
import pytest
from helpers.tiny import tiny_config

import jseg
from jseg.length import Progress, about_other_length, in_steps
from jseg.metrics import ConfusionState
from jseg.models import Network
from jseg.nn import Conv
from jseg.tasks.semantic import SemanticTask
from jseg.types import InputError, Outputs


class OneLayer(Network):
  """A single convolution."""

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(self.typed(Conv)(self.num_classes, (3, 3))(image))


def test_progress_counts_evaluations_since_the_best():
  progress, seen = Progress(), []
  for score in (0.2, 0.5, 0.5, float("nan"), 0.6):
    progress = progress.after(score)
    seen.append((progress.best, progress.since, progress.is_over(2)))
  assert seen == [
    (0.2, 0, False),
    (0.5, 0, False),
    (0.5, 1, False),
    (0.5, 2, True),
    (0.6, 0, False),
  ]
  assert not Progress(0.5, 100).is_over(0)
  assert Progress.read({"iterator": {}}) == Progress()  # a checkpoint that is older


@pytest.mark.parametrize(
  ("epochs", "images", "steps"),
  [(0.0, 100, 12), (1.0, 24, 3), (1.0, 25, 4), (2.5, 24, 8), (0.01, 24, 1)],
)
def test_epochs_are_passes_over_the_images(tmp_path, epochs, images, steps):
  config = tiny_config(tmp_path, epochs=epochs)  # batches of 8
  assert in_steps(config, images).steps == steps
  assert config.steps == 12


def test_epochs_that_the_schedule_does_not_fit_in(tmp_path):
  config = tiny_config(tmp_path, epochs=1.0, optim__warmup_steps=5)
  with pytest.raises(InputError, match=r"optim.warmup_steps: 5 must be .* below steps=3"):
    in_steps(config, 24)


def test_what_another_length_does_to_the_rate_is_said(tmp_path):
  config = tiny_config(tmp_path, steps=200, optim__lr=0.1, optim__power=1.0)
  assert about_other_length(config, before=100, step=50) == (
    "steps: were 100, are 200. The schedule 'poly' now ends at step 200: the next rate is 0.075, "
    "and would have been 0.05"
  )


@pytest.mark.parametrize(
  ("key", "value", "match"),
  [
    ("epochs", -1.0, r"epochs: -1.0 must be at least 0"),
    ("patience", -1, r"patience: -1 must be at least 0"),
    ("keep_every", 4, r"keep_every: 4 must be a multiple of checkpoint_every, 3"),
    ("best_metric", "map", r"best_metric: 'map' is unknown; choose from miou, mdice, macc"),
    ("accumulate", 0, r"accumulate: 0 must be at least 1"),
  ],
)
def test_impossible_lengths(tmp_path, key, value, match):
  with pytest.raises(InputError, match=match):
    jseg.config.validate(tiny_config(tmp_path, **{key: value}))


def test_metrics_to_choose_from_are_those_of_an_evaluation():
  scores = ConfusionState(np.eye(2, dtype=np.int64)).compute()
  assert tuple(scores.summary()) == SemanticTask.metric_names


def test_a_resumed_run_goes_on_for_longer_and_stops_without_a_better_metric(tmp_path, capsys):
  network = OneLayer(num_classes=5)
  # Parameters that hardly move have one metric, so that every evaluation after the first counts.
  still = {"optim__lr": 1e-9, "eval_every": 2, "checkpoint_every": 1, "keep": 1, "keep_every": 3}
  chosen = {"patience": 2, "best_metric": "macc", "samples": 0, "accumulate": 2}

  def go(steps):
    config = tiny_config(tmp_path, network, steps=steps, **still, **chosen)
    jseg.train(config, tmp_path / "run", model=network)
    return " ".join(capsys.readouterr().out.split())

  assert "validation macc" in go(4)
  text = go(20)
  assert "resuming at step 4" in text
  assert "steps: were 4, are 20. The schedule 'poly' now ends at step 20" in text
  assert "stopped early: 2 evaluations without a better macc than" in text
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if line["split"] == "val"] == [2, 4, 6]
  # The latest, the best (of equals the later one), and every third for good.
  saved = {int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()}
  assert saved >= {3, 6}
  assert saved <= {2, 3, 6}
  assert "already trained for 6 steps, 2 evaluations without" in go(20)
