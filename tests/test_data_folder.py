"""Folder layouts, the user's own and the published ones: what is found, what is reported."""

import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.files import add_classes, add_pair, save
from PIL import Image

from jseg.data import check_folder
from jseg.data.files.images import decode_raw
from jseg.data.sources import pets, recognize
from jseg.data.sources.cityscapes import cityscapes_source
from jseg.data.sources.folder import folder_source
from jseg.data.sources.pets import oxford_iiit_pet_source
from jseg.data.sources.voc import voc_source
from jseg.types import IGNORE, InputError


@pytest.fixture
def root(tmp_path):
  add_classes(tmp_path)
  for split, names in {"train": "cab", "val": "d"}.items():
    for name in names:
      add_pair(tmp_path / split, name)
  return tmp_path


def names(source):
  return {split: [item.name for item in items] for split, items in source.splits.items()}


def label_of(source, split, index=0):
  return decode_raw(source.splits[split][index].load().label)


def test_splits_are_found_and_sorted(root):
  (root / "train" / "images" / ".DS_Store").touch()
  (root / "train" / "images" / "notes.txt").touch()
  source = folder_source(root)
  assert names(source) == {"train": ["a", "b", "c"], "val": ["d"]}
  assert not source.problems


def test_a_stray_volume_doesnt_make_images_volumes(root):
  (root / "train" / "images" / "scan.nii.gz").write_bytes(b"")
  source = recognize(root)
  assert (source.ndim, names(source)) == (2, {"train": ["a", "b", "c"], "val": ["d"]})
  (note,) = check_folder(root).notes
  assert "1 file(s) (scan.nii.gz) end in .gz, which isn't read here: not used" in str(note)


def test_a_stray_image_doesnt_make_volumes_images(tmp_path):
  add_classes(tmp_path)
  for kind in ("images", "masks"):
    for name in ("a.nii", "b.NII.GZ"):
      path = tmp_path / "train" / kind / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(b"")
  save(tmp_path / "train" / "images" / "preview.png", np.zeros((1, 3, 3)))
  source = recognize(tmp_path)
  assert (source.ndim, names(source)) == (3, {"train": ["a", "b"]})
  assert "1 file(s) (preview.png) end in .png" in str(source.notes[0])


def test_a_plain_folder_is_split_at_random_but_always_alike(tmp_path):
  add_classes(tmp_path)
  for i in range(10):
    add_pair(tmp_path, f"{i}")
  splits = names(folder_source(tmp_path))
  assert {split: len(n) for split, n in splits.items()} == {"train": 8, "val": 2}
  assert sorted(splits["train"] + splits["val"]) == [f"{i}" for i in range(10)]
  assert names(folder_source(tmp_path)) == splits
  assert any(names(folder_source(tmp_path, seed=seed)) != splits for seed in range(1, 5))
  thirds = names(folder_source(tmp_path, {"train": 0.5, "val": 0.3, "test": 0.2}))
  assert {split: len(n) for split, n in thirds.items()} == {"train": 5, "val": 3, "test": 2}
  with pytest.raises(InputError, match=r"fractions: .* must give .* sum to 1"):
    folder_source(tmp_path, {"train": 0.9, "val": 0.9})
  with pytest.raises(InputError, match=r"of 10 images leave split 'val' empty"):
    folder_source(tmp_path, {"train": 0.99, "val": 0.01})


def test_partners_that_are_missing(root):
  (root / "train" / "masks" / "b.png").unlink()
  (root / "val" / "images" / "d.jpg").unlink()
  first, second = map(str, folder_source(root).problems)
  assert "train/images/b.jpg: has no mask of the same name. Put it at" in first
  assert "val/masks/d.png: has no image of the same name" in second


def test_two_images_of_one_name(root):
  save(root / "train" / "images" / "a.png")
  (problem,) = folder_source(root).problems
  assert "a.png" in str(problem)
  assert "has the same name. Keep one of the two" in str(problem)


def test_empty_and_misnamed_splits(root):
  (root / "test" / "images").mkdir(parents=True)
  (root / "test" / "masks").mkdir()
  (root / "validation" / "images").mkdir(parents=True)
  stray, empty = map(str, folder_source(root).problems)
  assert "validation: is not a known split. Call splits train, val and test" in stray
  assert "test: is empty" in empty


def test_folders_that_are_none(tmp_path, root):
  with pytest.raises(InputError, match="nowhere is not a folder"):
    folder_source(tmp_path / "nowhere")
  (root / "classes.json").unlink()
  with pytest.raises(InputError, match=r"classes\.json is missing"):
    folder_source(root)
  (tmp_path / "other" / "pictures").mkdir(parents=True)
  with pytest.raises(InputError, match=r"holds no data set \(pictures found\)\. Expected"):
    folder_source(tmp_path / "other")


def test_the_fingerprint_covers_files_classes_and_split(root):
  before = folder_source(root).fingerprint()
  assert folder_source(root).fingerprint() == before
  add_classes(root, ignore_label=9)
  changed = folder_source(root).fingerprint()
  assert changed != before
  save(root / "val" / "masks" / "d.png", np.ones((4, 6)))
  assert folder_source(root).fingerprint() not in (before, changed)


@pytest.mark.parametrize("above", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, above):
  home = tmp_path / above
  lists = home / "ImageSets" / "Segmentation"
  lists.mkdir(parents=True)
  for name, split in {"2007_1": "train", "2007_2": "val"}.items():
    save(home / "JPEGImages" / f"{name}.jpg", np.zeros((1, 3, 3)))
    save(home / "SegmentationClass" / f"{name}.png", [[0, 20, 255]], "P")
    save(home / "SegmentationClassAug" / f"{name}.png", [[0, 7, 255]])
    (lists / f"{split}.txt").write_text(f"{name}\n")
  (lists / "trainval.txt").write_text("2007_1\n2007_2\n")
  (lists / "train_aug.txt").write_text("/JPEGImages/2007_1.jpg /SegmentationClassAug/2007_1.png\n")
  source = voc_source(tmp_path)
  assert names(source) == {"train": ["2007_1"], "val": ["2007_2"], "train_aug": ["2007_1"]}
  assert not source.problems
  assert len(source.classes.names) == 21
  assert label_of(source, "val").tolist() == [[0, 20, IGNORE]]
  assert label_of(source, "train_aug").tolist() == [[0, 7, IGNORE]]
  (home / "JPEGImages" / "2007_2.jpg").unlink()
  assert "2007_2.jpg: is listed but missing" in str(voc_source(tmp_path).problems[0])


def test_voc_prefers_the_latest_year_and_reports_none(tmp_path):
  with pytest.raises(InputError, match="holds no Pascal VOC"):
    voc_source(tmp_path)
  for year in ("VOC2007", "VOC2012"):
    (tmp_path / year / "SegmentationClass").mkdir(parents=True)
  with pytest.raises(InputError, match=r"VOC2012/ImageSets/Segmentation holds no train\.txt"):
    voc_source(tmp_path)


def test_cityscapes_maps_label_ids_to_train_ids(tmp_path):
  for split, city in {"train": "ulm", "val": "bonn"}.items():
    stem = f"{city}_000000_000019"
    save(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", np.zeros((5, 7, 3)))
    ids = np.arange(35).reshape(5, 7)
    save(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", ids)
  source = cityscapes_source(tmp_path)
  assert names(source) == {"train": ["ulm_000000_000019"], "val": ["bonn_000000_000019"]}
  void = IGNORE
  expected = [void] * 7 + [0, 1, void, void, 2, 3, 4, void, void, void, 5, void, 6, 7, 8, 9, 10]
  expected += [11, 12, 13, 14, 15, void, void, 16, 17, 18, void]
  assert label_of(source, "train").ravel().tolist() == expected
  assert source.classes.names[13] == "car"
  assert source.classes.palette[13].tolist() == [0, 0, 142]
  with pytest.raises(InputError, match="holds no Cityscapes"):
    cityscapes_source(tmp_path / "gtFine")


def fake_pets(root):
  for i in range(10):
    save(root / "images" / f"pet_{i}.jpg", np.zeros((1, 3, 3)))
    save(root / "annotations" / "trimaps" / f"pet_{i}.png", [[1, 2, 3]])
  lines = [f"pet_{i} 1 1 1" for i in range(10)]
  (root / "annotations" / "trainval.txt").write_text("\n".join(lines[:8]) + "\n")
  (root / "annotations" / "test.txt").write_text("\n".join(lines[8:]) + "\n")


@pytest.mark.parametrize("name", ["../../secret", "/etc/secret", "a/../../../secret", "x" * 5000])
def test_names_in_a_list_lead_nowhere_else(name, tmp_path):
  root = tmp_path / "set"
  fake_pets(root)
  for folder in (tmp_path, root / "annotations"):
    save(folder / "secret.jpg", np.zeros((1, 3, 3)))
    save(folder / "secret.png", [[1, 2, 3]])
  path = root / "annotations" / "trainval.txt"
  path.write_text(f"{path.read_text()}{name} 1 1 1\n")
  source = oxford_iiit_pet_source(root)
  assert [problem.kind for problem in source.problems] == ["partner", "partner"]


def test_oxford_pet_trimaps(tmp_path):
  fake_pets(tmp_path)
  source = oxford_iiit_pet_source(tmp_path)
  assert {split: len(items) for split, items in source.splits.items()} == {
    "train": 7,
    "val": 1,
    "test": 2,
  }
  assert label_of(source, "test").tolist() == [[1, 0, IGNORE]]
  with pytest.raises(InputError, match="holds no Oxford-IIIT Pet"):
    oxford_iiit_pet_source(tmp_path / "images")


def test_oxford_pet_downloads_once(tmp_path, monkeypatch):
  fake_pets(tmp_path / "origin")
  for part in ("images", "annotations"):
    with tarfile.open(tmp_path / f"{part}.tar.gz", "w:gz") as archive:
      archive.add(tmp_path / "origin" / part, part)
  urls = []

  def download(self, url):
    urls.append(url)
    return tmp_path / url.rsplit("/", 1)[1]

  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "cache"))
  monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
  for _ in range(2):
    assert len(pets.oxford_iiit_pet_source().splits["train"]) == 7
  assert [url.rsplit("/", 1)[1] for url in urls] == ["images.tar.gz", "annotations.tar.gz"]
  assert all(url in tfds.builder_cls("oxford_iiit_pet").url_infos for url in urls)


def test_instance_ids_of_several_classes(tmp_path):
  add_classes(tmp_path, classes=["none", "cat", "dog"], task="instance")
  ids = np.array([[0, 1000, 1001], [2000, 2255, 255]], np.uint16)
  save(tmp_path / "train" / "images" / "a.jpg", np.zeros((2, 3, 3)))
  (tmp_path / "train" / "masks").mkdir()
  Image.fromarray(ids).save(tmp_path / "train" / "masks" / "a.png")
  item = folder_source(tmp_path).splits["train"][0]
  with pytest.raises(
    InputError, match=r"value 255 \(1 pixels\) of no class; objects of the 2 kinds"
  ):
    item.load()
  ids[1, 2] = 0
  Image.fromarray(ids).save(tmp_path / "train" / "masks" / "a.png")
  example = item.load()
  assert decode_raw(example.label).tolist() == [[0, 1, 1], [2, 2, 0]]
  assert example.objects.classes.tolist() == [1, 1, 2, 2]


def test_instance_masks_that_are_none(tmp_path):
  add_classes(tmp_path, task="instance")
  add_pair(tmp_path / "train", "a")
  save(tmp_path / "train" / "masks" / "a.png", np.zeros((4, 6, 3)))
  with pytest.raises(InputError, match="a color image cannot be a mask of instance ids"):
    folder_source(tmp_path).splits["train"][0].load()
  add_classes(tmp_path, task="instance", mask_values=[0, 255])
  with pytest.raises(InputError, match="these masks hold instance ids; leave mask_values out"):
    folder_source(tmp_path)


def test_the_255th_object_is_one_like_any_other(tmp_path):
  add_classes(tmp_path, task="instance")
  add_pair(tmp_path / "train", "a", np.arange(250, 274).reshape(4, 6) % 256)
  objects = folder_source(tmp_path).splits["train"][0].load().objects
  assert len(objects) == 23  # 250 to 255 and 1 to 17
  assert not objects.crowd.any()
