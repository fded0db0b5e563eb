"""HD95 and surface Dice: by hand, by brute force, and against MONAI."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jseg import metrics
from jseg.metrics.surface import SurfaceState
from jseg.types import IGNORE, InputError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "surface.npz"
NAMES = ("background", "organ")


def measure(prediction, label, spacing=(1, 1, 1), tolerance=1.0, classes=2):
  state = SurfaceState.empty(classes, tolerance)
  return state.update(np.asarray(prediction), np.asarray(label), spacing)


def test_monai_finds_the_same():
  golden = np.load(GOLDEN)
  columns = (golden[key] for key in ("prediction", "label", "spacing", "hd95", "surface_dice"))
  for prediction, label, spacing, hd95, by_tolerance in zip(*columns, strict=True):
    for tolerance, dice in zip(golden["tolerance"], by_tolerance, strict=True):
      state = measure(prediction, label, spacing, tolerance, classes=3)
      np.testing.assert_allclose(state.distance[1:], hd95, rtol=1e-5)
      np.testing.assert_allclose(state.dice[1:], dice, rtol=1e-5)
      assert state.one_sided.sum() == 0


def test_by_hand():
  # Two rods, one voxel across, three slices of 2 mm apart; one is a voxel of 0.5 mm longer.
  label, prediction = np.zeros((2, 8, 1, 9), np.uint8)
  label[1, 0, 2:6], prediction[4, 0, 2:7] = 1, 1
  result = measure(prediction, label, (2, 1, 0.5), 6.0).compute(NAMES)
  far = np.hypot(6, 0.5)  # of one in five; the others are 6 mm away
  assert result["hd95_mm"] == pytest.approx(np.percentile([6, 6, 6, 6, far], 95))
  assert result["surface_dice"] == pytest.approx(8 / 9)
  # A cube of 3 has one voxel inside, which is no surface: 26 voxels are matched, and one is not.
  label, prediction = np.zeros((2, 5, 5, 9), np.uint8)
  label[1:4, 1:4, 1:4] = prediction[1:4, 1:4, 1:4] = prediction[2, 2, 7] = 1
  assert measure(prediction, label, tolerance=0.5).dice[1] == pytest.approx(52 / 53)
  # At the volume's border a region ends, too.
  full = np.ones((3, 3, 3), np.uint8)
  hollow = full.copy()
  hollow[1, 1, 1] = 0
  assert measure(full, hollow, tolerance=0.5).dice[1] == 1


def brute_force(prediction, label, spacing):
  """The distances of both directions, voxel by voxel."""
  places = []
  for side in (prediction, label):
    region = {tuple(p) for p in np.argwhere(side == 1)}
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1]
    edge = [p for p in region if not all(tuple(np.add(p, s)) in region for s in steps)]
    places.append(np.array(edge).reshape(-1, 3) * spacing)
  if not all(map(len, places)):
    return None
  distances = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
  return distances.min(1), distances.min(0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
  st.tuples(*[st.integers(1, 5)] * 3).flatmap(
    lambda shape: st.tuples(
      *[arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, IGNORE]))] * 2
    )
  ),
  st.sampled_from([(1, 1, 1), (3, 0.7, 0.5)]),
)
def test_brute_force_finds_the_same(pair, spacing):
  prediction, label = np.where(pair[0] == IGNORE, 1, pair[0]), pair[1]
  # Void belongs to neither.
  expected = brute_force(np.where(label == IGNORE, 0, prediction), label, spacing)
  state = measure(prediction, label, spacing, 1.0)
  if expected is None:
    assert state.volumes[1] == state.one_sided[1]
    assert state.dice[1] == 0
  else:
    hd95 = max(np.percentile(each, 95) for each in expected)
    np.testing.assert_allclose(state.distance[1], hd95, rtol=1e-12)
    np.testing.assert_allclose(state.dice[1], (np.concatenate(expected) <= 1).mean())


def test_a_class_on_one_side_has_no_distance_and_counts_as_missed():
  empty, organ = np.zeros((2, 4, 4, 4), np.uint8)
  organ[1, 1, 1] = 1
  assert measure(empty, empty).compute(NAMES) == {
    "hd95_mm": None,
    "surface_dice": None,
    "surface": {
      "tolerance_mm": 1.0,
      "per_class": {"organ": {"hd95_mm": None, "surface_dice": None, "volumes": 0, "one_sided": 0}},
    },
  }
  for pair in ((empty, organ), (organ, empty)):
    organs = measure(*pair).compute(NAMES)["surface"]["per_class"]["organ"]
    assert organs == {"hd95_mm": None, "surface_dice": 0.0, "volumes": 1, "one_sided": 1}
  both = measure(organ, organ).merge(measure(empty, organ)).merge(measure(empty, empty))
  organs = both.compute(NAMES)["surface"]["per_class"]["organ"]
  assert organs == {"hd95_mm": 0.0, "surface_dice": 0.5, "volumes": 2, "one_sided": 1}


def test_by_name():
  assert metrics.create("surface=2.5", NAMES, ndim=3).tolerance == 2.5
  assert metrics.create("surface", NAMES, ndim=3).tolerance == 1
  for argument in ("0", "-1", "wide", "nan", "inf"):
    match = rf"surface: the tolerance '{argument}' must be a number above 0, in millimeters"
    with pytest.raises(InputError, match=match):
      metrics.create(f"surface={argument}", NAMES, ndim=3)
  with pytest.raises(InputError, match="metrics: surface is not for images; choose from boundary"):
    metrics.create("surface", NAMES)
  with pytest.raises(InputError, match="metrics: boundary is not for volumes; choose from surface"):
    metrics.create("boundary", NAMES, ndim=3)
