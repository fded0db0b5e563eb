"""Preparation and reading back: once, again after changes, and never by halves."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.files import add_classes, add_pair, save
from PIL import Image

from jseg import data
from jseg.data import Example, builder
from jseg.data.sources import SOURCES, make_source
from jseg.data.sources.shapes import ShapesItem, draw
from jseg.lock import locked
from jseg.types import IGNORE, InputError

SHAPES = {"size": 32, "train": 5, "val": 3, "test": 0}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
  return data.load("shapes", data_dir=tmp_path_factory.mktemp("prepared"), options=SHAPES)


def test_examples_come_back_as_they_were_drawn(shapes):
  assert shapes.splits == {"train": 5, "val": 3}
  source = shapes.source("val")
  assert len(source) == 3
  drawn = ShapesItem(32, 0, 1, 2, 0.95)
  image, label, _ = draw(np.random.default_rng((0, 1, 2)), 32, 0.95)
  for _ in range(2):  # decoded, then kept
    example = source[2]
    np.testing.assert_array_equal(example["image"], image)
    np.testing.assert_array_equal(example["label"], label)
    assert example["name"] == drawn.name == "000002"
  with pytest.raises(IndexError, match="example 3 of 3"):
    source[3]


def test_statistics(shapes):
  labels = [example["label"] for example in shapes.source("train")]
  counts = np.bincount(np.concatenate(labels).ravel(), minlength=256)
  assert shapes.pixel_counts("train").tolist() == counts[:5].tolist()
  assert shapes.max_size("train") == (32, 32)


def test_splits_can_be_joined(shapes):
  both = shapes.source("train+val")
  assert len(both) == 8
  np.testing.assert_array_equal(both[5]["image"], shapes.source("val")[0]["image"])
  total = shapes.pixel_counts("train") + shapes.pixel_counts("val")
  assert shapes.pixel_counts("train+val").tolist() == total.tolist()


def test_unknown_names_list_the_choices(shapes, tmp_path):
  with pytest.raises(InputError, match=r"shapes has no split 'test'; it has train, val"):
    shapes.source("test")
  with pytest.raises(InputError, match=r"data set 'shape' is unknown; did you mean shapes"):
    data.load("shape", data_dir=tmp_path)
  with pytest.raises(InputError, match=r"shapes has no option color; it has size, train"):
    data.load("shapes", options={"color": 1})
  with pytest.raises(InputError, match=r"folder is read from a folder; give it as --config.data"):
    data.load("folder")
  with pytest.raises(InputError, match=r"shapes is generated and reads no folder"):
    data.load("shapes", root=tmp_path)


def prepared(directory):
  return sorted(path.parent.name for path in directory.glob("jseg_*/*/*"))


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "set"
  add_classes(root)
  add_pair(root / "train", "one", [[0, 1, 255]] * 4 + [[1, 1, 1]])
  save(root / "train" / "images" / "one.jpg", np.zeros((5, 3, 3)))
  add_pair(root / "train", "two", np.ones((4, 6)))
  add_pair(root / "val", "three", [[0] * 6] * 3 + [[1] * 6])
  return root


def test_a_changed_folder_is_prepared_again(root, tmp_path, capfd):
  target = tmp_path / "prepared"
  first = data.load("folder", root=root, data_dir=target)
  assert "Preparing train" in capfd.readouterr().err
  assert first.max_size("train") == (5, 6)
  assert first.pixel_counts("train").tolist() == [4, 31]
  mask = root / "val" / "masks" / "three.png"
  os.utime(mask)
  assert data.load("folder", root=root, data_dir=target).fingerprint == first.fingerprint
  output = capfd.readouterr()
  assert output.err + output.out == ""  # nothing was prepared, and TFDS held its tongue
  Image.fromarray(np.ones((4, 6), np.uint8)).save(mask)
  second = data.load("folder", root=root, data_dir=target)
  assert second.source("val")[0]["label"].min() == 1
  assert first.source("val")[0]["label"].sum() == 6
  assert prepared(target) == sorted([first.fingerprint, second.fingerprint])


def test_a_failed_preparation_leaves_nothing_and_names_the_file(root, tmp_path):
  target = tmp_path / "prepared"
  bad = root / "train" / "images" / "two.jpg"
  good = bad.read_bytes()
  bad.write_bytes(good[: len(good) // 2])
  with pytest.raises(InputError, match=r"train/images/two\.jpg: damaged"):
    data.load("folder", root=root, data_dir=target)
  assert prepared(target) == []
  save(root / "val" / "masks" / "three.png", np.full((4, 6), 37))
  bad.write_bytes(good)
  with pytest.raises(InputError, match=r"three\.png: value 37 \(24 pixels\) of no class"):
    data.load("folder", root=root, data_dir=target)
  assert prepared(target) == []


def test_problems_of_the_layout_are_listed_first(root, tmp_path):
  for i in range(7):
    save(root / "train" / "images" / f"lone_{i}.png")
  with pytest.raises(InputError, match=r"lone_0\.png: has no mask") as error:
    data.load("folder", root=root, data_dir=tmp_path)
  assert str(error.value).endswith("... and 2 more")


def test_a_split_of_0_and_255_is_refused(root, tmp_path):
  save(root / "val" / "masks" / "three.png", np.zeros((4, 6)))
  for name in ("one", "two"):
    mask = np.zeros(data.read_image(root / "train" / "images" / f"{name}.jpg").shape[:2])
    mask[0] = 255
    save(root / "train" / "masks" / f"{name}.png", mask)
  with pytest.raises(InputError, match=r'split train: .*"mask_values": \[0, 255\]'):
    data.load("folder", root=root, data_dir=tmp_path / "prepared")
  add_classes(root, mask_values=[0, 255], ignore_label=None)
  dataset = data.load("folder", root=root, data_dir=tmp_path / "prepared")
  assert dataset.pixel_counts("train").tolist() == [39 - 9, 9]


def test_a_place_that_cannot_be_written(root, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match=r"cannot write prepared data .*another data_dir"):
    data.load("folder", root=root, data_dir=tmp_path / "file")


class TinyMasks(tfds.core.GeneratorBasedBuilder):
  """A TFDS set of trimaps, some of them palette images, as sets in the wild are."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "picture": tfds.features.Image(),
      "trimap": tfds.features.Image(shape=(None, None, 1)),
      "file_name": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

  def _generate_examples(self, count):
    for i in range(count):
      mask = Image.fromarray(np.array([[1, 2, 3], [2, 2, 2]], np.uint8), "P")
      mask.putpalette(list(range(256)) * 3)
      picture = Image.fromarray(np.full((2, 3, 3), i, np.uint8))
      yield i, {"picture": picture, "trimap": mask, "file_name": f"{i}.jpg"}


FIELDS = {
  "image": "picture",
  "label": "trimap",
  "name": "file_name",
  "values": {"1": 1, "2": 0, "3": 255},
  "classes": ["background", "pet"],
}


def test_any_tfds_set_through_a_field_map(tmp_path):
  dataset = data.load("tiny_masks", data_dir=tmp_path, fields=FIELDS)
  assert dataset.splits == {"train": 4, "test": 2}
  example = dataset.source("train")[3]
  assert example["label"].tolist() == [[1, 0, IGNORE], [0, 0, 0]]
  assert dataset.pixel_counts("test").tolist() == [8, 2]
  splits = {"train": "train[:75%]", "val": "train[75%:]"}
  parts = data.load("tiny_masks", data_dir=tmp_path, fields=FIELDS | {"splits": splits})
  assert parts.splits == {"train": 3, "val": 1}
  np.testing.assert_array_equal(parts.source("val")[0]["image"], example["image"])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"label": "mask"}, r"no feature 'mask'; it has .*picture"),
    ({"values": {1: 0, 2: 1}}, r"tiny_masks:t.*\[0\] \(.*\.jpg\) mask: value 3 \(1 pixels\)"),
    ({"values": {1: 0, 2: 2}}, r"must map raw values .* to train ids 0\.\.1"),
    ({"masks": "x"}, r"unknown \['masks'\]; the keys are image, label"),
    ({"splits": {"train": "training"}}, r"no split 'training'; it has"),
  ],
)
def test_field_maps_that_do_not_fit(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    data.load("tiny_masks", data_dir=tmp_path, fields=FIELDS | changes)


def test_a_tfds_set_that_does_not_exist():
  with pytest.raises(InputError, match="TFDS knows no data set 'tiny_maks'"):
    data.load("tiny_maks", fields=FIELDS)


def test_tfrecord_names_the_extra(tmp_path):
  builder = tfds.builder("tiny_masks", data_dir=tmp_path)
  builder.download_and_prepare(file_format="array_record")
  info = builder.data_path / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  for path in builder.data_path.glob("*.array_record*"):
    path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
  with pytest.raises(InputError, match=r"stored as tfrecord.*pip install tensorflow.*convert"):
    data.load("tiny_masks", data_dir=tmp_path, fields=FIELDS)


@pytest.mark.parametrize("kind", ["gone", "empty", "half", "other"])
@pytest.mark.parametrize("name", ["jseg_shapes-train", "dataset_info", "metadata"])
def test_damage_names_the_folder_to_remove(shapes, tmp_path, name, kind):
  copy = tmp_path / "jseg_shapes"
  shutil.copytree(shapes._builder.data_path.parents[1], copy)
  (path,) = copy.glob(f"*/*/{name}*")
  content = path.read_bytes()
  changed = {"empty": b"", "half": content[: len(content) // 2], "other": b'{"a": 1}'}
  if kind == "gone":
    path.unlink()
  else:
    path.write_bytes(changed[kind])
  with pytest.raises(InputError, match=rf"in {copy}.* are damaged \(.*\); remove that folder"):
    _ = data.load("shapes", data_dir=tmp_path, options=SHAPES).source("train")[4]
  shutil.rmtree(copy / shapes.fingerprint)
  assert len(data.load("shapes", data_dir=tmp_path, options=SHAPES).source("train")) == 5


def test_preparation_leaves_nothing_in_the_folder_of_temporary_files(tmp_path, monkeypatch):
  """TFDS makes a folder there for each set that isn't prepared yet."""
  (tmp_path / "temporary").mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
  data.load("shapes", data_dir=tmp_path / "data", options={**SHAPES, "train": 1, "val": 1})
  assert list((tmp_path / "temporary").iterdir()) == []


def test_what_a_killed_preparation_left_is_swept(tmp_path):
  left = tmp_path / "jseg_shapes" / make_source("shapes", options=SHAPES).fingerprint()
  (left / "incomplete.ABCDEF_1.3.0").mkdir(parents=True)
  (left / "incomplete.ABCDEF_1.3.0" / "half").touch()
  data.load("shapes", data_dir=tmp_path, options=SHAPES)
  assert [path.name for path in left.iterdir()] == ["1.3.0"]
  assert [path.name for path in left.parent.iterdir()] == [left.name]


def test_two_that_prepare_one_set_wait_for_one_another(tmp_path, capsys):
  folder = tmp_path / "jseg_shapes" / make_source("shapes", options=SHAPES).fingerprint()
  with contextlib.ExitStack() as first, ThreadPoolExecutor() as pool:
    first.enter_context(locked(pathlib.Path(f"{folder}.lock"), "it", "wait"))
    second = pool.submit(data.load, "shapes", data_dir=tmp_path, options=SHAPES)
    while "waiting for it" not in capsys.readouterr().err:
      assert not second.done()
      time.sleep(0.01)
    assert not folder.exists()
    first.close()
    assert second.result().splits == {"train": 5, "val": 3}


def test_objects_are_stored(tmp_path):
  dataset = data.load("shapes", data_dir=tmp_path, options=SHAPES | {"val": 0})
  objects = dataset.source("train")[1]["objects"]
  _, _, instance = draw(np.random.default_rng((0, 0, 1)), 32, 0.95)
  assert objects.size == (32, 32)
  assert len(objects) == instance.max()
  for i in range(len(objects)):
    np.testing.assert_array_equal(objects.mask(i), instance == i + 1)
  assert dataset.splits == {"train": 5}
  assert dataset.has_objects
  assert dataset.left_out("train", 100) == (0, 0)
  counts = [len(example["objects"]) for example in dataset.source("train")]
  assert dataset.left_out("train", 1) == (5, sum(counts) - 5)


def test_median_frequency_weights_by_hand(tmp_path):
  root = tmp_path / "set"
  add_classes(root, classes=["a", "b", "never"])
  for name, value in (("one", 1), ("two", IGNORE)):
    mask = np.zeros((4, 6))
    mask[1, 2] = value
    add_pair(root / "train", name, mask)
  dataset = data.load("folder", root=root, data_dir=tmp_path / "data")
  # Of the valid pixels of the images they are in: b is in the first alone.
  a, b = 46 / 47, 1 / 24
  median = (a + b) / 2
  np.testing.assert_allclose(
    dataset.median_frequency_weights("train"), [median / a, median / b, 0], rtol=1e-6
  )


# Sources of one's own.


@dataclasses.dataclass(frozen=True)
class Square:
  """An item: a square of class 1 in the middle."""

  index: int

  @property
  def name(self):
    return f"square_{self.index}"

  def load(self):
    label = np.zeros((8, 9), np.uint8)
    label[2:6, 3:6] = 1
    return data.Example.from_arrays(np.full((8, 9, 3), self.index, np.uint8), label)


class SquareSet(data.Source):
  """A source by subclassing, which a name can lead to."""

  classes = data.ClassInfo(("background", "square"))

  def __init__(self, root=None, count=2):
    self.splits = {"train": [Square(i) for i in range(count)], "val": [Square(9)]}
    self._version = f"squares of {root} {count}"

  def fingerprint(self):
    return self._version


def matches(root):
  return (root / "squares.txt").is_file()


def check_squares(dataset, count):
  assert dataset.splits == {"train": count, "val": 1}
  assert dataset.classes.names == ("background", "square")
  assert dataset.pixel_counts("val").tolist() == [60, 12]
  example = dataset.source("train")[1]
  assert example["name"] == "square_1"
  assert (example["image"] == 1).all()
  assert example["label"].sum() == 12


def test_a_source_of_ones_own_by_its_path(tmp_path):
  name = f"{__name__}:SquareSet"
  check_squares(data.load(name, data_dir=tmp_path), 2)
  check_squares(data.load(name, data_dir=tmp_path, root="here", options={"count": 3}), 3)
  assert [path.name for path in tmp_path.glob("*jseg*")] == ["jseg_square_set"]
  assert len(list((tmp_path / "jseg_square_set").iterdir())) == 2
  with pytest.raises(InputError, match="SquareSet has no option size; it has count"):
    data.load(name, options={"size": 3})


def test_a_source_of_ones_own_as_an_object(tmp_path, capfd):
  listed = data.ListedSource(
    classes=SquareSet.classes,
    splits=SquareSet(count=4).splits,
    make_fingerprint=lambda: "4 squares",
  )
  check_squares(data.load(listed, data_dir=tmp_path), 4)
  check_squares(data.load(SquareSet(count=2), data_dir=tmp_path), 2)
  capfd.readouterr()
  check_squares(data.load(SquareSet(count=2), data_dir=tmp_path), 2)
  assert capfd.readouterr().err == ""  # nothing was prepared again
  with pytest.raises(InputError, match="root, options and fields are for named data sets"):
    data.load(listed, root=tmp_path)


def test_a_new_source_is_a_file_and_a_line(tmp_path, monkeypatch):
  """The file is this one; with the line, it is loaded by name and recognized by its folder."""
  monkeypatch.setitem(SOURCES, "squares", f"{__name__}:SquareSet")
  root = tmp_path / "set"
  root.mkdir()
  (root / "squares.txt").touch()
  check_squares(data.load("squares", root=root, data_dir=tmp_path), 2)
  report = data.check_folder(root)
  assert report.ok
  assert report.splits["train"].sizes == {(8, 9): 2}
  assert report.splits["train"].pixels[:2].tolist() == [120, 24]
  assert data.contact_sheet(root, tmp_path / "sheet.png")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "no_such_package.sets:Mine",
      r"'no_such_package\.sets:Mine': there is no module no_such_package",
    ),
    ("jseg.data.sources.shapes:Mine", r"data set .*: jseg\.data\.sources\.shapes has no Mine"),
  ],
)
def test_paths_that_lead_nowhere(name, message):
  with pytest.raises(InputError, match=message):
    data.load(name)


def test_arrays_that_are_no_example():
  with pytest.raises(InputError, match=r"image: an array of shape \(4, 4\) and type uint8 is no"):
    data.Example.from_arrays(np.zeros((4, 4), np.uint8))
  with pytest.raises(InputError, match=r"label: an array of shape \(4, 5\) .* size \(4, 4\)"):
    data.Example.from_arrays(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8))


# What is prepared must be found again: folders are named by these.


def test_fingerprints_are_what_they_were(tmp_path):
  assert make_source("shapes").fingerprint() == "81b7c616225e860a"
  (tmp_path / "classes.json").write_text('{"classes": ["a", "b"]}')
  for kind in ("images", "masks"):
    (tmp_path / "train" / kind).mkdir(parents=True)
    (tmp_path / "train" / kind / "one.png").write_bytes(kind.encode())
  assert make_source("folder", root=tmp_path).fingerprint() == "9c696192f1bf4752"


def test_prepared_folders_are_called_what_they_were(shapes, tmp_path):
  path = shapes._builder.data_path
  assert [*path.parts[-3::2]] == ["jseg_shapes", "1.3.0"]
  assert path.parts[-2] == shapes.fingerprint
  fields = dict(data.load("tiny_masks", data_dir=tmp_path, fields=FIELDS)._builder.info.features)
  assert (tmp_path / "jseg_tfds").is_dir()
  assert fields.keys() == {"image", "label", "name"}


# What is read is shared, and nobody can write to it.


def test_the_cache_is_shared_and_read_only(shapes):
  assert shapes.source("train") is shapes.source("train")
  assert shapes.source("train")[0] is shapes.source("train")[0]
  for key in ("image", "label"):
    with pytest.raises(ValueError, match="read-only"):
      shapes.source("train")[0][key][0] = 0
  with pytest.raises(ValueError, match="read-only"):
    shapes.source("train")[0]["objects"].boxes[0] = 0


def test_each_name_of_the_room_resolves():
  folder = pathlib.Path(data.__file__).parent
  for name in data.__all__:
    assert getattr(data, name) is not None
    # A module of that name would hide it.
    assert not (folder / f"{name}.py").exists()
  assert set(data.__all__) == {name for names in data._HOMES.values() for name in names}
  with pytest.raises(AttributeError, match="has no attribute 'lod'"):
    _ = data.lod


def test_large_examples_are_loaded_one_at_a_time():
  loading, most, lock = 0, 0, threading.Lock()

  class Item:
    def load(self):
      nonlocal loading, most
      with lock:
        loading += 1
        most = max(most, loading)
      time.sleep(0.01)
      with lock:
        loading -= 1
      return Example.from_arrays(np.zeros((2, 2, 2, 1)), np.zeros((2, 2, 2), np.uint8))

  for limit, together in ((31, 1), (1 << 20, 4)):  # each has 8 voxels of 2 bytes
    most = 0
    assert len(list(builder._load_all([Item() for _ in range(9)], 4, limit))) == 9
    assert (most == 1) == (together == 1)
    assert most <= together
