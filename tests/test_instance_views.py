"""Objects in windows: what several views have found of one is brought together once."""

import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg import config as configs
from jseg.data import ClassInfo
from jseg.data.files.instances import Annotation, coco_masks, encode_rle, make_objects
from jseg.images import denormalize
from jseg.metrics import AveragePrecisionState
from jseg.report import objects as pictures
from jseg.step import replicate
from jseg.tasks.inference import Inference
from jseg.tasks.instance import InstanceTask
from jseg.tasks.instance.views import Found, View, _groups, agreement, find, merge
from jseg.tasks.windows import gaussian_weights, overlapping
from jseg.types import Detections, InputError

SIZE = (64, 96)


def views_of(size, window, overlap=0.5, gaussian=True, flips=((),)):
  weights = gaussian_weights(window) if gaussian else np.ones(window, np.float32)
  views = []
  for each, flipped in itertools.product(overlapping(size, window, overlap, 32), flips):
    y, x = each.place
    views.append(View((y.start, x.start, y.stop, x.stop), weights[each.inner], flipped))
  return views


def detect(view, rectangles, size):
  """What a perfect network finds of rectangles (y0 x0 y1 x1, class, score) in a view.

  As the network tells it: in the view's own pixels, mirrored where it saw the mirror image, and in
  slots of which one is empty.
  """
  y0, x0, y1, x1 = view.frame
  rows = []
  for *box, category, score in rectangles:
    low = np.maximum(box[:2], (y0, x0)) - (y0, x0)
    high = np.minimum(box[2:], (y1, x1)) - (y0, x0)
    for axis in view.flipped:
      low[axis], high[axis] = view.size[axis] - high[axis], view.size[axis] - low[axis]
    if (low < high).all():
      rows.append(([*low, *high], category, score))
  rows.sort(key=lambda row: -row[2])
  n = len(rows) + 1
  boxes, classes, scores = np.zeros((n, 4), np.float32), np.zeros(n, int), np.zeros(n, np.float32)
  for i, row in enumerate(rows):
    boxes[i], classes[i], scores[i] = row
  detections = Detections(boxes, scores, classes, np.ones((n, 28, 28)), np.arange(n) < n - 1)
  return find(view, detections, view.size, size)


def everywhere(views, rectangles, size=SIZE):
  return merge([(view, detect(view, rectangles, size)) for view in views], size)


def draw(rectangle, size=SIZE):
  mask = np.zeros(size, bool)
  y0, x0, y1, x1 = rectangle[:4]
  mask[y0:y1, x0:x1] = True
  return mask


@pytest.mark.parametrize("gaussian", [True, False])
def test_an_object_cut_by_two_windows_comes_back_once(gaussian):
  views = views_of(SIZE, (64, 64), gaussian=gaussian)
  assert [view.frame for view in views] == [(0, 0, 64, 64), (0, 32, 64, 96)]
  rectangle = (5, 10, 25, 90, 2, 0.8)
  pieces = [detect(view, [rectangle], SIZE)[0] for view in views]
  assert [piece.cut for piece in pieces] == [True, True]
  objects = everywhere(views, [rectangle])
  assert (len(objects), objects.classes.tolist()) == (1, [2])
  np.testing.assert_array_equal(objects.mask(0), draw(rectangle))
  assert objects.boxes.tolist() == [[5, 10, 25, 90]]
  assert objects.areas.tolist() == [20 * 80]
  assert objects.scores.tolist() == pytest.approx([0.8])


def test_an_object_that_four_windows_show_in_part_comes_back_once():
  views = views_of((96, 96), (64, 64))
  assert len(views) == 4
  rectangle = (10, 5, 90, 93, 1, 0.9)
  assert all(detect(view, [rectangle], (96, 96))[0].cut for view in views)
  objects = everywhere(views, [rectangle], (96, 96))
  assert len(objects) == 1
  np.testing.assert_array_equal(objects.mask(0), draw(rectangle, (96, 96)))
  assert objects.boxes.tolist() == [[10, 5, 90, 93]]


def test_an_object_longer_than_many_windows_comes_back_once():
  # A quarter of a window overlaps: two pieces share less than half of either.
  size = (40, 700)
  views = views_of(size, (128, 128), overlap=0.25)
  rectangle = (10, 3, 20, 690, 1, 0.9)
  objects = everywhere(views, [rectangle], size)
  assert len(views) > 6
  assert len(objects) == 1
  np.testing.assert_array_equal(objects.mask(0), draw(rectangle, size))


def test_arms_that_meet_in_a_later_window_are_one_object():
  # A U across two windows: the upper one sees two arms, the lower one what joins them.
  views = views_of((96, 64), (64, 64))
  arms = [(20, 5, 64, 20, 1, 0.9), (20, 40, 64, 55, 1, 0.8)]
  lower = detect(views[1], [(32, 5, 90, 55, 1, 0.7)], (96, 64))[0]
  u = np.ones((28, 28))
  u[:16, 8:20] = 0  # the mask of the lower part is open above
  lower = find(
    views[1],
    Detections(lower.box[None], np.ones(1), np.ones(1, int), u[None], np.ones(1, bool)),
    (64, 64),
    (96, 64),
  )
  objects = merge([(views[0], detect(views[0], arms, (96, 64))), (views[1], lower)], (96, 64))
  assert len(objects) == 1
  assert objects.mask(0)[21:63, 6:19].all()
  assert objects.mask(0)[21:63, 41:54].all()
  assert not objects.mask(0)[:60, 26:34].any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), flips=st.sampled_from(["none", "horizontal", "all"]))
def test_objects_anywhere_come_back_once_with_their_masks(seed, flips):
  rng = np.random.default_rng(seed)
  size = tuple(rng.integers(20, 200, 2).tolist())
  overlap, gaussian = rng.choice([0.25, 0.5, 0.7]), bool(rng.integers(2))
  views = views_of(size, (64, 64), overlap, gaussian, Inference(flip=flips).flipped_axes(2))
  # In cells of a grid, so that they touch and don't overlap. Of boxes above 67 pixels interpolation
  # takes the corner pixels away, in an image as in a window.
  ys, xs = (np.unique([0, n, *rng.integers(0, n, 3)]) for n in size)
  rectangles = [
    (y0, x0, y1, x1, int(rng.integers(1, 3)), round(float(rng.uniform(0.1, 1)), 3))
    for y0, y1 in itertools.pairwise(ys.tolist())
    for x0, x1 in itertools.pairwise(xs.tolist())
    if rng.random() < 0.7
  ]
  objects = everywhere(views, rectangles, size)
  assert len(objects) == len(rectangles)
  assert (np.diff(objects.scores) <= 0).all()
  expected = {tuple(r[:4]): r[4:] for r in rectangles}
  for i, box in enumerate(objects.boxes):
    rectangle = tuple(np.rint(box).astype(int).tolist())
    np.testing.assert_allclose(box, rectangle, atol=1e-3)
    assert (objects.classes[i], round(float(objects.scores[i]), 3)) == expected[rectangle]
    np.testing.assert_array_equal(objects.mask(i), draw(rectangle, size))


def one(view, box, mask=1.0, category=1, score=0.9, size=SIZE):
  """One object of a view, in its own pixels, its mask of one value or as it is given."""
  masks = np.broadcast_to(np.asarray(mask, float), (28, 28))[None]
  fields = np.array([box], np.float32), np.array([score]), np.array([category])
  return find(view, Detections(*fields, masks, np.ones(1, bool)), view.size, size)[0]


def test_a_part_that_is_hardly_known_is_dropped():
  left, right = views_of(SIZE, (64, 64))
  # It lies at 50..80; the left window sees 14 columns of it, and makes a small blot of them.
  whole = one(right, (10, 18, 30, 48), score=0.6)
  blot = one(left, (12, 55, 20, 64), score=0.9)
  assert (whole.cut, blot.cut) == (False, True)
  assert agreement(whole, blot) == 1
  objects = merge([(left, [blot]), (right, [whole])], SIZE)
  assert len(objects) == 1
  assert objects.boxes.tolist() == [[10, 50, 30, 80]]
  assert objects.scores.tolist() == pytest.approx([0.9])
  # Where both see it, the right window counts for more: there the edge of the left one is near.
  np.testing.assert_array_equal(objects.mask(0), draw((10, 50, 30, 80)))


def test_masks_are_averaged_by_the_weights_of_the_windows():
  frame = (0, 0, 64, 96)
  views = [View(frame, np.full(SIZE, weight, np.float32)) for weight in (1, 2)]
  box = (10, 10, 66, 66)
  for values, inside in (((0.9, 0.4), True), ((0.9, 0.25), False), ((0.3, 0.55), False)):
    # Means (0.9 + 2 x 0.4) / 3 = 0.57, (0.9 + 2 x 0.25) / 3 = 0.47 and (0.3 + 2 x 0.55) / 3 = 0.47.
    masks = [np.where(np.arange(28) < 18, 1.0, value) for value in values]
    found = [(view, [one(view, box, mask)]) for view, mask in zip(views, masks, strict=True)]
    objects = merge(found, SIZE)
    assert len(objects) == 1
    assert objects.mask(0)[20, 20]
    assert objects.mask(0)[20, 55] == inside


def test_boxes_are_averaged_over_the_views_that_saw_all_of_it():
  views = [View((0, 0, *SIZE), np.full(SIZE, weight, np.float32)) for weight in (1, 3)]
  found = [
    (view, [one(view, (10, 10, 50, end))]) for view, end in zip(views, (50, 54), strict=True)
  ]
  assert merge(found, SIZE).boxes.tolist() == [[10, 10, 50, 53]]


def test_neighbors_classes_and_small_objects_on_large_ones_stay_apart():
  left, right = views_of(SIZE, (64, 64))
  touching = [(5, 10, 25, 50, 1, 0.9), (5, 50, 25, 70, 1, 0.8)]
  other_class = [(30, 40, 60, 60, 1, 0.7), (30, 40, 60, 60, 2, 0.6)]
  inner = [(30, 5, 60, 35, 1, 0.5), (35, 10, 45, 20, 1, 0.4)]
  rectangles = touching + other_class + inner
  objects = everywhere([left, right], rectangles)
  assert objects.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
  for i, rectangle in enumerate(rectangles):
    np.testing.assert_array_equal(objects.mask(i), draw(rectangle))
  # One window sees a large object in part, another a small one on it.
  large, small = one(left, (5, 20, 45, 64)), one(right, (20, 10, 30, 20))
  assert agreement(large, small) == pytest.approx(100 / (40 * 32))
  assert len(merge([(left, [large]), (right, [small])], SIZE)) == 2


def test_what_a_view_told_apart_stays_apart():
  # Each would be the same as the other if two views had found one of them each: their IoU is .58.
  rectangles = [(5, 10, 45, 40, 1, 0.9), (5, 18, 45, 48, 1, 0.8)]
  views = views_of((64, 64), (64, 64), flips=((), (1,)))
  objects = everywhere(views, rectangles, (64, 64))
  assert len(objects) == 2
  for i, rectangle in enumerate(rectangles):
    np.testing.assert_array_equal(objects.mask(i), draw(rectangle, (64, 64)))


def test_the_edges_of_the_image_cut_nothing():
  left, right = views_of(SIZE, (64, 64))
  assert not one(left, (0, 0, 64, 59)).cut
  assert one(left, (0, 0, 64, 61)).cut
  assert not one(right, (0, 5, 64, 64)).cut
  assert one(right, (0, 3, 64, 64)).cut


def test_no_objects():
  objects = merge([(view, []) for view in views_of(SIZE, (64, 64))], SIZE)
  assert (len(objects), objects.boxes.shape, objects.size) == (0, (0, 4), SIZE)


def test_memory_is_that_of_a_row_of_windows():
  size, alive = (32 * 100, 64), weakref.WeakSet()

  def found():
    for view in views_of(size, (64, 64)):  # one below the other
      y0 = view.frame[0]
      objects = [one(view, (8, 8, 24, 24), size=size)] if y0 % 64 == 0 else []
      alive.update(objects)
      assert len(alive) < 10
      yield view, objects

  assert sum(len(group) for group in _groups(found())) == 50


def test_the_run_length_code_of_a_crop_is_that_of_the_image():
  rng = np.random.default_rng(0)
  for y0, x0, y1, x1 in [(0, 0, 9, 7), (2, 1, 9, 5), (0, 3, 4, 7), (4, 2, 5, 3), (3, 3, 3, 3)]:
    for share in (0.0, 0.5, 1.0):
      crop = rng.random((y1 - y0, x1 - x0)) < share
      mask = np.zeros((9, 7), bool)
      mask[y0:y1, x0:x1] = crop
      expected = coco_masks().encode(np.asfortranarray(mask, np.uint8))
      assert encode_rle(crop, (y0, x0), (9, 7)) == expected
      assert encode_rle(mask) == expected


def test_a_map_numbers_no_more_objects_than_its_pixels_can(tmp_path, monkeypatch):
  monkeypatch.setattr(pictures, "_MOST_IDS", 1)
  objects = everywhere(views_of(SIZE, (64, 64)), [(0, 0, 9, 9, 1, 0.9), (20, 0, 29, 9, 1, 0.8)])
  with pytest.raises(
    InputError, match=r"a\.png: 2 objects were found, and a PNG of 16 bits numbers 1"
  ):
    pictures.save_instance_map(objects, tmp_path / "a.png")


def test_found_holds_the_box_in_the_image():
  found = one(views_of(SIZE, (64, 64))[1], (1, 2, 11, 22))
  assert isinstance(found, Found)
  assert found.image_box.tolist() == [1, 34, 11, 54]
  assert found.frame == (1, 34, 11, 54)


LEVELS = np.arange(230, 30, -20)
VARIABLES = {"params": jnp.zeros(1)}


class Finder:
  """Stands for a network: it finds the rectangle of each gray level, the brightest first."""

  def apply(self, variables, image, *, size, train):
    del variables, size, train
    hit = jnp.abs(denormalize(image)[..., :1] - LEVELS.reshape(1, 1, 1, -1)) < 5
    ends = []
    for axis in (1, 2):
      line = hit.any(3 - axis)
      ends += [line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)]
    boxes = jnp.stack([ends[0], ends[2], ends[1], ends[3]], -1).astype(jnp.float32)
    valid = hit.any((1, 2))
    scores = jnp.broadcast_to(jnp.float32((LEVELS + 255) / 510), valid.shape)
    masks = jnp.ones((*valid.shape, 28, 28))
    return Detections(jnp.where(valid[..., None], boxes, 0), scores, 1 * valid, masks, valid)


class Shown:
  """Stands for a data set of images with rectangles that touch one another."""

  def __init__(self, sizes, width):
    self.examples = []
    for height, count in sizes:
      image, annotations = np.zeros((height, width * count, 3), np.uint8), []
      for i in range(count):
        box = (3 + i, width * i, height - 5 * i, width * (i + 1))
        mask = draw(box, image.shape[:2])
        image[mask] = LEVELS[i]
        annotations.append(Annotation(mask, 1))
      objects = make_objects(image.shape[:2], annotations)
      self.examples.append({"image": image, "objects": objects})

  def source(self, split):
    return self.examples


@pytest.mark.parametrize("flip", ["none", "all"])
def test_evaluation_and_prediction_are_the_same_on_any_devices(flip, monkeypatch):
  dataset = Shown([(70, 9), (130, 4), (200, 2), (20, 1)], 23)
  config = configs.default("mask_rcnn")
  config.data.size, config.inference.mode, config.inference.flip = (64, 64), "window", flip
  devices = jax.local_devices()
  for count, batch_size in ((1, 3), (2, 4), (4, 1)):
    monkeypatch.setattr(jax, "local_devices", lambda n=count: devices[:n])
    config.data.eval_batch_size = batch_size
    task = InstanceTask(config, Finder(), ClassInfo(("background", "rectangle")))
    scores = task.evaluator(dataset, "val")(replicate(VARIABLES))
    assert scores.masks.ap == pytest.approx(1)  # objects of every size, each found once
    predict, state = task.predictor(), AveragePrecisionState.empty(2)
    for index, example in enumerate(dataset.examples):
      objects = predict(VARIABLES, example["image"]).objects
      truth = example["objects"]
      assert len(objects) == len(truth)
      for i in range(len(truth)):  # both from the left to the right
        np.testing.assert_array_equal(objects.mask(i), truth.mask(i))
      state = state.update(index, truth, objects)
    names = task.classes.names
    expected = state.compute(max_detections=None)
    assert scores.to_dict(names) == expected.to_dict(names)
    assert scores.images.columns["matched"].tolist() == [9, 4, 2, 1]


def test_mirror_images_of_the_whole_image():
  dataset = Shown([(70, 9)], 23)
  config = configs.default("mask_rcnn")
  config.data.size, config.inference.flip = (70, 9 * 23), "horizontal"
  predict = InstanceTask(config, Finder(), ClassInfo(("background", "rectangle"))).predictor()
  objects = predict(VARIABLES, dataset.examples[0]["image"]).objects
  assert len(objects) == 9
  for i in range(9):
    np.testing.assert_array_equal(objects.mask(i), dataset.examples[0]["objects"].mask(i))
