"""COCO's JSON as annotation tools write it, as it gets damaged, and as it is made to mislead."""

import copy
import json
import re
import tracemalloc

import numpy as np
import pytest
from helpers.files import save
from helpers.fuzz import ROUNDS, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.data import check_folder
from jseg.data.files.images import decode_raw
from jseg.data.files.instances import coco_masks, encode_rle
from jseg.data.sources.coco import coco_source
from jseg.types import IGNORE, InputError

SIZE = (20, 30)
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]
TRAIN = "train/_annotations.coco.json"


def annotation(number=1, image=1, category=1, **changes):
  row = {"id": number, "image_id": image, "category_id": category, "segmentation": [SQUARE]}
  return row | {"bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0} | changes


def image(number=1, name="1.jpg", **changes):
  return {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]} | changes


def content(images, annotations, categories=({"id": 1, "name": "cell"},)):
  return {"images": images, "annotations": annotations, "categories": list(categories)}


def write(root, rows, files=("train/1.jpg",), where=TRAIN):
  (root / where).parent.mkdir(parents=True, exist_ok=True)
  (root / where).write_text(rows if isinstance(rows, str) else json.dumps(rows))
  for name in files:
    save(root / name, np.zeros((*SIZE, 3)))
  return root


def square():
  mask = np.zeros(SIZE, bool)
  mask[5:15, 5:15] = True
  return mask


def reads_one_square(root):
  source = coco_source(root)
  assert [str(problem) for problem in source.problems] == []
  (items,) = source.splits.values()
  example = items[0].load()
  assert [str(note) for note in example.notes] == []
  np.testing.assert_array_equal(example.objects.mask(0), square())
  np.testing.assert_array_equal(decode_raw(example.label), square())
  assert example.objects.classes.tolist() == [1]
  return source


@pytest.mark.parametrize(
  "changes",
  [
    {"segmentation": SQUARE},  # VIA writes it so
    {"segmentation": [SQUARE[:2], SQUARE[2:4], SQUARE[4:6], SQUARE[6:]]},
    {"segmentation": [[SQUARE[:2], SQUARE[2:4], SQUARE[4:6], SQUARE[6:]]]},
    {"segmentation": [[str(n) for n in SQUARE]]},
    {"segmentation": [[SQUARE]]},  # Kili
    {"segmentation": {"counts": [105, *([10, 10] * 9), 10, 305]}},  # without size
    {"segmentation": {"size": ["20", 30.0], "counts": [105.0, *([10, 10] * 9), 10, 305]}},
    {"segmentation": [{"size": [20, 30], "counts": [105, *([10, 10] * 9), 10, 305]}]},
    {"image_id": "1"},
    {"image_id": 1.0},
    {"category_id": 1.0},
    {"category_id": "1"},
    {"iscrowd": None},
    {"iscrowd": "0"},  # which Python holds for true
    {"iscrowd": False},
    {"bbox": []},
    {"bbox": None, "area": None},
    {"bbox": ["5", "5", "10", "10"], "area": "100"},
    {"id": 1.0},
    {"id": None},
    {"id": [1]},
    {"attributes": {"occluded": False}, "ignore": 0, "segmented": 1},
  ],
)
def test_annotations_whose_meaning_is_plain(tmp_path, changes):
  reads_one_square(write(tmp_path, content([image()], [annotation(**changes)])))


@pytest.mark.parametrize(
  "changes",
  [
    *({"height": value, "width": value} for value in (None, 0, "", "0")),
    {"height": "20", "width": "30"},
    {"height": 20.0, "width": 30.0},
    {"id": "1"},
    {"id": 1.0},
    {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
  ],
)
def test_images_whose_meaning_is_plain(tmp_path, changes):
  reads_one_square(write(tmp_path, content([image(**changes)], [annotation()])))


@pytest.mark.parametrize(
  ("name", "there", "where"),
  [
    ("images\\1.jpg", "train/1.jpg", TRAIN),
    ("images\\1.jpg", "images/1.jpg", "result.json"),  # Label Studio on Windows
    ("images/3/1.jpg", "images/1.jpg", "result.json"),  # and with an upload's number
    ("a/1.jpg", "images/a/1.jpg", "annotations/instances_default.json"),  # CVAT with folders
    ("1.jpg", "images/default/1.jpg", "annotations/instances_default.json"),
    ("./1.jpg", "train/1.jpg", TRAIN),
    ("../images/1.jpg", "images/1.jpg", TRAIN),
    ("JPEGImages/1.jpg", "JPEGImages/1.jpg", "annotations.json"),  # labelme2coco
    ("https://some.host/data/upload/1/1.jpg?X-Amz-Date=7", "images/1.jpg", "result.json"),
    ("s3://bucket/some%20where/1.jpg", "images/1.jpg", "result.json"),
    ("/data/local-files/?d=photos/1.jpg", "images/1.jpg", "result.json"),
    ("photo 1 (2).jpg", "train/photo 1 (2).jpg", TRAIN),
    ("deep/er/and/1.jpg", "train/1.jpg", TRAIN),
  ],
)
def test_file_names_of_tools(tmp_path, name, there, where):
  rows = content([image(name=name)], [annotation()])
  whole = write(tmp_path, rows, [there], where)
  if where == TRAIN:
    reads_one_square(whole)
  else:
    named = coco_source(whole, annotations={"train": where})
    assert [str(problem) for problem in named.problems] == []
    assert named.splits["train"][0].image.resolve() == tmp_path / there


def test_an_absolute_name_within_the_data_set(tmp_path):
  name = str(tmp_path / "train" / "1.jpg")
  reads_one_square(write(tmp_path, content([image(name=name)], [annotation()])))


@pytest.mark.parametrize(
  "name",
  [
    "/etc/1.jpg",
    "../../1.jpg",
    "..\\..\\media\\upload\\4\\1.jpg",
    "C:\\photos\\1.jpg",
    "a/../../../1.jpg",
  ],
)
def test_names_that_lead_out_of_the_data_set_are_refused(tmp_path, name):
  save(tmp_path / "1.jpg")
  root = write(tmp_path / "a" / "root", content([image(name=name)], [annotation()]))
  (problem,) = coco_source(root).problems
  assert "image 1 has the file_name" in str(problem)
  assert "which leads out of the data set. Name images from" in str(problem)
  assert "as in '1.jpg'" in str(problem)


@pytest.mark.parametrize(
  "name", ["\ud800.jpg", "", None, 7, "x" * 5000, "a\0b.jpg", "http://[/2.jpg"]
)
def test_names_that_no_file_has(tmp_path, name):
  problems = coco_source(write(tmp_path, content([image(name=name)], [annotation()]))).problems
  assert problems
  assert all(str(problem).encode() for problem in problems)


def test_one_missing_image_doesnt_hide_the_others(tmp_path):
  rows = content([image(0, "0.jpg"), image()], [annotation()])
  (problem,) = coco_source(write(tmp_path, rows)).problems
  assert re.search(r"train/0\.jpg: is image 0 of .*json, but missing", str(problem))


def test_folders_are_dropped_only_where_names_stay_apart(tmp_path):
  rows = content([image(1, "a/1.jpg"), image(2, "b/1.jpg")], [annotation()])
  problems = coco_source(write(tmp_path, rows)).problems
  assert len(problems) == 2
  assert "is image 1 of" in str(problems[0])


def test_hidden_files_beside_it(tmp_path):
  root = write(tmp_path, content([image()], [annotation()]))
  (tmp_path / "train" / "._annotations.coco.json").write_bytes(b"\0\5\x16\7")
  (tmp_path / "train" / ".x.json").write_text("{}")
  reads_one_square(root)


GROUPED = (
  {"id": 0, "name": "cells", "supercategory": "none"},
  {"id": 1, "name": "cell", "supercategory": "cells"},
)


def test_a_category_that_only_groups_others_is_no_class(tmp_path):
  root = write(tmp_path, content([image()], [annotation()], GROUPED))
  source = reads_one_square(root)
  assert source.classes.names == ("background", "cell")
  (note,) = source.notes
  assert "category 0, cells, has no annotation and only groups others: it is no class" in str(note)
  assert "data.options.groups=True" in str(note)
  kept = coco_source(root, groups=True)
  assert kept.classes.names == ("background", "cells", "cell")
  assert kept.splits["train"][0].load().objects.classes.tolist() == [2]


def test_a_group_with_annotations_is_a_class_and_so_is_one_of_the_same_name(tmp_path):
  rows = content([image()], [annotation(), annotation(2, category=0)], GROUPED)
  assert coco_source(write(tmp_path, rows)).classes.names == ("background", "cells", "cell")
  alone = content([image()], [], [{"id": 1, "name": "cell", "supercategory": "cell"}])
  assert coco_source(write(tmp_path, alone)).classes.names == ("background", "cell")
  same = ({**GROUPED[0], "name": "cell"}, {**GROUPED[1], "supercategory": "cell"})
  rows = content([image()], [annotation()], same)
  assert coco_source(write(tmp_path, rows)).classes.names == ("background", "cell")


@pytest.mark.parametrize(
  ("changes", "kind"),
  [
    ({"segmentation": []}, "no mask"),
    ({"segmentation": None}, "no mask"),
    ({"segmentation": {"size": [20, 31], "counts": [620]}}, "run lengths"),
    ({"segmentation": {"size": [20, 30], "counts": [105, 10]}}, "run lengths"),
    ({"segmentation": {"size": [20, 30], "counts": [0.5, 599.5]}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": [2**62, 2**62, 600]}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": [10**30]}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": [[1], [2]]}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": [-1, 601]}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": "P" * 3_000_000}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": "0" * 3_000_000}}, "run lengths"),
    ({"segmentation": {"size": [20, 30], "counts": "é"}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": ""}}, "malformed"),
    ({"segmentation": {"size": [20, 30], "counts": 600}}, "malformed"),
    ({"segmentation": {"size": 600, "counts": [600]}}, "run lengths"),
    ({"segmentation": {"size": [20, 30]}}, "malformed"),
    ({"segmentation": "a.png"}, "malformed"),
    ({"segmentation": [[10**400, 0, 5, 5, 9, 9]]}, "malformed"),
    ({"segmentation": [[True, 0, 5, 5, 9, 9]]}, "malformed"),
    ({"segmentation": [{"x": 1}]}, "malformed"),
    ({"segmentation": [[[[1, 2]]]]}, "malformed"),
    ({"segmentation": [1, 2, [3]]}, "malformed"),
    ({"iscrowd": "yes"}, "malformed"),
    ({"iscrowd": 2}, "malformed"),
    ({"bbox": [10**400, 0, 1, 1]}, "malformed"),
    ({"area": 10**400}, "malformed"),
    ({"area": "large"}, "malformed"),
    ({"area": 1e300}, "malformed"),
  ],
)
def test_annotations_that_are_left_out_by_kind(tmp_path, changes, kind):
  root = write(tmp_path, content([image()], [annotation(33, **changes), annotation(2)]))
  example = coco_source(root).splits["train"][0].load()
  (note,) = example.notes
  assert note.kind == kind
  assert "json: annotation 33 of 1.jpg: " in str(note)
  assert len(str(note)) < 500
  assert len(example.objects) == 1


def test_where_an_object_is_left_out_pixels_are_void(tmp_path):
  rows = [annotation(1, segmentation=[], bbox=[0.5, 1, 10, 9]), annotation(2)]
  example = coco_source(write(tmp_path, content([image()], rows))).splits["train"][0].load()
  expected = np.zeros(SIZE, np.uint8)
  expected[1:10, 0:11] = IGNORE
  expected[5:15, 5:15] = 1
  np.testing.assert_array_equal(decode_raw(example.label), expected)
  np.testing.assert_array_equal(example.counts[[0, 1, IGNORE]], [600 - 100 - 69, 100, 69])


def test_all_crowds_are_told_and_may_be_objects(tmp_path):
  """CVAT writes so whatever is drawn with its brush."""
  code = {"size": list(SIZE), "counts": [105, *([10, 10] * 9), 10, 305]}
  rows = [annotation(i, segmentation=code, iscrowd=1) for i in (1, 2)]
  root = write(tmp_path, content([image()], rows))
  source = coco_source(root)
  (note,) = source.notes
  assert "json: all 2 annotations are crowds (iscrowd), which are neither found nor" in str(note)
  assert "set data.options.crowds_are_objects=True" in str(note)
  assert source.splits["train"][0].load().objects.crowd.tolist() == [True, True]
  other = coco_source(root, crowds_are_objects=True)
  assert not other.notes
  assert other.splits["train"][0].load().objects.crowd.tolist() == [False, False]
  assert other.fingerprint() != source.fingerprint()
  write(tmp_path, content([image()], [*rows, annotation(3)]))
  assert not coco_source(root).notes


def test_crowds_are_of_their_class_and_overlaps_of_the_last(tmp_path):
  categories = [{"id": i, "name": name} for i, name in enumerate("abc", 1)]
  right = [10, 0, 30, 0, 30, 20, 10, 20]
  rows = [annotation(1, category=3, segmentation=[right], iscrowd=1, bbox=None), annotation(2)]
  root = write(tmp_path, content([image()], rows, categories))
  example = coco_source(root).splits["train"][0].load()
  expected = np.zeros(SIZE, np.uint8)
  expected[:, 10:] = 3
  expected[5:15, 5:15] = 1
  np.testing.assert_array_equal(decode_raw(example.label), expected)
  assert example.objects.crowd.tolist() == [True, False]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"height": -20}, r"image 1 is 30 wide and -20 high\. Give whole numbers, or leave both out"),
    ({"width": 30.5}, "image 1 is 30.5 wide and 20 high"),
    ({"width": [30]}, r"image 1 is \[30\] wide"),
    ({"width": "wide"}, "image 1 is wide wide"),
    ({"id": [1]}, "has no id or no file_name"),
    ({"id": True}, "has no id or no file_name"),
    ({"id": "\ud800"}, "has no id or no file_name"),
  ],
)
def test_images_that_are_told(tmp_path, change, message):
  problems = coco_source(write(tmp_path, content([image(**change)], [annotation()]))).problems
  assert re.search(message, str(problems[0]))


@pytest.mark.parametrize(
  ("categories", "message"),
  [
    (
      [{"id": 10**30, "name": "a"}],
      "a category has the id 1000.*; number the categories from 1 on",
    ),
    ([{"id": -1, "name": "a"}], "a category has the id -1; number"),
    ([{"id": [1], "name": "a"}], r"categories \[\[1\]\] must have whole numbers as ids"),
    ([{"id": 1, "name": 7}], r"categories \[7\] must have texts as names"),
    ([{"id": 1, "name": "a"}, {"id": "1", "name": "b"}], "two categories have the id 1"),
    ([{"id": True, "name": "a"}], "must have whole numbers as ids"),
  ],
)
def test_categories_that_are_refused(tmp_path, categories, message):
  with pytest.raises(InputError, match=rf"json: .*{message}"):
    coco_source(write(tmp_path, content([image()], [annotation()], categories)))


@pytest.mark.parametrize(
  "text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", '{"a":' * 50_000, "\ufeff{", "nul"]
)
def test_json_without_end(tmp_path, text):
  with pytest.raises(InputError, match=r"_annotations.coco.json: is not valid JSON \("):
    coco_source(write(tmp_path, text))


def test_three_megabytes_of_run_lengths_take_little(tmp_path):
  code = {"size": [20, 30], "counts": "o" * 3_000_000}
  root = write(tmp_path, content([image()], [annotation(1, segmentation=code)]))
  (item,) = coco_source(root).splits["train"]
  tracemalloc.start()
  assert len(item.load().notes) == 1
  assert tracemalloc.get_traced_memory()[1] < 256 << 20
  tracemalloc.stop()


@pytest.mark.parametrize(
  "segmentation",
  [
    [[-290, 5, 290, 6] * 2000],
    [[-290, 5, 290, 6, 0, 0]] * 2000,
    [{"size": [20, 30], "counts": [600]}] * 3000 + [{"counts": 5}],
  ],
  ids=["one outline", "outlines", "run lengths"],
)
def test_outlines_without_end_take_little(tmp_path, segmentation):
  """Drawn, the first would take some hundred megabytes, and a file of three any time."""
  rows = [annotation(1, segmentation=segmentation)]
  (item,) = coco_source(write(tmp_path, content([image()], rows))).splits["train"]
  tracemalloc.start()
  assert [note.kind for note in item.load().notes] == ["malformed"]
  assert tracemalloc.get_traced_memory()[1] < 1 << 20
  tracemalloc.stop()


coordinates = st.lists(
  st.tuples(st.floats(-5, 35, width=32), st.floats(-5, 25, width=32)), min_size=3, max_size=9
)


@settings(max_examples=60, deadline=None)
@given(polygons=st.lists(coordinates, min_size=1, max_size=3))
def test_outlines_are_drawn_as_coco_does(tmp_path_factory, polygons):
  """By the reference, in every form in which they may be written."""
  flat = [[n for point in polygon for n in point] for polygon in polygons]
  masks = coco_masks()
  expected = masks.decode(masks.merge(masks.frPyObjects(flat, *SIZE))).astype(bool)
  code = encode_rle(expected)
  text = {"size": list(SIZE), "counts": code["counts"].decode()}
  # Column by column, beginning with zeros.
  flips = np.flatnonzero(np.diff(np.concatenate([[False], expected.T.ravel()])))
  runs = np.diff([0, *flips.tolist(), expected.size]).tolist()
  forms = [
    flat,
    [[list(p) for p in q] for q in polygons],
    text,
    {"size": list(SIZE), "counts": runs},
  ]
  rows = [annotation(i, segmentation=form, bbox=None) for i, form in enumerate(forms)]
  root = write(tmp_path_factory.mktemp("outline"), content([image()], rows))
  example = coco_source(root).splits["train"][0].load()
  if not expected.any():
    assert [note.kind for note in example.notes] == ["empty"] * 4
    return
  assert len(example.objects) == 4
  for i in range(4):
    np.testing.assert_array_equal(example.objects.mask(i), expected)
  np.testing.assert_array_equal(decode_raw(example.label), expected)


def test_damaged_json_is_read_or_refused(tmp_path):
  """Damaged as bytes, and value by value."""
  packed = {"size": list(SIZE), "counts": encode_rle(square())["counts"].decode()}
  rows = [annotation(), annotation(2, segmentation=packed), annotation(3, iscrowd=1)]
  whole = content([image()], rows, GROUPED)
  root = write(tmp_path, whole)
  text = (root / TRAIN).read_bytes()
  odd = [None, True, [], {}, "", "x", "1", -1, 1e300, 10**30, 0.5, [[]], [1], {"a": 1}, "\ud800"]
  rng = np.random.default_rng(0)
  outcomes = [0, 0]
  for i in range(ROUNDS):
    if i % 2:
      (root / TRAIN).write_bytes(damaged(text, rng))
    else:
      changed = json.loads(text)
      for _ in range(rng.integers(1, 4)):
        row, key = place_in(changed, rng)
        row[key] = copy.deepcopy(odd[rng.integers(len(odd))])
      (root / TRAIN).write_text(json.dumps(changed))
    try:
      outcomes[0] += check_folder(root).ok
    except InputError:
      outcomes[1] += 1
  assert min(outcomes) > 0


def place_in(value, rng):
  """Somewhere in nested lists and dictionaries: a container and the key of one of its items."""
  while True:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[rng.integers(len(keys))]
    inner = value[key]
    if not isinstance(inner, list | dict) or not inner or rng.random() < 0.2:
      return value, key
    value = inner
