"""AP and AR: by hand, ground truth against itself, and the same in any order."""

import numpy as np
import pytest

from jseg.data.files.instances import Annotation, make_objects
from jseg.metrics import AveragePrecisionState

# pycocotools divides by the number of detections plus the smallest float.
ONE = [pytest.approx(1, abs=1e-12)]


def objects(boxes, classes=None, scores=None, crowd=None, size=(40, 60)):
  """Objects that fill their boxes."""
  annotations = []
  for i, (y0, x0, y1, x1) in enumerate(boxes):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    annotations.append(Annotation(mask, classes[i] if classes else 1, bool(crowd and crowd[i])))
  joined = make_objects(size, annotations)
  if scores is None:
    return joined
  return type(joined)(**{**vars(joined), "scores": np.array(scores, np.float32)})


def nothing(size=(40, 60)):
  return objects([], scores=[], size=size)


def measured(images, num_classes=2, **options):
  state = AveragePrecisionState.empty(num_classes)
  for index, (truth, found) in enumerate(images):
    state = state.update(index, truth, found)
  return state.compute(**options)


def random_image(seed, classes=3, like=None):
  rng = np.random.default_rng(seed)
  corners = rng.integers(0, 30, (rng.integers(0, 6), 2))
  boxes = [
    (y, x, y + h, x + w) for (y, x), (h, w) in zip(corners, corners[::-1] % 10 + 1, strict=True)
  ]
  truth = objects(boxes, rng.integers(1, classes + 1, len(boxes)).tolist())
  shifted = [(y0, x0 + 1, y1, x1 + 1) for y0, x0, y1, x1 in boxes]
  found = objects(
    shifted, rng.integers(1, classes + 1, len(boxes)).tolist(), rng.random(len(boxes))
  )
  return truth, found


def test_truth_fed_back_is_perfect():
  images = []
  for seed in range(8):
    truth, _ = random_image(seed)
    images.append((truth, type(truth)(**{**vars(truth), "scores": np.ones(len(truth))})))
  images.append((nothing(), nothing()))
  scores = measured(images, num_classes=5)
  for kind in (scores.masks, scores.boxes):
    assert [kind.ap, kind.ap50, kind.ap75, kind.ar, kind.ap_by_size["small"]] == ONE * 5
    assert np.isnan(kind.ap_by_size["large"])
    assert np.isnan(kind.ap_by_class).tolist() == [True, False, False, False, True]
  assert scores.counts.sum() == sum(len(truth) for truth, _ in images)


def test_the_objects_of_each_image_by_hand():
  truth = objects([(0, 0, 10, 10), (20, 20, 30, 30), (20, 40, 30, 50)], [1, 1, 2])
  # The first is found, twice; the second by too weak a detection; the third as another class.
  boxes = [(0, 0, 10, 10), (0, 0, 10, 9), (20, 20, 30, 30), (20, 40, 30, 50)]
  found = objects(boxes, [1, 1, 1, 1], scores=[0.9, 0.8, 0.4, 0.7])
  crowd = objects([(0, 0, 10, 10)], crowd=[True])
  scores = measured(
    [(truth, found), (nothing(), nothing()), (crowd, objects([(0, 0, 10, 10)], scores=[0.9]))], 3
  )
  columns = {name: column.tolist() for name, column in scores.images.columns.items()}
  assert (columns["matched"], columns["missed"], columns["false"]) == (
    [1, 0, 0],
    [2, 0, 0],
    [2, 0, 0],
  )
  assert columns["f1"][0] == pytest.approx(2 / 6)
  assert np.isnan(columns["f1"][1:]).all()
  assert scores.images.worst(5) == [(0, pytest.approx(1 / 3))]


def test_a_small_case_by_hand():
  # Two objects; the best detection is right at any IoU, the second is wrong, the third covers
  # 6 of 10 columns of the other object.
  truth = objects([(0, 0, 10, 10), (20, 20, 30, 30)])
  found = objects([(0, 0, 10, 10), (0, 40, 10, 50), (20, 20, 30, 26)], scores=[0.9, 0.8, 0.7])
  scores = measured([(truth, found)])
  # At IoU .50, .55 and .60 the precisions are 1, 1/2, 2/3 at the recalls 1/2, 1/2, 1: the 51
  # recalls up to .5 see 1, the other 50 see 2/3. Above, only the 51 count.
  low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
  assert scores.masks.ap50 == pytest.approx(low)
  assert scores.masks.ap75 == pytest.approx(high)
  assert scores.masks.ap == pytest.approx((3 * low + 7 * high) / 10)
  assert scores.masks.ar == pytest.approx((3 * 1 + 7 * 0.5) / 10)
  assert scores.boxes.ap == pytest.approx(scores.masks.ap)
  assert measured([(truth, found)], max_detections=1).masks.ar == 0.5


def test_masks_and_boxes_are_told_apart():
  mask = np.eye(40, 60, dtype=bool)
  truth = make_objects((40, 60), [Annotation(mask, 1)])
  full = objects([(0, 0, 40, 40)], scores=[1.0])
  scores = measured([(truth, full)])
  assert [scores.boxes.ap] == ONE
  assert scores.masks.ap == 0
  plain = scores.to_dict(["background", "thing"])
  assert [plain["map"], plain["box_map"], plain["map_small"]] == [0, *ONE, 0]
  assert plain["map_large"] is None
  assert plain["per_class"] == {
    "thing": {"ap": 0.0, "ap50": 0.0, "ar": 0.0, "box_ap": ONE[0], "objects": 1}
  }


def test_crowds_are_neither_found_nor_missed():
  truth = objects([(0, 0, 10, 10), (20, 0, 40, 60)], crowd=[False, True])
  inside_the_crowd = [(22, 5, 30, 15), (25, 30, 35, 45)]
  found = objects([(0, 0, 10, 10), *inside_the_crowd], scores=[0.5, 0.9, 0.8])
  scores = measured([(truth, found)])
  assert [scores.primary, scores.boxes.ap] == ONE * 2
  assert scores.counts.tolist() == [0, 1]
  alone = objects([(0, 0, 10, 10)])
  assert measured([(alone, found)]).primary == pytest.approx(1 / 3)


def test_images_without_objects_count_what_is_found_there():
  truth = objects([(0, 0, 10, 10)])
  right = objects([(0, 0, 10, 10)], scores=[0.5])
  wrong = objects([(0, 0, 10, 10)], scores=[0.9])
  assert [measured([(truth, right), (nothing(), nothing())]).primary] == ONE
  assert measured([(truth, right), (nothing(), wrong)]).primary == pytest.approx(0.5)
  assert measured([(truth, nothing())]).primary == 0
  empty = measured([(nothing(), nothing())])
  assert empty.to_dict(["background", "thing"])["map"] is None
  assert AveragePrecisionState.empty(2).compute().to_dict(["background", "thing"])["mar"] is None


def test_order_and_batches_do_not_matter():
  images = [random_image(seed) for seed in range(12)]
  whole = measured(images, num_classes=4).to_dict(list("abcd"))
  assert 0 < whole["map"] < 1
  state = AveragePrecisionState.empty(4)
  order = np.random.default_rng(0).permutation(12).tolist()
  for part in (order[:5], order[5:6], order[6:]):
    other = AveragePrecisionState.empty(4)
    for index in part:
      other = other.update(index, *images[index])
    state = other.merge(state).update(-1, *images[0])  # -1 fills the last batch up
  assert state.compute().to_dict(list("abcd")) == whole
