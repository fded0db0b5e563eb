"""LabelMe's JSON files."""

import base64
import io
import json
import re

import numpy as np
import pytest
from helpers.files import save
from helpers.fuzz import ROUNDS, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jseg import data
from jseg.data.files.images import decode_raw, encode_png
from jseg.data.files.instances import coco_masks
from jseg.data.sources import recognize
from jseg.data.sources.labelme import labelme_source
from jseg.types import IGNORE, InputError

SIZE = (20, 30)
SQUARE = [[5, 5], [15, 5], [15, 15], [5, 15]]


def shape(label="cell", points=SQUARE, kind="polygon", **changes):
  row = {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
  return row | changes


def content(*shapes, image="1.jpg", **changes):
  row = {"version": "5.0.1", "flags": {}, "shapes": list(shapes), "imagePath": image}
  return row | {"imageData": None, "imageHeight": 20, "imageWidth": 30} | changes


def encoded(array):
  return base64.b64encode(encode_png(np.asarray(array, np.uint8))).decode()


def write(root, rows, name="train/1.json", image="train/1.jpg"):
  (root / name).parent.mkdir(parents=True, exist_ok=True)
  (root / name).write_text(rows if isinstance(rows, str) else json.dumps(rows))
  if image:
    save(root / image, np.zeros((*SIZE, 3)))
  return root


def load(root, split="train"):
  source = labelme_source(root)
  assert [str(problem) for problem in source.problems] == []
  return source.splits[split][0].load()


def rectangle(y0, x0, y1, x1):
  mask = np.zeros(SIZE, bool)
  mask[y0:y1, x0:x1] = True
  return mask


@pytest.mark.parametrize(
  "row",
  [
    shape(),
    shape(kind=None),
    shape(kind="oriented_rectangle"),
    shape(points=[[5, 5], [15, 15]], kind="rectangle"),
    shape(points=[[15, 5], [5, 15]], kind="rectangle"),
    shape(kind="rectangle"),  # four corners, as some forks write
    shape(points=[[5, 5], [14, 14]], kind="mask", mask=encoded(np.ones((10, 10)))),
    shape(points=[["5", "5"], ["15", "5"], ["15", "15"], ["5", "15"]]),
  ],
)
def test_shapes_of_each_kind(tmp_path, row):
  example = load(write(tmp_path, content(row)))
  assert not example.notes
  np.testing.assert_array_equal(example.objects.mask(0), rectangle(5, 5, 15, 15))
  np.testing.assert_array_equal(decode_raw(example.label), rectangle(5, 5, 15, 15))


def test_a_circle_has_its_center_and_a_point_of_its_edge(tmp_path):
  example = load(write(tmp_path, content(shape(points=[[10, 8], [13, 12]], kind="circle"))))
  mask = example.objects.mask(0)
  y, x = np.nonzero(mask)
  assert ((x + 0.5 - 10) ** 2 + (y + 0.5 - 8) ** 2 <= 25).all()
  assert mask.sum() == sum(
    (i + 0.5) ** 2 + (j + 0.5) ** 2 <= 25 for i in range(-9, 9) for j in range(-9, 9)
  )


def test_a_mask_that_reaches_out_of_the_image(tmp_path):
  crop = np.arange(16).reshape(4, 4)
  rows = [
    shape(points=[[x, y], [0, 0]], kind="mask", mask=encoded(crop)) for x, y in ((-2, -1), (28, 18))
  ]
  example = load(write(tmp_path, content(*rows)))
  expected = np.zeros(SIZE, bool)
  expected[:3, :2] = True
  np.testing.assert_array_equal(example.objects.mask(0), expected)
  expected = np.zeros(SIZE, bool)
  expected[18:, 28:] = crop[:2, :2] > 0
  np.testing.assert_array_equal(example.objects.mask(1), expected)


def test_groups_are_one_object(tmp_path):
  rows = [
    shape("a", [[0, 0], [2, 2]], "rectangle", group_id=1),
    shape("b", [[4, 0], [6, 2]], "rectangle", group_id=1),
    shape("a", [[8, 0], [10, 2]], "rectangle", group_id=1),
    shape("a", [[12, 0], [14, 2]], "rectangle"),
    shape("a", [[16, 0], [18, 2]], "rectangle"),
  ]
  example = load(write(tmp_path, content(*rows)))
  assert sorted(example.objects.areas.tolist()) == [4, 4, 4, 8]
  joined = int(example.objects.areas.argmax())
  expected = rectangle(0, 0, 2, 2) | rectangle(0, 8, 2, 10)
  np.testing.assert_array_equal(example.objects.mask(joined), expected)
  assert sorted(example.objects.classes.tolist()) == [1, 1, 1, 2]


def test_void_and_background_are_no_classes(tmp_path):
  rows = [
    shape(),
    shape("_background_", [[5, 5], [10, 10]], "rectangle"),
    shape("__ignore__", [[20, 0], [30, 20]], "rectangle"),
    shape(points=[[28, 0], [30, 2]], kind="rectangle"),
  ]
  root = write(tmp_path, content(*rows))
  example = load(root)
  assert labelme_source(root).classes.names == ("background", "cell")
  expected = rectangle(5, 5, 15, 15).astype(np.uint8)
  expected[5:10, 5:10] = 0
  expected[:, 20:] = IGNORE
  expected[:2, 28:] = 1
  np.testing.assert_array_equal(decode_raw(example.label), expected)
  assert example.objects.crowd.tolist() == [False, False, True]
  hollow = rectangle(5, 5, 15, 15) & ~rectangle(5, 5, 10, 10)
  np.testing.assert_array_equal(example.objects.mask(0), hollow)


def test_classes_by_labels_txt_by_option_or_by_the_alphabet(tmp_path):
  root = write(tmp_path, content(shape("b"), shape("a"), shape("c")))
  assert labelme_source(root).classes.names == ("background", "a", "b", "c")
  (root / "labels.txt").write_text("__ignore__\n_background_\nc\nb\na\n\n", "utf-8-sig")
  assert labelme_source(root).classes.names == ("background", "c", "b", "a")
  source = labelme_source(root, classes=["b", "a"])
  (problem,) = source.problems
  assert "1.json: has the label c, which isn't among b, a. Add it to the names" in str(problem)


@pytest.mark.parametrize(
  ("path", "image"),
  [
    ("1.jpg", "train/1.jpg"),
    ("..\\images\\1.jpg", "images/1.jpg"),
    ("../images/1.jpg", "images/1.jpg"),
    ("C:\\Users\\me\\1.jpg", "train/1.jpg"),
    ("/home/me/photo.png", "train/1.PNG"),
    (None, "train/1.tif"),
    ("elsewhere.jpg", "train/1.jpg"),
  ],
)
def test_where_images_are(tmp_path, path, image):
  root = write(tmp_path, content(shape(), image=path), image=None)
  save(tmp_path / image, np.zeros((*SIZE, 3)))
  assert len(load(root).objects) == 1


def test_an_image_within_the_json(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
  root = write(tmp_path, content(shape(), imageData=encoded(image)), image=None)
  example = load(root)
  read = np.asarray(Image.open(io.BytesIO(example.image)))
  np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"image": "2.jpg"},
      r"1\.json: its imagePath is 2\.jpg, which isn't there\. Put the image besi",
    ),
    ({"image": "../../../etc/2.jpg"}, "which leads out of the data set"),
    ({"image": "/etc/2.jpg"}, "which leads out of the data set"),
    ({"image": 3}, "its imagePath is 3"),
  ],
)
def test_missing_images_are_told(tmp_path, changes, message):
  root = write(tmp_path / "root", content(shape(), **changes), image=None)
  (problem,) = labelme_source(root).problems
  assert re.search(message, str(problem))


@pytest.mark.parametrize(
  ("row", "kind", "message"),
  [
    (
      shape(points=[[1, 1]], kind="point"),
      "no area",
      "is a point, which has no area; what has: po",
    ),
    (shape(kind="linestrip"), "no area", "is a linestrip"),
    (shape(points=[[1, 1], [2, 2]]), "polygon", "has a polygon of 2 points, which has no inside"),
    (shape(points=[[1, 1], [2, 2], [3]]), "malformed", r"points that aren't \[x, y\]"),
    (shape(points=[[1, 1], [2, 2], [3, None]]), "malformed", "where finite numbers belong"),
    (shape(points="none"), "malformed", "has none where points belong"),
    (shape(points=[[1, 1]], kind="circle"), "malformed", "is a circle of 1 points, where 2 belong"),
    (shape(points=[[50, 50], [60, 60]], kind="rectangle"), "empty", "covers no pixel"),
    (shape(points=[[1, 1], [2, 2]], kind="mask", mask="x"), "malformed", "a mask that is no image"),
    (shape(points=[[1, 1], [2, 2]], kind="mask"), "malformed", "a mask that is no image"),
    (shape(points=[[1e9, 1], [2, 2], [3, 3]]), "malformed", "reaches far outside"),
  ],
)
def test_shapes_that_are_left_out(tmp_path, row, kind, message):
  example = load(write(tmp_path, content(row, shape())))
  (note,) = example.notes
  assert note.kind == kind
  assert re.search(rf"1\.json: shape 1 \(cell\): .*{message}", str(note))
  assert len(example.objects) == 1


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ("{", r"1\.json: is not valid JSON"),
    ("[" * 100_000, r"1\.json: is not valid JSON"),
    ("[]", 'has no list of "shapes"'),
    ({"shapes": [1]}, 'has no list of "shapes"'),
    (content(shape(7)), "has a shape whose label is no text"),
  ],
)
def test_files_that_are_refused(tmp_path, rows, message):
  write(tmp_path, content(shape()), "train/2.json", "train/2.jpg")
  root = write(tmp_path, rows)
  (problem,) = labelme_source(root).problems
  assert re.search(message, str(problem))
  with pytest.raises(InputError, match=message):
    data.load("labelme", root=root, data_dir=tmp_path / "data")


def test_images_of_another_size(tmp_path):
  root = write(tmp_path, content(shape(), imageHeight=30, imageWidth=20))
  with pytest.raises(InputError, match=r"1\.jpg: 30 wide x 20 high, but .*1\.json says 20 x 30"):
    load(root)
  assert (
    len(load(write(tmp_path, content(shape(), imageHeight=None, imageWidth=None))).objects) == 1
  )


def test_images_without_json_are_told_and_hidden_files_are_not(tmp_path):
  root = write(tmp_path, content(shape()))
  save(root / "train" / "2.jpg")
  (root / "train" / "._1.json").write_bytes(b"\0\5")
  (note,) = labelme_source(root).notes
  assert "1 image(s) without a JSON file: not used (2.jpg)" in str(note)


def test_it_is_recognized_split_and_prepared(tmp_path):
  for i in range(10):
    write(tmp_path / "set", content(shape(), image=f"{i}.jpg"), f"a/{i}.json", f"a/{i}.jpg")
  root = tmp_path / "set"
  source = labelme_source(root)
  assert {split: len(items) for split, items in source.splits.items()} == {"train": 8, "val": 2}
  assert source.splits["train"][0].name.startswith("a/")
  nested = write(tmp_path / "set2", content(shape()))
  assert recognize(nested).classes.names == ("background", "cell")
  dataset = data.load("labelme", root=root, data_dir=tmp_path / "data")
  example = dataset.source("val")[0]
  np.testing.assert_array_equal(example["label"], rectangle(5, 5, 15, 15))
  np.testing.assert_array_equal(example["objects"].mask(0), rectangle(5, 5, 15, 15))
  before = source.fingerprint()
  write(root, content(shape("b"), image="3.jpg"), "a/3.json", None)
  assert labelme_source(root).fingerprint() != before
  with pytest.raises(InputError, match="holds no JSON of LabelMe"):
    labelme_source(tmp_path / "data")


points = st.lists(
  st.tuples(st.floats(-5, 35, width=32), st.floats(-5, 25, width=32)), min_size=3, max_size=9
)


@settings(max_examples=40, deadline=None)
@given(outline=points)
def test_outlines_are_drawn_as_coco_does(tmp_path_factory, outline):
  flat = [number for point in outline for number in point]
  expected = coco_masks().decode(coco_masks().frPyObjects([flat], *SIZE))[..., 0].astype(bool)
  rows = content(shape(points=[list(point) for point in outline]))
  example = load(write(tmp_path_factory.mktemp("outline"), rows))
  np.testing.assert_array_equal(decode_raw(example.label), expected)
  assert len(example.objects) == expected.any()


def test_damaged_json_is_read_or_refused(tmp_path):
  rows = [shape(points=[[5, 5], [14, 14]], kind="mask", mask=encoded(np.ones((10, 10)))), shape()]
  image = encoded(np.zeros((*SIZE, 3)))
  root = write(tmp_path, content(*rows, shape("b", group_id=1), imageData=image), image=None)
  text = (root / "train" / "1.json").read_bytes()
  rng = np.random.default_rng(0)
  outcomes = [0, 0]
  for _ in range(ROUNDS):
    (root / "train" / "1.json").write_bytes(damaged(text, rng))
    try:
      source = labelme_source(root)
      outcomes[0] += all(len(item.load().notes) < 9 for item in source.splits["train"])
    except InputError:
      outcomes[1] += 1
  assert sum(outcomes) == ROUNDS
