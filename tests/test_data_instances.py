"""Objects: masks kept losslessly, coverage and pasting as each other's inverse, and batches."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.masks import disc, iou
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jseg import data
from jseg.data.detections import objects_from_detections, paste
from jseg.data.files.instances import (
  Annotation,
  coco_masks,
  encode_rle,
  make_objects,
  objects_from_ids,
)
from jseg.data.targets import coverage, make_targets
from jseg.types import Detections, InputError, Targets


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_objects_of_a_map_of_ids(height, width, seed):
  ids = np.random.default_rng(seed).integers(0, 5, (height, width)) * 300
  objects = objects_from_ids(ids, lambda number: number // 300)
  present = sorted(set(np.unique(ids).tolist()) - {0})
  assert objects.classes.tolist() == [number // 300 for number in present]
  for i, number in enumerate(present):
    mask = ids == number
    np.testing.assert_array_equal(objects.mask(i), mask)
    rows, columns = np.nonzero(mask)
    tight = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    assert objects.boxes[i].tolist() == objects.frames[i].tolist() == tight
    assert objects.areas[i] == mask.sum()


def test_an_empty_mask_is_no_object():
  objects = make_objects((3, 4), [Annotation(np.zeros((3, 4), bool), 1)])
  assert len(objects) == 0
  assert objects.boxes.shape == (0, 4)


def test_coverage_by_hand():
  crop = np.array([[1, 1, 0], [0, 1, 1]], bool)
  # Cell (0, 0) covers 1 x 1.5 pixels: all of two pixels' share; (1, 0) only half of pixel (1, 1).
  assert coverage(crop, 2).tolist() == [[255, 85], [85, 255]]
  # Each cell lies in one pixel.
  np.testing.assert_array_equal(coverage(crop, 6), 255 * crop.repeat(3, 0).repeat(2, 1))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_coverage_keeps_the_area_and_what_is_tiny(height, width, cells, seed):
  crop = np.random.default_rng(seed).random((height, width)) < 0.5
  cover = coverage(crop, cells)
  assert cover.astype(float).mean() / 255 == pytest.approx(crop.mean(), abs=1 / 255)
  lone = np.zeros((2000, 3), bool)
  lone[0, 0] = True
  assert (coverage(lone, 3) > 0).tolist() == [[True, False, False]] + [[False] * 3] * 2


def naive_paste(probabilities, box, size):
  """Each pixel's middle, one by one."""
  m = len(probabilities)
  padded = np.pad(probabilities, 1)
  mask = np.zeros(size)
  for y, x in np.ndindex(*size):
    v = (y + 0.5 - box[0]) / (box[2] - box[0]) * m + 0.5
    u = (x + 0.5 - box[1]) / (box[3] - box[1]) * m + 0.5
    if 0 <= v < m + 1 and 0 <= u < m + 1:
      i, j = int(v), int(u)
      f, g = v - i, u - j
      top = padded[i, j] * (1 - g) + padded[i, j + 1] * g
      bottom = padded[i + 1, j] * (1 - g) + padded[i + 1, j + 1] * g
      mask[y, x] = top * (1 - f) + bottom * f
  return mask > 0.5


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_paste_equals_interpolation_by_pixel(seed):
  rng = np.random.default_rng(seed)
  probabilities = rng.random((5, 5))
  corner = rng.uniform(-8, 12, 2)
  box = np.concatenate([corner, corner + rng.uniform(0.5, 20, 2)])
  crop, (y0, x0, y1, x1) = paste(probabilities, box, (14, 17))
  mask = np.zeros((14, 17), bool)
  mask[y0:y1, x0:x1] = crop
  np.testing.assert_array_equal(mask, naive_paste(probabilities, box, (14, 17)))


@pytest.mark.parametrize("box", [(3, 3, 3, 3), (5, 2, 5, 9), (40, 40, 50, 50), (-9, -9, -2, -2)])
def test_paste_of_boxes_that_hold_no_pixel(box):
  crop, (y0, x0, y1, x1) = paste(np.ones((4, 4)), np.array(box, np.float32), (14, 17))
  assert crop.shape == (y1 - y0, x1 - x0)
  assert crop.size == 0


@pytest.mark.parametrize("radius", [3, 11, 60])
def test_pasting_undoes_coverage(radius):
  mask = disc((150, 170), (70.3, 81.6), radius)
  objects = make_objects(mask.shape, [Annotation(mask, 1)])
  targets = make_targets(objects, mask.shape, 1, 56)
  crop, (y0, x0, y1, x1) = paste(targets["masks"][0] / 255, targets["frames"][0], mask.shape)
  back = np.zeros_like(mask)
  back[y0:y1, x0:x1] = crop
  assert iou(mask, back) > 0.99


def test_targets_keep_the_largest_in_order():
  boxes = [(0, 0, 2, 2), (4, 4, 10, 12), (10, 0, 12, 1), (2, 14, 6, 20)]
  annotations = []
  for i, (y0, x0, y1, x1) in enumerate(boxes):
    annotations.append(Annotation(np.ones((y1 - y0, x1 - x0), bool), i + 1, i == 3, (y0, x0)))
  objects = make_objects((12, 20), annotations)
  targets = make_targets(objects, (6, 5), 2, 4)
  assert targets["classes"].tolist() == [2, 4]
  assert targets["crowd"].tolist() == [False, True]
  assert targets["boxes"].tolist() == [[2, 1, 5, 3], [1, 3.5, 3, 5]]
  assert (targets["masks"] == 255).all()
  wide = make_targets(objects, (12, 20), 6, 4)
  assert wide["valid"].tolist() == [True] * 4 + [False] * 2
  for value in wide.values():
    assert not value[4:].any()


def test_detections_come_back_to_the_images_own_size():
  mask = disc((60, 80), (30, 40), 15)
  objects = make_objects(mask.shape, [Annotation(mask, 2)])
  targets = make_targets(objects, (30, 40), 3, 28)
  detections = Detections(
    boxes=targets["boxes"],
    scores=np.array([0.9, 0, 0], np.float32),
    classes=targets["classes"],
    masks=targets["masks"] / 255,
    valid=targets["valid"],
  )
  found = objects_from_detections(detections, (30, 40), (60, 80))
  assert found.boxes.tolist() == objects.boxes.tolist()
  assert found.scores.tolist() == pytest.approx([0.9])
  assert found.classes.tolist() == [2]
  assert iou(found.mask(0), mask) > 0.98
  assert found.areas[0] == found.mask(0).sum()


def test_run_length_code_is_cocos():
  mask = np.zeros((9, 9), bool)
  mask[1:8, 2:5] = True
  # Down the columns: 19 off, 7 on, 2 off, 7 on, 2 off, 7 on, 37 off.
  runs = {"size": [9, 9], "counts": [19, 7, 2, 7, 2, 7, 37]}
  assert encode_rle(mask) == coco_masks().frPyObjects(runs, 9, 9)


def examples(count):
  return [
    {
      "image": np.full((8, 12, 3), i, np.uint8),
      "objects": make_objects(
        (8, 12), [Annotation(np.ones((4, 4), bool), 1, corner=(i % 4, i % 8))]
      ),
      "name": f"{i}",
    }
    for i in range(count)
  ]


def iterator(**changes):
  options = {"size": (4, 6), "batch_size": 4, "seed": 0, "objects": (3, 7)} | changes
  return data.train_iterator(examples(10), **options)


def test_batches_hold_targets_that_fit_their_image():
  batch = next(iterator())
  assert set(batch) == {"image", "size", *Targets.__dataclass_fields__}
  numbers = batch["image"][:, 0, 0, 0]
  np.testing.assert_array_equal(batch["size"], [[4, 6]] * 4)
  np.testing.assert_array_equal(batch["boxes"][:, 0, 0], (numbers % 4) / 2)
  np.testing.assert_array_equal(batch["boxes"][:, 0, 1], (numbers % 8) / 2)
  assert batch["masks"].shape == (4, 3, 7, 7)
  assert batch["valid"].sum(1).tolist() == [1] * 4


def test_an_iterator_goes_on_where_another_stopped():
  first, second = iterator(), iterator()
  for _ in range(3):
    next(first)
  second.set_state(json.loads(json.dumps(first.get_state())))
  for key, value in next(first).items():
    if key == "image":
      np.testing.assert_array_equal(next(second)[key], value)


def test_evaluation_without_labels():
  batches = data.eval_batches(examples(5), size=(4, 6), label_size=None, batch_size=4)
  seen = list(batches)
  assert [set(batch) for batch in seen] == [{"image", "size", "index"}] * 2
  assert np.concatenate([b["index"] for b in seen]).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]


class TinyLvis(tfds.core.GeneratorBasedBuilder):
  """Objects with a mask each, as TFDS has LVIS."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    objects = {
      "label": tfds.features.ClassLabel(names=["cat", "dog"]),
      "bbox": tfds.features.BBoxFeature(),
      "segmentation": tfds.features.Image(shape=(None, None, 1)),
    }
    features = {
      "image": tfds.features.Image(encoding_format="png"),
      "objects": tfds.features.Sequence(objects),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(3):
      objects = [
        {
          "label": k % 2,
          "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
          "segmentation": Image.fromarray(disc((9, 12), (4, 4 + k), 3).astype(np.uint8)),
        }
        for k in range(i)
      ]
      image = Image.fromarray(np.full((9, 12, 3), i, np.uint8))
      yield i, {"image": image, "objects": objects}


LVIS = {"image": "image", "objects": "objects", "class": "label", "mask": "segmentation"}


def test_a_tfds_set_with_a_mask_an_object(tmp_path):
  dataset = data.load("tiny_lvis", data_dir=tmp_path, fields=LVIS)
  assert dataset.classes.names == ("background", "cat", "dog")
  by_count = {len(example["objects"]): example["objects"] for example in dataset.source("train")}
  assert sorted(by_count) == [0, 1, 2]
  assert by_count[2].classes.tolist() == [1, 2]
  np.testing.assert_array_equal(by_count[2].mask(1), disc((9, 12), (4, 5), 3))
  dogs = LVIS | {"values": {"1": 1}, "classes": ["none", "dog"]}
  some = data.load("tiny_lvis", data_dir=tmp_path, fields=dogs)
  assert sorted(len(example["objects"]) for example in some.source("train")) == [0, 0, 1]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mask": "masks"}, "has no feature 'masks' as mask; it has label, bbox, segmentation|bbox"),
    ({"objects": "image"}, "has no feature 'label' as class; it has none"),
    ({"label": "image", "id": "id"}, "either mask or label and id"),
    ({"masks": "x"}, r"unknown \['masks'\]"),
    ({"values": {0: 1}}, "both or none"),
    ({"values": {0: 0}, "classes": ["none", "cat"]}, r"must map to 1\.\.1"),
  ],
)
def test_a_field_map_that_does_not_fit(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    data.load("tiny_lvis", data_dir=tmp_path, fields=LVIS | changes)


class TinyPanoptic(tfds.core.GeneratorBasedBuilder):
  """Objects as colors of one image, as TFDS has coco/2017_panoptic."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    objects = {
      "id": np.int64,
      "label": tfds.features.ClassLabel(num_classes=5),
      "is_crowd": np.bool_,
    }
    features = {
      "image": tfds.features.Image(encoding_format="jpeg"),
      "panoptic_image": tfds.features.Image(encoding_format="png"),
      "panoptic_objects": tfds.features.Sequence(objects),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"validation": self._generate_examples()}

  def _generate_examples(self):
    colors = np.zeros((9, 12, 3), np.uint8)
    colors[:4, :6], colors[5:, 2:9], colors[4, :] = (3, 1, 0), (4, 0, 2), (9, 9, 9)
    objects = [
      {"id": 3 + 256, "label": 4, "is_crowd": False},
      {"id": 4 + 2 * 65536, "label": 1, "is_crowd": True},
      {"id": 9 * (1 + 256 + 65536), "label": 0, "is_crowd": False},  # stuff
    ]
    images = {"image": Image.new("RGB", (12, 9)), "panoptic_image": Image.fromarray(colors)}
    yield 0, {**images, "panoptic_objects": objects}


def test_a_tfds_set_in_the_panoptic_format(tmp_path):
  fields = {
    "image": "image",
    "label": "panoptic_image",
    "objects": "panoptic_objects",
    "class": "label",
    "id": "id",
    "crowd": "is_crowd",
    "values": {4: 1, 1: 2},
    "classes": ["background", "a", "b"],
  }
  dataset = data.load("tiny_panoptic", data_dir=tmp_path, fields=fields)
  example = dataset.source("validation")[0]
  objects = example["objects"]
  assert objects.classes.tolist() == [1, 2]
  assert objects.crowd.tolist() == [False, True]
  assert objects.boxes.tolist() == [[0, 0, 4, 6], [5, 2, 9, 9]]
  assert objects.areas.tolist() == [24, 28]


@pytest.mark.parametrize(
  ("shape", "covered"),
  [
    ((30, 40), (60, 80)),  # enlarged until the shorter side is 60
    ((40, 30), (80, 60)),
    ((120, 160), (60, 80)),
    ((20, 100), (18, 90)),  # the canvas is full before
    ((60, 75), (60, 75)),
  ],
)
def test_images_are_brought_to_a_shorter_side(shape, covered):
  image = np.full((*shape, 3), 7, np.uint8)
  canvas, size = data.resize_and_pad(image, (90, 90), short_side=60)
  assert size == covered
  assert canvas.shape == (90, 90, 3)
  assert (canvas[: size[0], : size[1]] == 7).all()
  assert canvas.sum() == 3 * 7 * np.prod(size)
