"""COCO's JSON: what it means, and what is told of files and annotations that are wrong."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from helpers.files import printed, save
from helpers.tiny import tiny_config

from jseg import data
from jseg.data.files.instances import coco_masks, encode_rle
from jseg.data.sources.coco import CocoItem, coco_source
from jseg.data.sources.coco_masks import read_runs
from jseg.loop import train
from jseg.types import InputError

SIZE = (20, 30)
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]


def annotation(number, image=1, category=7, **changes):
  row = {"id": number, "image_id": image, "category_id": category, "segmentation": SQUARE}
  return row | {"bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0} | changes


def content(*annotations):
  return {
    "images": [
      {"id": i, "file_name": f"{i:03d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)
    ],
    "annotations": list(annotations),
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}],
  }


def write(root, train, val=None):
  for split, part in {"train": train, "val": val or content(annotation(1))}.items():
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(part if isinstance(part, str) else json.dumps(part))
    for i in (1, 2):
      save(root / f"{split}2017" / f"{i:03d}.jpg", np.zeros((*SIZE, 3)))
  return root


def objects_of(root, split="train", index=0):
  return coco_source(root).splits[split][index].load().objects


def masks_of(objects):
  return [objects.mask(i) for i in range(len(objects))]


def rectangle(y0, x0, y1, x1):
  mask = np.zeros(SIZE, bool)
  mask[y0:y1, x0:x1] = True
  return mask


def test_polygons_and_both_kinds_of_run_lengths_are_the_same_mask(tmp_path):
  mask = rectangle(5, 5, 15, 15)
  packed = encode_rle(mask)
  counts = [5 * 20 + 5, *([10, 10] * 9), 10, 15 * 20 + 5]
  assert sum(counts) == 600
  plain = {"size": list(SIZE), "counts": counts}
  text = {"size": list(SIZE), "counts": packed["counts"].decode()}
  write(tmp_path, content(annotation(1), *(annotation(2, segmentation=s) for s in (plain, text))))
  objects = objects_of(tmp_path)
  for found in masks_of(objects):
    np.testing.assert_array_equal(found, mask)
  assert objects.boxes.tolist() == [[5, 5, 15, 15]] * 3
  assert objects.areas.tolist() == [100] * 3


def test_run_lengths_of_random_masks_are_read_as_pycocotools_does():
  rng = np.random.default_rng(0)
  for share in (0.02, 0.5, 0.98):
    code = encode_rle(rng.random((70, 90)) < share)
    np.testing.assert_array_equal(
      np.repeat(np.arange(len(read_runs(code["counts"]))) % 2, read_runs(code["counts"])),
      coco_masks().decode(code).T.ravel(),
    )


def test_sparse_categories_crowds_and_images_without_objects(tmp_path):
  crowd = {"size": list(SIZE), "counts": [0, 200, 400]}
  rows = (
    annotation(4, category=90),
    annotation(5, segmentation=crowd, iscrowd=1, bbox=[0, 0, 10, 20]),
  )
  write(tmp_path, content(*rows))
  source = coco_source(tmp_path)
  assert source.classes.names == ("background", "train", "toothbrush")
  assert source.classes.values == (0, 7, 90)
  objects = objects_of(tmp_path)
  assert objects.classes.tolist() == [2, 1]
  assert objects.crowd.tolist() == [False, True]
  np.testing.assert_array_equal(objects.mask(1), rectangle(0, 0, 20, 10))
  assert len(objects_of(tmp_path, index=1)) == 0


def test_a_category_of_number_0_leaves_another_to_the_background(tmp_path):
  odd = content(annotation(1, category=0))
  odd["categories"] = [{"id": 0, "name": "background"}, {"id": 1, "name": "b"}]
  source = coco_source(write(tmp_path, odd, odd))
  assert source.classes.names == ("no object", "background", "b")
  assert source.classes.values == (2, 0, 1)


def test_it_is_prepared_and_read_back(tmp_path):
  write(tmp_path, content(annotation(4, category=90), annotation(5)))
  dataset = data.load("coco", root=tmp_path, data_dir=tmp_path / "data")
  assert dataset.splits == {"train": 2, "val": 2}
  assert dataset.has_objects
  assert dataset.has_labels
  example = dataset.source("train")[0]
  np.testing.assert_array_equal(example["label"], rectangle(5, 5, 15, 15))  # the last one's class
  assert example["name"] == "1"
  assert example["objects"].classes.tolist() == [2, 1]
  np.testing.assert_array_equal(example["objects"].mask(0), rectangle(5, 5, 15, 15))
  assert len(dataset.source("train")[1]["objects"]) == 0
  assert dataset.left_out("train", 1) == (1, 1)
  batch = next(
    data.train_iterator(
      dataset.source("train"), size=(20, 30), batch_size=2, seed=0, objects=(4, 8)
    )
  )
  assert sorted(batch["valid"].sum(1).tolist()) == [0, 2]
  before = dataset.fingerprint
  write(tmp_path, content(annotation(4, category=7)))
  assert coco_source(tmp_path).fingerprint() != before


@pytest.mark.parametrize(
  ("json_file", "image"),
  [
    ("train/_annotations.coco.json", "train/{}.jpg"),
    ("annotations/train.json", "images/train/{}.jpg"),
    ("train.json", "images/{}.jpg"),
  ],
)
def test_other_layouts(tmp_path, json_file, image):
  for i in (1, 2):
    save(tmp_path / image.format(f"{i:03d}"), np.zeros((*SIZE, 3)))
  (tmp_path / json_file).parent.mkdir(exist_ok=True)
  (tmp_path / json_file).write_text(json.dumps(content(annotation(1))))
  source = coco_source(tmp_path)
  assert not source.problems
  assert list(source.splits) == ["train"]
  assert len(source.splits["train"][0].load().objects) == 1


def test_a_single_file_is_split_at_random(tmp_path):
  whole = content(annotation(1))
  whole["images"] = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, 11)]
  for i in range(1, 11):
    save(tmp_path / "images" / f"{i}.jpg", np.zeros((*SIZE, 3)))
  (tmp_path / "labels.json").write_text(json.dumps(whole))
  for root in (tmp_path, tmp_path / "labels.json"):
    splits = coco_source(root).splits
    assert {split: len(items) for split, items in splits.items()} == {"train": 8, "val": 2}
    assert len({item.name for items in splits.values() for item in items}) == 10
  named = coco_source(tmp_path, annotations={"test": "labels.json"}, images={"test": "images"})
  assert list(named.splits) == ["test"]
  assert not named.problems


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"segmentation": [[1, 1, 9, 9]]}, "has a polygon of 2 points, which has no inside"),
    ({"segmentation": []}, "has a box but no mask"),
    ({"segmentation": [[40, 40, 50, 40, 50, 50]]}, "covers no pixel of the image"),
    ({"segmentation": [[5, 5, 5, 5, 5, 5]]}, "covers no pixel of the image"),
    ({"segmentation": [[0, 0, 1e12, 0, 5, 5]]}, "reaches far outside of the image"),
    ({"segmentation": [[0, 0, float("nan"), 0, 5, 5]]}, "where finite numbers belong"),
    (
      {"segmentation": {"size": [20, 30], "counts": [10, 5]}},
      "runs of 15 pixels for an image of 600",
    ),
    ({"segmentation": {"size": [30, 20], "counts": [600]}}, "isn't a run-length code of 30 x 20"),
    ({"segmentation": {"size": [20, 30], "counts": "PPP"}}, "run-length code that can't be read"),
    ({"segmentation": {"size": [20, 30], "counts": "0"}}, "runs of 0 pixels"),
    ({"bbox": [5, 5, 0, 10]}, "covers nothing of an image 30 wide x 20 high"),
    ({"bbox": [100, 5, 10, 10]}, "covers nothing of an image"),
    ({"bbox": [5, 5, 10]}, r"isn't \[x, y, width, height\]"),
    ({"bbox": [5, 5, float("inf"), 10]}, "where finite numbers belong"),
    ({"area": float("nan")}, "where finite numbers belong"),
  ],
)
def test_annotations_that_are_wrong_are_told_and_left_out(tmp_path, capsys, changes, message):
  write(tmp_path, content(annotation(33, **changes), annotation(34)))
  example = coco_source(tmp_path).splits["train"][0].load()
  assert len(example.objects) == 1
  (note,) = example.notes
  assert re.search(message, str(note))
  assert "instances_train2017.json: annotation 33 of 001.jpg: " in str(note)
  dataset = data.load("coco", root=tmp_path, data_dir=tmp_path / "data")
  assert "train: left out 1 object(s)" in capsys.readouterr().err
  assert len(dataset.source("train")[0]["objects"]) == 1
  report = data.check_folder(tmp_path)
  assert report.ok
  # The console breaks lines where the path makes them long.
  assert re.search(message, " ".join(printed(report).split()))


def test_boxes_that_reach_out_of_the_image_are_clipped(tmp_path):
  outside = [[-10, -10, 10, -10, 10, 10, -10, 10]]
  write(tmp_path, content(annotation(1, segmentation=outside, bbox=[-10, -10, 20, 20])))
  objects = objects_of(tmp_path)
  assert objects.boxes.tolist() == [[0, 0, 10, 10]]
  np.testing.assert_array_equal(objects.mask(0), rectangle(0, 0, 10, 10))


def test_one_good_polygon_is_enough(tmp_path):
  write(tmp_path, content(annotation(1, segmentation=[*SQUARE, [0, 0, 1, 1]])))
  np.testing.assert_array_equal(objects_of(tmp_path).mask(0), rectangle(5, 5, 15, 15))


def test_boxes_and_areas_may_be_left_out(tmp_path):
  row = annotation(1)
  del row["bbox"], row["area"], row["iscrowd"]
  write(tmp_path, content(row))
  objects = objects_of(tmp_path)
  assert objects.boxes.tolist() == [[5, 5, 15, 15]]
  assert objects.areas.tolist() == [100]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda c: c["annotations"].append(annotation(33, category=8)),
      "annotation 33 is of category 8, ",
    ),
    (
      lambda c: c["annotations"].append(annotation(33, category=[8])),
      r"of category \[8\], which isn't",
    ),
    (
      lambda c: c["annotations"].append(annotation(33, image=5)),
      "annotation 33 is of image 5, which",
    ),
    (lambda c: c["images"].append({"id": 1, "file_name": "x.jpg"}), "image 1 is listed twice"),
    (lambda c: c["images"].append({"id": 9}), "has no id or no file_name"),
    (
      lambda c: c["images"].append({"id": 9, "file_name": "9.jpg"}),
      "9.jpg: is image 9 of .* missing",
    ),
    (lambda c: c["images"].clear(), "lists no image|isn't listed"),
  ],
)
def test_files_that_are_wrong_are_refused(tmp_path, change, message):
  changed = content(annotation(1))
  change(changed)
  write(tmp_path, changed)
  with pytest.raises(InputError, match=message):
    data.load("coco", root=tmp_path, data_dir=tmp_path / "data")
  report = data.check_folder(tmp_path)
  assert not report.ok
  assert any(re.search(message, str(problem)) for problem in report.problems)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      json.dumps(content(annotation(1)))[:-40],
      r"2017\.json: is not valid JSON .* Was it cut short",
    ),
    ("", "is not valid JSON"),
    ("[]", 'no list of objects under "images"'),
    (json.dumps({**content(), "categories": []}), r"categories \[\] must have whole numbers"),
    (json.dumps({**content(), "categories": [{"id": 1}]}), "a category has no 'name'"),
    (
      json.dumps({**content(), "categories": [{"id": i, "name": "a"} for i in (1, 2)]}),
      "categories: .*'a' is listed twice",
    ),
    (json.dumps({**content(), "categories": [{"id": 1, "name": "a"}]}), "categories differ from"),
  ],
)
def test_json_that_is_none_of_cocos_is_refused(tmp_path, text, message):
  write(tmp_path, text, text if "twice" in message else None)
  with pytest.raises(InputError, match=message):
    coco_source(tmp_path)


def test_images_of_another_size_and_damaged_ones(tmp_path):
  write(tmp_path, content(annotation(1)))
  save(tmp_path / "train2017" / "001.jpg", np.zeros((30, 20, 3)))
  with pytest.raises(InputError, match=r"001\.jpg: 20 wide x 30 high, but .*json says 30 x 20"):
    data.load("coco", root=tmp_path, data_dir=tmp_path / "data")
  (tmp_path / "train2017" / "001.jpg").write_bytes(b"nonsense")
  with pytest.raises(InputError, match=r"001\.jpg: damaged"):
    data.load("coco", root=tmp_path, data_dir=tmp_path / "data")
  assert [problem.kind for problem in data.check_folder(tmp_path).problems] == ["unreadable"]


def test_folders_without_any_or_with_too_many(tmp_path):
  with pytest.raises(InputError, match=r"holds no COCO JSON\. Expected ROOT/annotations"):
    coco_source(tmp_path)
  for name in ("instances_train2014", "instances_train2017"):
    (tmp_path / f"{name}.json").write_text(json.dumps(content()))
  with pytest.raises(
    InputError, match="several JSON files for the split train: instances_train2014"
  ):
    coco_source(tmp_path)


def test_300_objects_where_100_are_kept(tmp_path):
  rows = [
    annotation(i, segmentation=[[0, 0, 1 + i % 25, 0, 1 + i % 25, 9, 0, 9]]) for i in range(300)
  ]
  for row in rows:
    del row["area"]
  write(tmp_path, content(*copy.deepcopy(rows)))
  dataset = data.load("coco", root=tmp_path, data_dir=tmp_path / "data")
  assert dataset.left_out("train", 100) == (1, 200)
  options = {"size": (20, 30), "batch_size": 2, "seed": 0, "objects": (100, 8)}
  batch = next(data.train_iterator(dataset.source("train"), **options))
  assert sorted(batch["valid"].sum(1).tolist()) == [0, 100]
  widths = batch["boxes"][batch["valid"]][:, 3]
  assert widths.min() >= 17  # the widest hundred of 12 each


@dataclasses.dataclass(frozen=True)
class WithoutLabel:
  item: CocoItem

  @property
  def name(self):
    return self.item.name

  def load(self):
    return dataclasses.replace(self.item.load(), label=None)


def test_a_network_of_classes_is_refused_where_only_objects_are_known(tmp_path):
  source = coco_source(write(tmp_path, content(annotation(1))))
  splits = {k: [WithoutLabel(item) for item in items] for k, items in source.splits.items()}
  source = dataclasses.replace(source, splits=splits, has_labels=False)
  config = tiny_config(tmp_path / "data")
  with pytest.raises(InputError, match=r"learns the class of every pixel, but \S+ tells objects"):
    train(config, tmp_path / "run", dataset=data.load(source, data_dir=tmp_path / "data"))


def test_more_classes_than_a_label_has_room_for(tmp_path):
  many = content(annotation(1))
  many["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 256)]
  source = coco_source(write(tmp_path, many, many))
  assert not source.has_labels
  assert source.splits["train"][0].load().label is None


def test_the_check_counts_objects(tmp_path):
  write(tmp_path, content(annotation(1), annotation(2, category=90), annotation(3)))
  report = data.check_folder(tmp_path)
  assert report.ok
  assert report.splits["train"].objects.tolist() == [0, 2, 1]
  text = printed(report)
  assert "2 (1)" in text
  assert data.contact_sheet(tmp_path, tmp_path / "sheet.png")
