"""Which files of a folder are used, and what is said of the others."""

import os
import pathlib
import unicodedata

import numpy as np
import pytest
from helpers.files import add_classes, add_pair, save
from helpers.mangled import encode, write
from PIL import Image

from jseg.data import IMAGE_SUFFIXES, FileError, check_folder, list_files
from jseg.data.files import read_text
from jseg.data.files.listing import likeliest_partner, split_suffix
from jseg.data.sources.cityscapes import cityscapes_source
from jseg.data.sources.folder import folder_source
from jseg.data.sources.voc import voc_source
from jseg.types import InputError


def touch(folder, *names):
  for name in names:
    write(folder / name, b"x")


def test_names_are_relative_paths_without_suffix(tmp_path):
  touch(tmp_path, "b.PNG", "cam 1/a.b.jpeg", "cam 1/deep/c.tif", "d.nii.gz")
  listing = list_files(tmp_path, IMAGE_SUFFIXES)
  assert list(listing.files) == ["b", "cam 1/a.b", "cam 1/deep/c"]
  assert listing.files["b"] == tmp_path / "b.PNG"
  assert list(list_files(tmp_path, (".nii", ".nii.gz")).files) == ["d"]
  assert split_suffix("V0.NII.GZ", (".nii", ".nii.gz")) == ("V0", ".NII.GZ")
  with pytest.raises(FileError, match="No such file"):
    list_files(tmp_path / "nowhere", IMAGE_SUFFIXES)


def test_any_suffix_of_the_image_library_is_one():
  known = {".png", ".jpg", ".jfif", ".jpe", ".ppm", ".pgm", ".pbm", ".tga", ".jp2", ".bmp", ".webp"}
  known |= {".tif", ".tiff", ".gif", ".avif", ".qoi", ".psd", ".mpo"}
  assert known <= set(IMAGE_SUFFIXES)
  assert not {".pdf", ".h5", ".eps", ".mpg", ".txt", ".npy"} & set(IMAGE_SUFFIXES)


def test_names_are_compared_in_nfc(tmp_path):
  add_classes(tmp_path)
  composed, decomposed = (unicodedata.normalize(form, "café/ü") for form in ("NFC", "NFD"))
  save(tmp_path / "images" / f"{decomposed}.jpg")
  save(tmp_path / "masks" / f"{composed}.png", np.zeros((4, 6)))
  add_pair(tmp_path, "b")
  source = folder_source(tmp_path, {"train": 0.5, "val": 0.5})
  assert not source.problems
  items = [*source.splits["train"], *source.splits["val"]]
  assert sorted(item.name for item in items) == ["b", composed]


def test_what_is_not_used_is_counted_and_named(tmp_path):
  touch(tmp_path, "a.png", "._a.png", ".b.png", "notes.txt", "c.xcf", "d.XCF", "raw", ".DS_Store")
  touch(tmp_path, "Thumbs.db", "__MACOSX/._a.png", ".git/x.png")
  (tmp_path / "s99.png").mkdir()
  (tmp_path / "empty").mkdir()
  os.mkfifo(tmp_path / "pipe.png")
  listing = list_files(tmp_path, IMAGE_SUFFIXES)
  assert list(listing.files) == ["a"]
  assert not listing.problems
  assert {note.problem for note in listing.notes} == {
    "2 file(s) (._a.png, .b.png) are hidden, with a dot in front of the name: not used",
    "1 file(s) (notes.txt) end in .txt, which isn't read here: not used",
    "2 file(s) (c.xcf, d.XCF) end in .xcf, which isn't read here: not used",
    "1 file(s) (raw) have no suffix: not used",
    "1 file(s) (s99.png) are empty folders with the name of a file: not used",
    "1 file(s) (pipe.png) are no regular files: not used",
  }


def test_links_are_followed_and_dangling_ones_are_missing_files(tmp_path):
  touch(tmp_path / "elsewhere", "deep/a.png")
  folder = tmp_path / "images"
  folder.mkdir()
  (folder / "linked").symlink_to(tmp_path / "elsewhere" / "deep")
  (folder / "b.png").symlink_to(tmp_path / "elsewhere" / "deep" / "a.png")
  (folder / "c.png").symlink_to("gone/c.png")
  (folder / "again").symlink_to(folder)
  listing = list_files(folder, IMAGE_SUFFIXES)
  assert list(listing.files) == ["b", "linked/a"]
  assert [problem.problem for problem in listing.problems] == [
    "links to a folder that it is in",
    "is a link to gone/c.png, which isn't there",
  ]


def test_a_dangling_link_is_told_by_check_and_preparation(tmp_path):
  add_classes(tmp_path)
  add_pair(tmp_path / "train", "a", [[0, 0, 0, 1, 1, 1]] * 4)
  (tmp_path / "train" / "images" / "s00.png").symlink_to("../../gone.png")
  save(tmp_path / "train" / "masks" / "s00.png", np.zeros((4, 6)))
  kinds = {problem.kind for problem in check_folder(tmp_path).problems}
  assert kinds == {"missing", "partner"}


def test_an_unreadable_folder_is_told_and_the_rest_is_listed(tmp_path, monkeypatch):
  touch(tmp_path, "a.png", "sub/deep/b.png", "sub/c.png")
  iterdir = pathlib.Path.iterdir

  def refuse(self):
    if self.name == "deep":
      raise PermissionError(13, "Permission denied", str(self))
    return iterdir(self)

  monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
  listing = list_files(tmp_path, IMAGE_SUFFIXES)
  assert list(listing.files) == ["a", "sub/c"]
  (problem,) = listing.problems
  assert problem.file == str(tmp_path / "sub" / "deep")
  assert problem.problem == "Permission denied"
  with pytest.raises(FileError, match="Permission denied"):
    list_files(tmp_path / "sub" / "deep", IMAGE_SUFFIXES)


def test_what_is_ignored_is_neither_listed_nor_told(tmp_path):
  touch(tmp_path, "a.png", "b.png", "c.txt")
  listing = list_files(tmp_path, IMAGE_SUFFIXES, lambda path: path.name in ("b.png", "c.txt"))
  assert list(listing.files) == ["a"]
  assert not listing.notes


def test_two_files_of_one_name(tmp_path):
  touch(tmp_path, "a.png", "a.JPG")
  (problem,) = list_files(tmp_path, IMAGE_SUFFIXES).problems
  assert "a.JPG has the same name" in problem.problem


def test_the_likeliest_partner_is_named(tmp_path):
  others = sorted(["cam1/s00", "B_mask", "S01", "zzz"])
  assert likeliest_partner("s00", others) == "cam1/s00"
  assert likeliest_partner("B", others) == "B_mask"
  assert likeliest_partner("s 01", others) == "S01"
  assert likeliest_partner("zzz_label", others) == "zzz"
  assert likeliest_partner("zz", others) is None
  assert likeliest_partner("other", others) is None
  add_classes(tmp_path)
  save(tmp_path / "train" / "images" / "a.png")
  save(tmp_path / "train" / "masks" / "a_mask.png", np.zeros((4, 6)))
  found = [str(problem) for problem in folder_source(tmp_path).problems]
  assert "masks/a_mask.png, give both the same name" in found[0]
  assert "images/a.png, give both the same name" in found[1]


def test_folders_beside_splits_are_told(tmp_path):
  add_classes(tmp_path)
  add_pair(tmp_path / "train", "a")
  add_pair(tmp_path, "b")
  notes = folder_source(tmp_path).notes
  assert [pathlib.Path(note.file).name for note in notes] == ["images", "masks"]
  assert "isn't used, because there are folders of splits" in notes[0].problem


# Text files.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_mark_in_front_is_read(encoding, tmp_path):
  (tmp_path / "classes.json").write_text('{"classes": ["a", "Fläche"]}', encoding)
  (tmp_path / "images").mkdir()
  (tmp_path / "masks").mkdir()
  assert folder_source(tmp_path).classes.names == ("a", "Fläche")


@pytest.mark.parametrize(
  ("encoding", "message"),
  [
    ("utf-16", r"classes\.json: is encoded in UTF-16\. Save it again as UTF-8"),
    ("utf-16-le", r"is encoded in UTF-16-LE"),
    ("utf-16-be", r"is encoded in UTF-16-BE"),
    ("utf-32", r"is encoded in UTF-32"),
    ("latin-1", r"is not encoded in UTF-8 \(byte 0xe4 at 19\); perhaps in Windows-1252"),
  ],
)
def test_another_encoding_is_named(encoding, message, tmp_path):
  path = tmp_path / "classes.json"
  path.write_bytes('{"classes": ["a", "ä"]}'.encode(encoding))
  with pytest.raises(InputError, match=message):
    read_text(path)


# Published layouts.


def voc(home, names, image="jpg", lines=None):
  lists = home / "ImageSets" / "Segmentation"
  lists.mkdir(parents=True)
  for name in names:
    save(home / "JPEGImages" / f"{name}.{image}", np.zeros((1, 3, 3)))
    save(home / "SegmentationClass" / f"{name}.png", [[0, 20, 255]], "P")
  (lists / "train.txt").write_text("\n".join(lines or names), "utf-8-sig")
  return voc_source(home)


@pytest.mark.parametrize(
  ("names", "image", "lines"),
  [
    (["cam1.0001", "cam1.0002"], "jpg", None),
    (["img 1", "img 2"], "jpg", None),
    (["a", "b"], "png", None),
    (["a", "b"], "JPEG", ["a.jpg", "b.jpg"]),
    (["a.b 1", "a.b -1"], "jpg", None),
    (["a", "b"], "jpg", ["a  1", "b -1"]),
    (
      ["x.y", "z"],
      "jpg",
      [f"/JPEGImages/{n}.jpg /SegmentationClass/{n}.png" for n in ("x.y", "z")],
    ),
    (["day/a", "night/a"], "webp", None),
  ],
)
def test_voc_names_of_all_kinds(names, image, lines, tmp_path):
  source = voc(tmp_path, names, image, lines)
  assert not source.problems
  assert [item.name for item in source.splits["train"]] == names
  assert all(item.load().counts[20] == 1 for item in source.splits["train"])


@pytest.mark.parametrize(
  ("file", "text", "classes"),
  [
    (
      "labelmap.txt",
      "# label:color_rgb:parts:actions\nbackground:0,0,0::\nmy cell:250,50,83::\n",
      '{"classes": ["background", "my cell"], "palette": [[0, 0, 0], [250, 50, 83]]}',
    ),
    ("class_names.txt", "_background_\ncat\ndog", '{"classes": ["_background_", "cat", "dog"]}'),
  ],
)
def test_exports_in_vocs_layout_are_not_taken_for_voc(file, text, classes, tmp_path):
  (tmp_path / file).write_text(text)
  with pytest.raises(InputError, match="names other classes than Pascal VOC's") as error:
    voc(tmp_path, ["a"])
  assert str(error.value).endswith(f"a classes.json of {classes}")


def test_cityscapes_without_resource_forks(tmp_path):
  stem = "ulm_000000_000019"
  images = tmp_path / "leftImg8bit" / "train" / "ulm"
  save(images / f"{stem}_leftImg8bit.png")
  write(images / f"._{stem}_leftImg8bit.png", b"fork")
  save(tmp_path / "gtFine" / "train" / "ulm" / f"{stem}_gtFine_labelIds.png", np.full((4, 6), 7))
  source = cityscapes_source(tmp_path)
  assert [item.name for item in source.splits["train"]] == [stem]
  assert not source.problems


def test_cityscapes_with_an_unreadable_split(tmp_path, monkeypatch):
  for split in ("train", "val"):
    save(tmp_path / "leftImg8bit" / split / split[:2] / "x_leftImg8bit.png")
    mask = tmp_path / "gtFine" / split / split[:2] / "x_gtFine_labelIds.png"
    save(mask, np.full((4, 6), 7))
  iterdir = pathlib.Path.iterdir

  def refuse(self):
    if self.name in closed:
      raise PermissionError(13, "Permission denied", str(self))
    return iterdir(self)

  monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
  closed = ["tr"]
  (problem,) = cityscapes_source(tmp_path).problems
  assert str(problem).endswith("train/tr: Permission denied. Check the path and its permissions")
  closed = ["tr", "va"]
  with pytest.raises(FileError, match="tr: Permission denied"):
    cityscapes_source(tmp_path)


def test_images_of_any_suffix_in_a_folder(tmp_path):
  add_classes(tmp_path)
  for i, suffix in enumerate(("jfif", "ppm", "tga", "jpe", "jp2", "PNG")):
    save(tmp_path / "train" / "images" / f"{i}.{suffix}")
    mask = Image.fromarray(np.array([[0, 0, 1, 1, 1, 255]] * 4, np.uint8))
    write(tmp_path / "train" / "masks" / f"{i}.pgm", encode(mask, "PPM"))
  report = check_folder(tmp_path)
  assert report.ok
  assert report.splits["train"].pixels[[0, 1, 255]].tolist() == [48, 72, 24]
