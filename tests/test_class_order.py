"""A run begins from another whose classes come in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny import tiny_config

from jseg.data import ClassInfo
from jseg.loop import initialize
from jseg.run import Run
from jseg.state import create_train_state
from jseg.weights.class_order import match_classes, reorder_classes


def test_classes_are_matched_by_name():
  assert match_classes(("a", "b", "c"), ("c", "a", "b")) == [2, 0, 1]
  assert match_classes(("a", "b", "c"), ("x", "c", "y")) == [0, 2, 1]
  assert match_classes(("a", "b"), ("x", "y")) == [0, 1]


def test_every_axis_over_classes_is_reordered_by_hand():
  """A score per class, two numbers per class, and a matrix of classes by classes."""
  leaves = {
    "score": np.array([[10.0, 11, 12]]),
    "boxes": np.array([0.0, 1, 10, 11, 20, 21]),
    "matrix": np.arange(9.0).reshape(3, 3),
    "other": np.arange(3.0),
  }
  wider = {"score": (1, 4), "boxes": (8,), "matrix": (4, 4), "other": (3,)}
  shapes = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in wider.items()}
  result = reorder_classes({"params": leaves}, {"params": shapes}, [2, 0, 1])["params"]
  assert result["score"].tolist() == [[12, 10, 11]]
  assert result["boxes"].tolist() == [20, 21, 0, 1, 10, 11]
  assert result["matrix"].tolist() == [[8, 6, 7], [2, 0, 1], [5, 3, 4]]
  assert result["other"].tolist() == [0, 1, 2]


def start(path, names):
  config = tiny_config(path, "unet", {"widths": (4, 8)}, data__size=(8, 8), data__channels=1)
  return Run.start(path, config, ClassInfo(names))


def state_of(run, seed):
  return create_train_state(run.model, optax.sgd(0.1), jax.random.key(seed), (8, 8, 1), ema=False)


@pytest.fixture
def trained(tmp_path, monkeypatch):
  run = start(tmp_path / "trained", ("background", "c1", "c2"))
  variables = state_of(run, 0).variables()
  monkeypatch.setattr(Run, "restore", lambda self, checkpoint="best": (0, variables))
  return run, variables


def test_the_heads_follow_the_names(trained, tmp_path, capsys):
  run, variables = trained
  other = start(tmp_path / "new", ("c2", "background", "c1"))
  state, taken = initialize(state_of(other, 1), str(run.path), other)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 1)), jnp.float32)
  before = run.model.apply(variables, image).logits
  after = other.model.apply(state.variables(), image).logits
  np.testing.assert_allclose(after, before[..., jnp.array([2, 0, 1])], rtol=1e-6, atol=1e-6)
  assert taken
  told = " ".join(capsys.readouterr().out.split())
  assert "(a run; its classes are background, c1, c2, matched by name):" in told


def test_new_names_are_told(trained, tmp_path, capsys):
  run, _ = trained
  other = start(tmp_path / "new", ("background", "c2", "x"))
  initialize(state_of(other, 1), str(run.path), other)
  assert "'x' begins as what was 'c1'" in " ".join(capsys.readouterr().out.split())


def test_the_same_classes_are_taken_as_they_are(trained, tmp_path, capsys):
  run, variables = trained
  other = start(tmp_path / "new", ("background", "c1", "c2"))
  state, _ = initialize(state_of(other, 1), str(run.path), other)
  jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
  assert "matched by name" not in capsys.readouterr().out
