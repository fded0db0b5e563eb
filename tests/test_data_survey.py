"""What many files mean together, told by the check and at every start of a training."""

import json
import re

import nibabel
import numpy as np
import pytest
from helpers.files import add_classes
from helpers.mangled import encode, exif, indexed, write
from ml_collections import ConfigDict

from jseg import config as configs
from jseg import data, tasks
from jseg.data.files.nifti import read_mask_file
from jseg.data.sources import make_source
from jseg.types import InputError

SIZE = (4, 6)
HALVES = np.array([[0, 0, 0, 1, 1, 1]] * 4, np.uint8)


def add(root, name, mask, image=None):
  """A pair; mask and image are arrays, or files' contents."""
  image = np.zeros((*SIZE, 3), np.uint8) if image is None else image
  for kind, content in (("images", image), ("masks", mask)):
    content = content if isinstance(content, bytes) else encode(np.asarray(content, np.uint8))
    split, _, stem = name.partition("/")
    write(root / split / kind / f"{stem}.png", content)


def findings(root):
  """(kinds of errors, warnings as text), the same from the check and before training."""
  report = data.check_folder(root)
  return [problem.kind for problem in report.problems], [str(note) for note in report.notes]


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "set"
  add_classes(root)
  add(root, "train/good", HALVES)
  add(root, "val/good", HALVES)
  return root


def train_on(root, tmp_path, network="unet", source="folder"):
  dataset = data.load(source, root=root, data_dir=tmp_path / "data")
  config: ConfigDict = configs.default(network)
  model = configs.make_model(config, len(dataset.classes.names))
  tasks.create(config, model, dataset.classes).check_data(dataset)
  return dataset


def test_masks_of_void_alone_teach_nothing(root, tmp_path):
  add(root, "train/good", np.full(SIZE, 255))
  add_classes(root, classes=["a", "b", "c"])
  errors, _ = findings(root)
  assert errors == ["void"]
  with pytest.raises(InputError, match=r"split train: no pixel is labeled: every mask is void"):
    train_on(root, tmp_path)


def test_validation_without_a_label_measures_nothing(root, tmp_path):
  add_classes(root, classes=["a", "b", "c"])
  add(root, "val/good", np.full(SIZE, 255))
  assert findings(root)[0] == ["void"]
  with pytest.raises(InputError, match=r"split val: no pixel is labeled"):
    train_on(root, tmp_path)


@pytest.mark.parametrize("mask", [np.zeros(SIZE), HALVES * 255 + (1 - HALVES)])
def test_one_class_teaches_nothing(mask, root, tmp_path):
  add_classes(root, classes=["a", "b", "c"])
  add(root, "train/good", mask)
  assert findings(root)[0] == ["one class"]
  with pytest.raises(InputError, match=r"all labeled pixels are of one class, '[ab]'"):
    train_on(root, tmp_path)


def test_a_test_split_without_labels_is_told(root):
  add_classes(root, classes=["a", "b"], mask_values=[0, 1])
  add_classes(root, classes=["a", "b", "c"])
  add(root, "test/x", np.full(SIZE, 255))
  errors, notes = findings(root)
  assert errors == []
  assert any("split test: no pixel is labeled" in note for note in notes)


@pytest.mark.parametrize(("void", "what"), [(False, "no object"), (True, "and 1 crowd")])
def test_no_object(void, what, root, tmp_path):
  add_classes(root, task="instance", ignore_label=255)
  add(root, "train/good", np.full(SIZE, 255 * void))
  assert findings(root)[0] == ["no objects"]
  with pytest.raises(InputError, match=f"split train: holds no object.*{what}|holds {what}"):
    train_on(root, tmp_path, "mask_rcnn")


BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 0, 3, 2]}
CROWD = {"segmentation": {"size": list(SIZE), "counts": [4, 2, 2, 2, 14]}, "iscrowd": 1}


@pytest.mark.parametrize(
  ("changes", "problem", "kinds", "left_out"),
  [
    (CROWD, "holds no object, and 2 crowd(s), which aren't learned", ["crowds"], None),
    ({"segmentation": []}, "holds no object", ["no mask"] * 2, "left out 2 object(s) (2 no mask)"),
  ],
)
def test_annotations_of_which_none_is_an_object(changes, problem, kinds, left_out, tmp_path, capfd):
  root = tmp_path / "set"
  write(root / "train" / "1.png", encode(np.zeros((*SIZE, 3), np.uint8)))
  content = {
    "images": [{"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}],
    "annotations": [{**BOX, **changes}, {**BOX, **changes, "id": 2}],
    "categories": [{"id": 1, "name": "cell"}],
  }
  write(root / "train" / "_annotations.coco.json", json.dumps(content).encode())
  report = data.check_folder(root)
  assert [found.problem for found in report.problems] == [problem]
  assert [note.kind for note in report.notes] == kinds
  with pytest.raises(InputError, match=rf"split train: {re.escape(problem)}\. Check the masks, or"):
    train_on(root, tmp_path, "mask_rcnn", "coco")
  told = capfd.readouterr().err
  assert (left_out or "all 2 annotations are crowds (iscrowd)") in told


def test_no_object_to_validate_on_is_told(root, tmp_path):
  add_classes(root, task="instance")
  add(root, "val/good", np.zeros(SIZE))
  errors, notes = findings(root)
  assert errors == []
  assert notes == [str(note) for note in train_on(root, tmp_path, "mask_rcnn").notes]
  assert "split val: holds no object" in notes[0]


def test_masks_that_mix_1_and_255_are_told_each_time(root, tmp_path, capfd):
  for name in ("x", "y"):
    add(root, f"train/{name}", HALVES * 255)
  errors, notes = findings(root)
  assert errors == []
  (note,) = notes
  assert note.startswith("2 file(s) (train/x, train/y): hold only 0 and 255, but 2 file(s) (train/")
  assert "class 'b' is missed" in note
  for _ in range(2):  # prepared, then found prepared
    capfd.readouterr()
    assert [str(note) for note in train_on(root, tmp_path).notes] == notes
    assert "hold only 0 and 255" in capfd.readouterr().err


def test_void_around_objects_is_no_mixture(root):
  add(root, "train/x", [[0, 0, 255, 1, 1, 1]] * 4)
  assert findings(root) == ([], [])


@pytest.mark.parametrize(
  ("size", "orientation", "told"),
  [((4, 6), 3, True), ((4, 6), 2, True), ((5, 5), 6, True), ((4, 6), 6, False), ((4, 6), 1, False)],
)
def test_exif_that_turns_the_image_alone(size, orientation, told, root):
  """Told where masks fit either way; where sizes tell, they do."""
  upright = size[::-1] if orientation >= 5 else size
  image = encode(np.zeros((*size, 3), np.uint8), exif=exif(orientation))
  add(root, "train/x", np.zeros(upright), image)
  errors, notes = findings(root)
  assert errors == []
  assert [note.startswith("1 file(s) (train/x): EXIF turns") for note in notes] == [True] * told
  add(root, "train/x", encode(np.zeros(size, np.uint8), exif=exif(orientation)), image)
  assert findings(root) == ([], [])  # turned alike


def test_exif_that_turns_the_mask_alone_is_told(root):
  add(root, "train/x", encode(np.zeros(SIZE, np.uint8), exif=exif(3)))
  assert "EXIF turns or mirrors the mask and not its image" in findings(root)[1][0]


def test_palettes_that_differ_are_told(root):
  red, blue = [[0, 0, 0], [255, 0, 0]], [[0, 0, 0], [0, 0, 255]]
  add(root, "train/good", indexed(HALVES, red))
  add(root, "train/x", indexed(HALVES, blue))
  add(root, "val/good", indexed(HALVES, red))
  (note,) = findings(root)[1]
  assert note.startswith("1 file(s) (train/x): index 1 of these indexed masks is (0, 0, 255), but")
  assert '"palette"' in note
  # What doesn't occur doesn't matter.
  add(root, "train/x", indexed(HALVES, [*red, [9, 9, 9]]))
  assert findings(root) == ([], [])


def test_palettes_in_another_order_are_read_by_color_and_told(root):
  add_classes(root, palette=[[0, 0, 0], [255, 0, 0]])
  add(root, "train/good", indexed(1 - HALVES, [[255, 0, 0], [0, 0, 0]]))
  errors, (note,) = findings(root)
  assert errors == []
  assert "palette has the classes in another order than classes.json: read by its colors" in note
  assert data.check_folder(root).splits["train"].pixels[:2].tolist() == [12, 12]


def test_classes_that_never_occur_are_told(root):
  add_classes(root, classes=["a", "b", "c", "d"])
  assert findings(root)[1] == [
    "split train: 2 class(es) never occur: c, d. Add examples, or take them out of classes.json"
  ]


# Volumes.


def volumes(root, scan, mask):
  add_classes(root, classes=["a", "b", "c"])
  for kind, array in (("images", scan), ("masks", mask)):
    path = root / "train" / kind / "V0.NII.GZ"
    path.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
  return root


SCAN = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
LABELS = (np.arange(24) % 3).astype(np.uint8).reshape(2, 3, 4)


def test_suffixes_of_volumes_in_upper_case(tmp_path):
  report = data.check_folder(volumes(tmp_path, SCAN, LABELS))
  assert report.ok
  assert report.splits["train"].pixels[:3].tolist() == [8, 8, 8]


@pytest.mark.parametrize("slope", [2 / 255, 1.00002, 2 / 65535])
def test_labels_scaled_by_the_header_are_rounded_within_its_steps(slope, tmp_path):
  stored = np.rint(LABELS / slope).astype(np.int32)
  path = tmp_path / "m.nii"
  nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), path)
  content = bytearray(path.read_bytes())
  content[112:116] = np.float32(slope).tobytes()  # scl_slope
  path.write_bytes(bytes(content))
  found = read_mask_file(path)
  assert not (found.array % 1 == 0).all()
  root = volumes(tmp_path / "set", SCAN, LABELS)
  mask = root / "train" / "masks" / "V0.NII.GZ"
  mask.unlink()
  path.rename(mask.with_name("V0.nii"))
  item = make_source("volumes", root=root).splits["train"][0]
  np.testing.assert_array_equal(item.load().label, LABELS.transpose(2, 1, 0))


@pytest.mark.parametrize("value", [0.5, 1.02])
def test_labels_between_classes_are_refused(value, tmp_path):
  root = volumes(tmp_path, SCAN, np.where(LABELS == 1, value, LABELS).astype(np.float32))
  (problem,) = data.check_folder(root).problems
  assert problem.problem == f"value {value:g} is no whole number (8 voxels are not)"


@pytest.mark.parametrize(
  ("dtype", "what"),
  [
    ([("R", "u1"), ("G", "u1"), ("B", "u1")], r"its voxels are colors (RGB, 24 bits)"),
    ([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")], r"colors (RGBA, 32 bits)"),
    (np.complex64, r"its voxels are of type complex64, which is no real number"),
  ],
)
def test_voxels_that_are_no_number_say_what_they_are(dtype, what, tmp_path):
  root = volumes(tmp_path, np.zeros(SCAN.shape, dtype), LABELS)
  assert what in data.check_folder(root).problems[0].problem


# A network of the other kind.


def test_each_kind_of_network_names_the_other(root, tmp_path):
  with pytest.raises(InputError, match=r'holds images: give "folder" as data\.name'):
    data.load("volumes", root=root, data_dir=tmp_path)
  for network, file, message in (
    ("unet", "scan.NII.gz", r"is a volume \(NIfTI\), but unet takes images; use .*unet3d"),
    ("mask_rcnn", "scan.nii", r"is a volume \(NIfTI\), but mask_rcnn takes images"),
    ("unet3d", "photo.jpg", r"is no volume, but unet3d takes volumes as NIfTI \(.nii, .nii.gz\)"),
  ):
    config = configs.default(network)
    classes = data.ClassInfo(("a", "b"))
    task = tasks.create(config, configs.make_model(config, 2), classes)
    with pytest.raises(InputError, match=message):
      task.read(tmp_path / file)


def test_a_report_as_json(root):
  add(root, "train/x", HALVES * 255)
  add(root, "train/y", np.full(SIZE, 7))
  content = json.loads(json.dumps(data.check_folder(root).to_dict()))
  assert (content["ok"], content["errors"], content["warnings"]) == (False, 1, 1)
  assert content["splits"]["train"]["pixels"] == {"a": 24, "b": 12}
  assert content["splits"]["train"]["void_pixels"] == 12
  assert content["splits"]["train"]["sizes"] == [{"size": [4, 6], "images": 3}]
  problem, warning = content["problems"]
  assert (warning["severity"], warning["kind"]) == ("warning", "mixed")
  assert (problem["severity"], problem["kind"]) == ("error", "values")
  assert problem["file"].endswith("train/masks/y.png")
