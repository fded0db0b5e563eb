"""YOLO's outlines."""

import re

import numpy as np
import pytest
from helpers.files import save
from helpers.fuzz import ROUNDS, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg import data
from jseg.data.files.images import decode_raw
from jseg.data.files.instances import coco_masks
from jseg.data.sources import recognize
from jseg.data.sources.yolo import yolo_source
from jseg.types import IGNORE, InputError

SIZE = (20, 32)  # whose sixteenths and tenths are exact enough
SQUARE = "0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"
YAML = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cell, 'nucleus']\n"


def write(
  root, text=SQUARE, yaml=YAML, images=("images/train/1.jpg", "images/val/2.jpg"), labels=None
):
  root.mkdir(parents=True, exist_ok=True)
  (root / "data.yaml").write_text(yaml, "utf-8")
  for name in images:
    save(root / name, np.zeros((*SIZE, 3)))
  names = [name.replace("images", "labels") for name in images] if labels is None else labels
  for name in names:
    path = (root / name).with_suffix(".txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return root


def load(root):
  source = yolo_source(root)
  assert [str(problem) for problem in source.problems] == []
  return source.splits["train"][0].load()


def square():
  mask = np.zeros(SIZE, bool)
  mask[5:15, 8:16] = True
  return mask


def test_outlines_become_objects_and_labels(tmp_path):
  root = write(tmp_path, SQUARE + "\n\n1 0 0 0.25 0 0.25 0.25 0 0.25\n")
  source = yolo_source(root)
  assert source.classes.names == ("background", "cell", "nucleus")
  assert source.classes.values == (2, 0, 1)
  assert {split: len(items) for split, items in source.splits.items()} == {"train": 1, "val": 1}
  example = load(root)
  np.testing.assert_array_equal(example.objects.mask(0), square())
  assert example.objects.classes.tolist() == [1, 2]
  expected = square().astype(np.uint8)
  expected[:5, :8] = 2
  np.testing.assert_array_equal(decode_raw(example.label), expected)


@pytest.mark.parametrize(
  ("yaml", "image"),
  [
    # As Roboflow writes it, whose folders aren't one level up.
    ("train: ../train/images\nval: ../valid/images\nnames:\n- cell\n", "train/images/1.jpg"),
    ("path: ../datasets/cells\ntrain: images/train\nnames: {0: cell}\n", "images/train/1.jpg"),
    ("path: /somewhere/else\ntrain: images/train\nnames: {0: cell}\n", "images/train/1.jpg"),
    ("path: sub\ntrain: images\nnames: {0: cell}\n", "sub/images/1.jpg"),
    ("train: [images/a, images/b]\nnames: {0: cell}\n", "images/b/1.jpg"),
    ("train: images\nnames: {0: cell}\n", "images/deep/er/1.JPG"),
    ("train: pictures\nnames: {0: cell}\n", "pictures/1.jpg"),
    ("train: images\\train\nnames: {0: cell}\n", "images/train/1.jpg"),
    ("train: /images/train\nnames: {0: cell}\n", "images/train/1.jpg"),
  ],
)
def test_where_the_images_are(tmp_path, yaml, image):
  if "images/b" in yaml:
    save(tmp_path / "images" / "a" / "0.jpg", np.zeros((*SIZE, 3)))
  if "valid" in yaml:
    save(tmp_path / "valid" / "images" / "2.jpg")
  source = yolo_source(write(tmp_path, yaml=yaml, images=[image]))
  assert [str(problem) for problem in source.problems] == []
  assert len(source.splits["train"][-1].load().objects) == 1
  assert ("val" in source.splits) == ("valid" in yaml)


def test_lists_of_images(tmp_path):
  """As CVAT writes them."""
  root = write(tmp_path, yaml="path: ./\ntrain: train.txt\nnames:\n  0: cell\n")
  (root / "train.txt").write_text("images/train/1.jpg\n./images/val/2.jpg\n\n")
  source = yolo_source(root)
  assert [item.name for item in source.splits["train"]] == ["images/train/1", "images/val/2"]
  (root / "train.txt").write_text("images/train/1.jpg\nimages/train/7.jpg\n../../x.jpg\n")
  problems = yolo_source(root).problems
  assert [re.search(r"lists (\S+), which isn't there", str(p))[1] for p in problems] == [
    "images/train/7.jpg",
    "../../x.jpg",
  ]


@pytest.mark.parametrize(
  ("line", "kind", "message"),
  [
    ("0 0.5 0.5 0.25 0.5", "no mask", "has a box but no outline; export segmentation"),
    ("0 0.1 0.1 0.2 0.2 0.3", "malformed", "has 5 numbers after its class, which make no points"),
    ("0 0.1 0.1", "polygon", "has a polygon of 1 points"),
    ("0", "polygon", "has a polygon of 0 points"),
    ("0 0.1 0.1 0.1 0.1 0.1 0.1", "empty", "covers no pixel"),
    ("0 10 10 20 10 20 20", "malformed", "has 10 where shares of the image from 0 to 1 belong"),
    ("0 nan 0.1 0.2 0.2 0.3 0.3", "malformed", "has nan where shares"),
    ("0 a b c d e f", "malformed", "has words where numbers belong"),
  ],
)
def test_lines_that_are_left_out(tmp_path, line, kind, message):
  example = load(write(tmp_path, f"{line}\n{SQUARE}"))
  (note,) = example.notes
  assert note.kind == kind
  assert re.search(rf"labels/train/1\.txt: line 1: {message}", str(note))
  np.testing.assert_array_equal(example.objects.mask(0), square())


def test_pixels_of_boxes_are_void(tmp_path):
  example = load(write(tmp_path, f"1 0.375 0.25 0.5 0.5\n{SQUARE}"))
  expected = np.zeros(SIZE, np.uint8)
  expected[:10, 4:20] = IGNORE
  expected[square()] = 1
  np.testing.assert_array_equal(decode_raw(example.label), expected)


@pytest.mark.parametrize("word", ["2", "-1", "0.5", "cell", "9" * 400, "inf"])
def test_lines_of_no_class_are_refused(tmp_path, word):
  root = write(tmp_path, f"{word} 0 0 1 0 1 1")
  message = (
    rf"1\.txt: line 1: is of class {re.escape(word[:60])}.*, which isn't among 0, 1\. Add it"
  )
  with pytest.raises(InputError, match=message):
    load(root)
  assert not data.check_folder(root).ok


def test_a_class_may_be_written_as_a_float(tmp_path):
  assert len(load(write(tmp_path, SQUARE.replace("0 ", "1.0 ", 1))).objects) == 1


def test_images_without_a_text_file_have_no_objects(tmp_path):
  root = write(tmp_path, labels=["labels/val/2.jpg"])
  assert len(load(root).objects) == 0
  (note,) = yolo_source(root).notes
  assert "split train: 1 image(s) without a text file: taken as without objects (1.jpg)" in str(
    note
  )


@pytest.mark.parametrize(
  ("yaml", "message"),
  [
    ("train: images/train\n", r'data\.yaml: "names" must list the classes'),
    ("train: images/train\nnames: 3\n", '"names" must list the classes'),
    ("train: images/train\nnames: []\n", '"names" must list the classes'),
    ("train: images/train\nnames: [[a]]\n", "must have texts as names"),
    ("train: images/train\nnames: [a, a]\n", "names: classes: 'a' is listed twice"),
    ("train: images/train\nnames: {a: b}\n", "must be whole numbers from 0 on"),
    ("train: images/train\nnames: {-1: b}\n", "must be whole numbers from 0 on"),
    ("train: images/train\nnc: 3\nnames: [a]\n", "nc is 3, but there are 1 names"),
    ("names: [a]\n", "has neither train nor val"),
    ("train: images/train\nkpt_shape: [17, 3]\nnames: [a]\n", "is of keypoints"),
    ("- a\n", "isn't YOLO's"),
    ("train: [\n", r"data\.yaml is not valid YAML"),
    ("train: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
    ("{" * 5000, "is not valid YAML"),
    ("a: &a {x: y}\nb: {<<: *a}\nnames: [a]\n", "is not valid YAML|neither train"),
    ("x" * (2 << 20), "is too long for a list of names and folders"),
    ("\ufefftrain: images/train\n", '"names" must list'),
  ],
)
def test_yaml_that_is_refused(tmp_path, yaml, message):
  with pytest.raises(InputError, match=message):
    yolo_source(write(tmp_path, yaml=yaml))


def test_a_billion_laughs(tmp_path):
  lines = [
    "a0: &a0 [x]",
    *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)),
  ]
  lines += ["train: images/train", "names: *a11"]
  with pytest.raises(InputError, match="must have texts as names") as error:
    yolo_source(write(tmp_path, yaml="\n".join(lines)))
  assert len(str(error.value)) < 1000
  merged = ["m0: &m0 {x: y}"]
  merged += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 12)]
  with pytest.raises(InputError):
    yolo_source(write(tmp_path, yaml="\n".join([*merged, "names: [a]"])))


@pytest.mark.parametrize(
  "place", ["../../etc", "/etc", "C:\\photos", "images/nowhere", "[1]", "a\0b"]
)
def test_folders_that_are_not_in_the_data_set(tmp_path, place):
  root = write(tmp_path / "a" / "b", yaml=f"train: '{place}'\nnames: [a]\n".replace("\0", "\\0"))
  problems = yolo_source(root).problems
  assert "isn't in the folder of this file. Write where it is from" in str(problems[0])


def test_it_is_recognized_and_prepared(tmp_path):
  root = write(tmp_path / "set")
  assert recognize(root).classes.names == ("background", "cell", "nucleus")
  assert recognize(root / "data.yaml").classes.names == ("background", "cell", "nucleus")
  dataset = data.load("yolo", root=root, data_dir=tmp_path / "data")
  example = dataset.source("val")[0]
  np.testing.assert_array_equal(example["label"], square())
  np.testing.assert_array_equal(example["objects"].mask(0), square())
  before = yolo_source(root).fingerprint()
  (root / "labels" / "val" / "2.txt").write_text("")
  assert yolo_source(root).fingerprint() != before
  (root / "data.yaml").rename(root / "x.yaml")
  assert len(yolo_source(root).splits) == 2
  (root / "y.yaml").write_text("")
  with pytest.raises(
    InputError, match=r"must have one data\.yaml.*YAML files there: x\.yaml, y\.ya"
  ):
    yolo_source(root)


shares = st.lists(st.tuples(st.integers(-8, 72), st.integers(-4, 44)), min_size=3, max_size=9).map(
  lambda points: [(x / 64, y / 40) for x, y in points]
)


@settings(max_examples=40, deadline=None)
@given(outline=shares)
def test_outlines_are_drawn_as_coco_does(tmp_path_factory, outline):
  flat = [float(n) for x, y in outline for n in (np.float64(x) * 32, np.float64(y) * 20)]
  expected = coco_masks().decode(coco_masks().frPyObjects([flat], *SIZE))[..., 0].astype(bool)
  words = " ".join(str(share) for point in outline for share in point)
  example = load(write(tmp_path_factory.mktemp("outline"), f"0 {words}"))
  np.testing.assert_array_equal(decode_raw(example.label), expected)
  assert len(example.objects) == expected.any()


def test_damaged_files_are_read_or_refused(tmp_path):
  root = write(tmp_path, f"{SQUARE}\n1 0.5 0.5 0.1 0.1\n")
  files = [root / "data.yaml", root / "labels" / "train" / "1.txt"]
  whole = [file.read_bytes() for file in files]
  rng = np.random.default_rng(0)
  outcomes = [0, 0]
  for i in range(ROUNDS):
    for j, file in enumerate(files):
      file.write_bytes(damaged(whole[j], rng) if i % 2 == j else whole[j])
    try:
      source = yolo_source(root)
      loaded = [item.load() for items in source.splits.values() for item in items]
      outcomes[0] += all(len(example.notes) < 9 for example in loaded)
    except InputError:
      outcomes[1] += 1
  assert sum(outcomes) == ROUNDS
