import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg import metrics
from jseg.metrics import ConfusionState, confusion
from jseg.types import IGNORE


def scores_of(prediction, label, num_classes):
  counts = confusion(jnp.array(prediction), jnp.array(label), num_classes)
  return ConfusionState.empty(num_classes).update(counts).compute()


def test_hand_worked():
  # Truth 0 0 0 1 1 void, prediction 0 0 1 1 0 1 of three classes; class 2 is absent.
  scores = scores_of([0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, IGNORE], 3)
  np.testing.assert_array_equal(scores.matrix, [[2, 1, 0], [1, 1, 0], [0, 0, 0]])
  np.testing.assert_allclose(scores.iou, [2 / 4, 1 / 3, np.nan])
  np.testing.assert_allclose(scores.accuracy, [2 / 3, 1 / 2, np.nan])
  assert scores.miou == pytest.approx((2 / 4 + 1 / 3) / 2)
  assert scores.macc == pytest.approx((2 / 3 + 1 / 2) / 2)
  assert scores.pixel_accuracy == pytest.approx(3 / 5)
  assert scores.fwiou == pytest.approx(3 / 5 * 2 / 4 + 2 / 5 * 1 / 3)
  assert scores.pixels.tolist() == [3, 2, 0]


def test_a_class_that_is_only_predicted_counts_as_zero():
  scores = scores_of([0, 2], [0, 0], 3)
  np.testing.assert_allclose(scores.iou, [0.5, np.nan, 0.0])
  assert scores.miou == pytest.approx(0.25)
  assert scores.macc == pytest.approx(0.5)


def test_nothing_counted_is_nan_and_null():
  scores = scores_of([1, 0], [IGNORE, IGNORE], 2)
  assert np.isnan([scores.miou, scores.macc, scores.pixel_accuracy, scores.fwiou]).all()
  plain = scores.to_dict(["a", "b"])
  assert plain["miou"] is None
  assert plain["per_class"]["b"] == {"iou": None, "accuracy": None, "pixels": 0}


def test_counts_beyond_float32_are_exact(monkeypatch):
  # 2^24 + 2 equal pixels: a float32 counter would stop at 2^24.
  size = (1 << 24) + 2
  counts = confusion(jnp.ones(size, jnp.uint8), jnp.ones(size, jnp.uint8), 2)
  assert counts.tolist() == [[0, 0], [0, size]]


def test_chunks_do_not_change_the_counts(monkeypatch):
  rng = np.random.default_rng(0)
  label = rng.choice([0, 1, 2, IGNORE], (5, 7, 11))
  prediction = rng.integers(0, 3, label.shape)
  whole = confusion(jnp.array(prediction), jnp.array(label), 3)
  monkeypatch.setattr(metrics, "_EXACT", 64 * 50)
  np.testing.assert_array_equal(whole, confusion(jnp.array(prediction), jnp.array(label), 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.integers(1, 40))
def test_equals_numpy_and_does_not_depend_on_batches(seed, num_classes, size):
  rng = np.random.default_rng(seed)
  label = rng.choice([*range(num_classes), IGNORE], size)
  prediction = rng.integers(0, num_classes, size)
  expected = np.zeros((num_classes, num_classes), np.int64)
  for t, p in zip(label, prediction, strict=True):
    if t != IGNORE:
      expected[t, p] += 1
  state = ConfusionState.empty(num_classes)
  cut = size // 2
  for part in (slice(0, cut), slice(cut, size)):
    one = ConfusionState.empty(num_classes).update(
      confusion(jnp.array(prediction[part]), jnp.array(label[part]), num_classes)
    )
    state = state.merge(one)
  np.testing.assert_array_equal(state.matrix, expected)
  perfect = scores_of(label % num_classes, label % num_classes, num_classes)
  assert perfect.miou == 1.0
