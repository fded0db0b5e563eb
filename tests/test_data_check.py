"""`check_folder`: everything wrong in one go, by file name; and the contact sheet."""

import importlib

import numpy as np
import pytest
from helpers.files import add_classes, add_pair, printed, save
from PIL import Image

from jseg.data import check_folder, contact_sheet, load
from jseg.data.sources import SOURCES
from jseg.types import IGNORE, InputError


@pytest.fixture
def root(tmp_path):
  add_classes(tmp_path, palette=[[0, 0, 0], [0, 200, 0]])
  for name in ("one", "two", "three", "four"):
    add_pair(tmp_path / "train", name, [[0, 0, 0, 1, 1, 255]] * 4)
  add_pair(tmp_path / "val", "five", np.ones((4, 6)))
  return tmp_path


def test_a_good_folder(root):
  report = check_folder(root)
  assert report.ok
  train = report.splits["train"]
  assert train.count == 4
  assert train.sizes == {(4, 6): 4}
  assert train.pixels[[0, 1, IGNORE]].tolist() == [48, 32, 16]
  text = printed(report)
  assert "60.00% (4)" in text
  assert "6x4 (4)" in text
  assert "16.7%" in text  # void
  assert "100.00% (1)" in text  # val
  assert "No problems found" in text


def test_every_problem_is_found_in_one_go(root):
  train = root / "train"
  (train / "images" / "one.jpg").write_bytes(b"nonsense")
  save(train / "masks" / "one.png", np.full((4, 6), 37))  # two problems in one pair
  save(train / "masks" / "two.png", np.zeros((3, 6)))
  Image.fromarray(np.zeros((4, 6), np.uint16)).save(train / "images" / "three.png")
  (train / "images" / "three.jpg").unlink()
  (train / "masks" / "four.png").unlink()
  save(root / "val" / "masks" / "six.png", np.zeros((4, 6)))
  report = check_folder(root)
  assert not report.ok
  found = {(problem.file.removeprefix(f"{root}/"), problem.kind) for problem in report.problems}
  assert found == {
    ("train/images/one.jpg", "unreadable"),
    ("train/masks/one.png", "values"),
    ("train/masks/two.png", "size"),
    ("train/images/three.png", "depth"),
    ("train/images/four.jpg", "partner"),
    ("val/masks/six.png", "partner"),
  }
  text = printed(report)
  assert "value 37 (24 pixels) of no class" in text
  assert "Save the mask at the size of its image" in text
  with pytest.raises(InputError):
    load("folder", root=root, data_dir=root / "prepared")


def test_many_problems_of_a_kind_are_cut_short(root):
  for i in range(30):
    save(root / "val" / "images" / f"{i}.png")
  assert "... and 10 more of this kind" in printed(check_folder(root))


def test_masks_of_0_and_255_are_pointed_out(root):
  save(root / "val" / "masks" / "five.png", [[0, 0, 0, 255, 255, 255]] * 4)
  (problem,) = check_folder(root).problems
  assert problem.file == "split val"
  assert '"mask_values": [0, 255]' in problem.fix


def test_plain_folders_and_voc_are_checked_too(tmp_path):
  plain, voc = tmp_path / "plain", tmp_path / "voc"
  add_classes(plain)
  for i in range(5):
    add_pair(plain, f"{i}")
  assert {s: r.count for s, r in check_folder(plain).splits.items()} == {"train": 4, "val": 1}
  save(voc / "VOC2012" / "JPEGImages" / "a.jpg")
  save(voc / "VOC2012" / "SegmentationClass" / "a.png", np.full((4, 6), 20), "P")
  lists = voc / "VOC2012" / "ImageSets" / "Segmentation"
  lists.mkdir(parents=True)
  (lists / "val.txt").write_text("a\nb\n")
  report = check_folder(voc)
  assert report.splits["val"].pixels[20] == 24
  assert [problem.kind for problem in report.problems] == ["partner", "partner"]


def test_nothing_to_check(tmp_path):
  with pytest.raises(InputError, match="is not a folder"):
    check_folder(tmp_path / "nowhere")


def test_contact_sheet_shows_images_under_their_masks(root, tmp_path):
  save(root / "val" / "images" / "five.jpg", np.full((4, 6, 3), 100))
  assert contact_sheet(root, tmp_path / "sheet.png")
  sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
  # The fifth tile is the first of the second row: all class 1, half image, half palette.
  colors, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
  tinted = (np.abs(colors - np.array([50, 150, 50])).max(-1) <= 3) @ counts
  assert tinted > 0.9 * 256 * 171


def test_contact_sheet_without_a_readable_image(root, tmp_path):
  for path in root.glob("*/images/*"):
    path.write_bytes(b"nonsense")
  assert not contact_sheet(root, tmp_path / "sheet.png")
  assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
  ("files", "name"),
  [
    (["classes.json", "images/a.png"], "folder"),
    (["classes.json", "train/images/a.png"], "folder"),
    (["classes.json", "train/images/a.nii.gz"], "volumes"),
    (["annotations/instances_train2017.json"], "coco"),
    (["VOC2012/SegmentationClass/a.png"], "voc"),
    (["VOCdevkit/VOC2007/SegmentationClass/a.png"], "voc"),
    (["leftImg8bit/train/ulm/a.png", "gtFine/train/ulm/a.png"], "cityscapes"),
    (["annotations/trainval.txt"], "oxford_iiit_pet"),
  ],
)
def test_a_folder_is_recognized_by_one_source(files, name, tmp_path):
  for file in files:
    save_bytes(tmp_path / file, b"")
  modules = {key: importlib.import_module(path.split(":")[0]) for key, path in SOURCES.items()}
  matching = [key for key, module in modules.items() if hasattr(module, "matches")]
  assert [key for key in matching if modules[key].matches(tmp_path)] == [name]


def save_bytes(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
