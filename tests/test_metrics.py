import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg import metrics
from jseg.metrics import BoundaryState, ConfusionState, confusion, rand_score
from jseg.types import IGNORE, InputError


def scores_of(prediction, label, num_classes):
  counts = confusion(jnp.array(prediction), jnp.array(label), num_classes)
  return ConfusionState.empty(num_classes).update(counts).compute()


def test_hand_worked():
  # Truth 0 0 0 1 1 void, prediction 0 0 1 1 0 1 of three classes; class 2 is absent.
  scores = scores_of([0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, IGNORE], 3)
  np.testing.assert_array_equal(scores.matrix, [[2, 1, 0], [1, 1, 0], [0, 0, 0]])
  np.testing.assert_allclose(scores.iou, [2 / 4, 1 / 3, np.nan])
  np.testing.assert_allclose(scores.dice, [4 / 6, 2 / 4, np.nan])
  np.testing.assert_allclose(scores.accuracy, [2 / 3, 1 / 2, np.nan])
  assert scores.miou == pytest.approx((2 / 4 + 1 / 3) / 2)
  assert scores.mdice == pytest.approx((4 / 6 + 2 / 4) / 2)
  assert scores.macc == pytest.approx((2 / 3 + 1 / 2) / 2)
  assert scores.pixel_accuracy == pytest.approx(3 / 5)
  assert scores.fwiou == pytest.approx(3 / 5 * 2 / 4 + 2 / 5 * 1 / 3)
  assert scores.pixels.tolist() == [3, 2, 0]


def test_a_class_that_is_only_predicted_counts_as_zero():
  scores = scores_of([0, 2], [0, 0], 3)
  np.testing.assert_allclose(scores.iou, [0.5, np.nan, 0.0])
  np.testing.assert_allclose(scores.dice, [2 / 3, np.nan, 0.0])
  assert scores.miou == pytest.approx(0.25)
  assert scores.macc == pytest.approx(0.5)


def test_nothing_counted_is_nan_and_null():
  scores = scores_of([1, 0], [IGNORE, IGNORE], 2)
  assert np.isnan(
    [scores.miou, scores.mdice, scores.macc, scores.pixel_accuracy, scores.fwiou]
  ).all()
  plain = scores.to_dict(["a", "b"])
  assert plain["miou"] is None
  assert plain["per_class"]["b"] == {"iou": None, "dice": None, "accuracy": None, "pixels": 0}


def test_counts_beyond_float32_are_exact():
  # 2^24 + 2 equal pixels: a float32 counter would stop at 2^24.
  size = (1 << 24) + 2
  counts = confusion(jnp.ones(size, jnp.uint8), jnp.ones(size, jnp.uint8), 2)
  assert counts.tolist() == [[0, 0], [0, size]]


def test_chunks_do_not_change_the_counts():
  rng = np.random.default_rng(0)
  label = rng.choice([0, 1, 2, IGNORE], (5, 7, 11))
  prediction = rng.integers(0, 3, label.shape)
  whole = confusion(jnp.array(prediction), jnp.array(label), 3)
  chunks = confusion(jnp.array(prediction), jnp.array(label), 3, chunk=50)
  np.testing.assert_array_equal(whole, chunks)
  for chunk in (0, (1 << 24) + 1):
    with pytest.raises(InputError, match=f"chunk: {chunk} must be from 1 to 16777216"):
      confusion(jnp.array(prediction), jnp.array(label), 3, chunk=chunk)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 5]), st.sampled_from([1, 7, 40]))
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
  scores = state.compute()
  np.testing.assert_allclose(scores.dice, 2 * scores.iou / (1 + scores.iou))
  perfect = scores_of(label % num_classes, label % num_classes, num_classes)
  assert perfect.miou == 1.0


def test_boundary_iou_hand_worked():
  # 8 x 8, so that the band is 1 pixel wide. A square of 4 x 4 has a ring of 12 pixels; one column
  # further right has another, and they share 3 of the row on top and 3 of the one at the bottom.
  label, prediction = np.zeros((2, 8, 8), np.int64)
  label[2:6, 2:6] = prediction[2:6, 3:7] = 1
  state = BoundaryState.empty(3).update(prediction, label)
  # The rest: 28 on the image's border, 20 around the true square, and around the predicted one 14
  # that aren't on the border. Shared are the border and 5 in each row next to the squares.
  assert state.intersection.tolist() == [28 + 10, 6, 0]
  assert state.union.tolist() == [28 + 20 + 14 - 10, 12 + 12 - 6, 0]
  np.testing.assert_allclose(state.iou()[1:], [1 / 3, np.nan])
  result = state.compute(["a", "b", "absent"])
  assert result["boundary_miou"] == pytest.approx(np.mean(state.iou()[:2]))
  assert result["boundary_iou"] == {"a": state.iou()[0], "b": state.iou()[1], "absent": None}


def band_by_formula(mask, reach):
  """Pixels of the mask that have a pixel outside of it, or outside of the image, within reach."""
  height, width = mask.shape
  band = np.zeros_like(mask)
  for y, x in np.argwhere(mask):
    rows, columns = range(y - reach, y + reach + 1), range(x - reach, x + reach + 1)
    band[y, x] = any(
      not (0 <= r < height and 0 <= c < width and mask[r, c]) for r in rows for c in columns
    )
  return band


@pytest.mark.parametrize(("ratio", "reach"), [(0.02, 1), (0.1, 2)])
def test_boundary_iou_equals_its_formula(ratio, reach):
  rng = np.random.default_rng(0)
  coarse = rng.choice([0, 1, 2, IGNORE], (2, 3, 4), p=[0.3, 0.3, 0.3, 0.1])
  label, prediction = np.kron(coarse, np.ones((5, 5), np.int64))  # 15 x 20, diagonal 25
  prediction[prediction == IGNORE] = 2
  state = BoundaryState.empty(3, ratio).update(prediction, label)
  for c in range(3):
    truth = band_by_formula(label == c, reach)
    guess = band_by_formula((prediction == c) & (label != IGNORE), reach)
    assert state.intersection[c] == (truth & guess).sum()
    assert state.union[c] == (truth | guess).sum()
  assert state.intersection.sum() > 0
  # Void is what the label says, and nothing under it matters.
  other = state.empty(3, ratio).update(np.where(label == IGNORE, 0, prediction), label)
  np.testing.assert_array_equal(state.union, other.union)


def test_boundary_iou_of_halves_merges_to_the_whole():
  rng = np.random.default_rng(1)
  labels, predictions = rng.choice([0, 1, IGNORE], (4, 6, 7)), rng.integers(0, 2, (4, 6, 7))
  whole, halves = BoundaryState.empty(2), [BoundaryState.empty(2)] * 2
  for i, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
    whole = whole.update(prediction, label)
    halves[i % 2] = halves[i % 2].update(prediction, label)
  merged = halves[0].merge(halves[1])
  np.testing.assert_array_equal(merged.intersection, whole.intersection)
  np.testing.assert_array_equal(merged.union, whole.union)
  assert merged.union.dtype == np.int64
  perfect = BoundaryState.empty(2).update(labels[0] % IGNORE, labels[0])
  np.testing.assert_array_equal(perfect.iou(), [1.0, 1.0])
  assert BoundaryState.empty(2).compute("ab")["boundary_miou"] is None


def test_metrics_of_images_by_name():
  label = np.array([[0, 0, 1, 1]] * 4)
  for spec, expected in (("boundary", {"boundary_miou", "boundary_iou"}), ("rand=b", {"rand"})):
    state = metrics.create(spec, ["a", "b"]).update(label, label)
    assert set(state.compute(["a", "b"])) == expected
  assert state.compute(["a", "b"])["rand"] == 1.0
  assert metrics.create("rand=a", ["a", "b"]).compute(["a", "b"]) == {"rand": None}
  with pytest.raises(InputError, match=r"rand: there is no class 'c'; choose from a, b"):
    metrics.create("rand=c", ["a", "b"])
  with pytest.raises(InputError, match=r"metrics: 'bound' is unknown; did you mean boundary"):
    metrics.create("bound", ["a", "b"])
  with pytest.raises(
    InputError, match=r"boundary: it takes no argument, but got 'a'; leave it out"
  ):
    metrics.create("boundary=a", ["a", "b"])


def test_rand_score_hand_worked():
  # Cells of 2 and 2 pixels, predicted as one: 8 pairs of 16 belong together, and all are found.
  label = np.array([[1, 1, 0, 1, 1]])
  merged = np.ones_like(label)
  assert rand_score(merged, label, 1) == pytest.approx(8 / (0.5 * 16 + 0.5 * 8))
  assert rand_score(merged, label, 1, alpha=0.0) == 1.0
  assert rand_score(merged, label, 1, alpha=1.0) == 0.5
  # One cell of 5, of which the prediction makes 2, membrane, 2: 4 + 1 + 4 of 25 pairs.
  split = (label, np.ones_like(label), 1)
  assert rand_score(*split, alpha=0.0) == pytest.approx(9 / 25)
  assert rand_score(*split, alpha=1.0) == 1.0
  assert np.isnan(rand_score(label, np.zeros_like(label), 1))


def test_rand_score_keeps_cells_apart_that_touch_by_a_corner():
  cells = np.eye(2, dtype=bool)
  assert rand_score(np.ones((2, 2), bool), cells, 1, alpha=1.0) == 0.5
  assert rand_score(cells, cells, 1) == 1.0


def segments_by_flooding(mask):
  segments = np.zeros(mask.shape, int)
  for seed in np.argwhere(mask):
    stack, number = [tuple(seed)], segments.max() + 1
    while stack:
      y, x = stack.pop()
      inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
      if inside and mask[y, x] and not segments[y, x]:
        segments[y, x] = number
        stack += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
  return segments


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.0, 1.0))
def test_rand_score_counts_pairs_of_pixels(seed, alpha):
  rng = np.random.default_rng(seed)
  label = rng.choice([1, 1, 1, 0, IGNORE], (4, 6))
  prediction = rng.choice([1, 1, 0], (4, 6))
  label[0, 0] = 1
  truth = segments_by_flooding(label == 1)
  guess = segments_by_flooding((prediction == 1) & (label != IGNORE))
  pixels = [tuple(p) for p in np.argwhere(truth)]
  pairs = [(p, q) for p in pixels for q in pixels]
  in_truth = [truth[p] == truth[q] for p, q in pairs]
  in_guess = [p == q or (guess[p] == guess[q] and guess[p] > 0) for p, q in pairs]
  both = np.sum(np.logical_and(in_truth, in_guess))
  expected = both / (alpha * np.sum(in_guess) + (1 - alpha) * np.sum(in_truth))
  assert rand_score(prediction, label, 1, alpha=alpha) == pytest.approx(expected)
  under_void = np.where(label == IGNORE, 1 - prediction, prediction)
  assert rand_score(under_void, label, 1, alpha=alpha) == pytest.approx(expected)
