"""Which files are predicted, and that no result meets anything else."""

import os
import pathlib
import unicodedata

import numpy as np
import pytest
from helpers.files import add_classes, save
from hypothesis import given
from hypothesis import strategies as st

from jseg.collection import find_inputs, plan_outputs
from jseg.data import IMAGE_SUFFIXES, check_folder
from jseg.data.sources.folder import folder_source
from jseg.record import Record
from jseg.types import InputError

SUFFIXES = (".png", ".jpg", ".nii", ".nii.gz")


def touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
  return root


def outputs(name):
  return [f"{name}.png", f"{name}_overlay.png"]


def plan(folder, out, *paths):
  return plan_outputs(find_inputs(list(paths) or [folder], SUFFIXES).files, outputs, out)


def test_files_are_named_by_where_they_are(tmp_path):
  touch(
    tmp_path / "in", "b.JPG", "a.png", "day 1/a.png", "day 1/deep/x.y.png", "s.nii.gz", "S2.NII"
  )
  found = find_inputs([tmp_path / "in"], SUFFIXES)
  assert list(found.files) == ["S2", "a", "b", "day 1/a", "day 1/deep/x.y", "s"]
  assert found.files["day 1/a"] == tmp_path / "in" / "day 1" / "a.png"
  assert plan(tmp_path / "in", tmp_path / "out")["day 1/a"] == [
    "day 1/a.png",
    "day 1/a_overlay.png",
  ]
  assert not found.notes
  assert not found.broken


def test_what_is_hidden_is_no_input_and_what_is_not_read_is_told(tmp_path):
  names = ("._a.png", ".DS_Store", ".hidden/b.png", "a.png", "x.HEIC", "y.heic", "Thumbs.db", "raw")
  found = find_inputs([touch(tmp_path, *names)], SUFFIXES)
  assert list(found.files) == ["a"]
  assert {note.problem for note in found.notes} == {
    "1 file(s) (._a.png) are hidden, with a dot in front of the name: not used",
    "2 file(s) (x.HEIC, y.heic) end in .heic, which isn't read here: not used",
    "1 file(s) (raw) have no suffix: not used",
  }


def test_links_to_nowhere_and_in_circles(tmp_path):
  touch(tmp_path / "in", "a.png", "sub/b.png")
  (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
  (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
  touch(tmp_path / "other", "c.png")
  (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
  found = find_inputs([tmp_path / "in"], SUFFIXES)
  assert list(found.files) == ["a", "linked/c", "sub/b"]
  (path,) = found.broken
  assert path == str(tmp_path / "in" / "gone.png")
  assert "gone.png: is a link to" in found.broken[path]
  (note,) = found.notes
  assert "sub/up: links to a folder that it is in" in str(note)


def forbid(monkeypatch, folder):
  """Makes a folder unreadable, for root too."""
  iterdir = pathlib.Path.iterdir

  def refuse(self):
    if self == folder:
      raise PermissionError(13, "Permission denied", str(self))
    return iterdir(self)

  monkeypatch.setattr(pathlib.Path, "iterdir", refuse)


def test_an_unreadable_folder_is_a_failure_and_the_rest_goes_on(tmp_path, monkeypatch):
  touch(tmp_path, "day1/sub/a.png", "day1/b.png", "day2/sub/c.png", "day2/d.png")
  (tmp_path / "day2" / "gone.png").symlink_to("nowhere")
  (tmp_path / "day1" / "gone.png").symlink_to("nowhere")
  forbid(monkeypatch, tmp_path / "day1" / "sub")
  found = find_inputs([tmp_path / "day1", tmp_path / "day2"], SUFFIXES)
  assert list(found.files) == ["b", "d", "sub/c"]
  # Failures in two folders are two, also if they are called alike.
  assert {str(pathlib.Path(path).relative_to(tmp_path)) for path in found.broken} == {
    "day1/sub",
    "day1/gone.png",
    "day2/gone.png",
  }
  assert "Permission denied" in found.broken[str(tmp_path / "day1" / "sub")]
  with pytest.raises(InputError, match=r"sub: Permission denied. Check the path"):
    find_inputs([tmp_path / "day1" / "sub"], SUFFIXES)


def test_check_and_prediction_see_the_same_files(tmp_path):
  add_classes(tmp_path)
  images, masks = (tmp_path / "train" / kind for kind in ("images", "masks"))
  for name in ("a.PNG", "cam 1/b.c.jpeg", "cam 1/deep/d.Tif", "e\u0301.ppm", "g.png"):
    save(images / name)
  save(tmp_path / "elsewhere" / "f.bmp")
  (images / "linked").symlink_to(tmp_path / "elsewhere")
  (images / "h.png").symlink_to(tmp_path / "elsewhere" / "f.bmp")
  (images / "s.png").mkdir()
  (images / "gone.png").symlink_to("nowhere.png")
  touch(images, "._a.PNG", ".hidden/i.png", "cam 1/._b.jpeg", "__MACOSX/a.png", ".DS_Store")
  touch(images, "j.HEIC", "k.heic", "notes.txt", "raw", "v.npy", "Thumbs.db")
  expected = ["a", "cam 1/b.c", "cam 1/deep/d", "g", "h", "linked/f", "\u00e9"]
  for name in expected:
    save(masks / f"{name}.png", np.array([[0, 0, 0, 1, 1, 1]] * 4))
  found, source = find_inputs([images], IMAGE_SUFFIXES), folder_source(tmp_path)
  assert list(found.files) == expected
  assert {item.name: item.image for item in source.splits["train"]} == found.files
  assert [str(problem) for problem in source.problems] == list(found.broken.values())
  assert [str(note) for note in source.notes] == [str(note) for note in found.notes]
  assert len(found.broken) == 1
  assert len(found.notes) == 6
  report = check_folder(tmp_path)
  assert [str(problem) for problem in report.problems] == list(found.broken.values())
  assert [str(note) for note in report.notes] == [str(note) for note in found.notes]


def test_a_named_file_is_taken_whatever_it_is_called(tmp_path):
  touch(tmp_path, "photo", "scan.v2.heic", ".png")
  files = find_inputs([tmp_path / n for n in ("photo", "scan.v2.heic", ".png")], SUFFIXES).files
  assert list(files) == ["photo", "scan.v2", ".png"]
  # The same file twice is one file.
  twice = [tmp_path / "photo", tmp_path / "." / "photo"]
  assert list(find_inputs(twice, SUFFIXES).files) == ["photo"]
  # Under two names in a folder as well.
  touch(tmp_path / "in", "a.png")
  (tmp_path / "in" / "a.jpg").symlink_to("a.png")
  assert list(find_inputs([tmp_path / "in"], SUFFIXES).files) == ["a"]


def test_results_of_earlier_calls_are_no_inputs(tmp_path):
  touch(tmp_path, "a.jpg", "out/a.png", "out/a_overlay.png", "out/sub/b.png", "out/mine.png")
  record = Record(tmp_path / "out")
  record.begin({}, ["a.png", "a_overlay.png", "sub/b.png"])
  found = find_inputs([tmp_path], SUFFIXES)
  assert list(found.files) == ["a", "out/mine"]
  assert not found.notes
  # A folder inside the results is no place of its own, and one beside them keeps its files.
  touch(tmp_path, "other/a_overlay.png", "out/sub/b.txt")
  found = find_inputs([tmp_path], SUFFIXES)
  assert list(found.files) == ["a", "other/a_overlay", "out/mine"]
  assert ["1 file(s) (out/sub/b.txt)" in note.problem for note in found.notes] == [True]


def test_results_that_are_not_read_are_not_told_either(tmp_path):
  touch(tmp_path, "a.png", "out/a.nii.gz", f"out/{unicodedata.normalize('NFD', 'é')}.png")
  Record(tmp_path / "out").begin({}, ["a.nii.gz", "é.png"])
  found = find_inputs([tmp_path], (".png",))
  assert list(found.files) == ["a"]
  assert not found.notes


@pytest.mark.parametrize("names", [(), ("x.txt",), ("._a.png",)])
def test_nothing_to_predict(tmp_path, names):
  with pytest.raises(InputError, match=r"holds no file of \.png, \.jpg, \.nii, \.nii\.gz(\n|$)"):
    find_inputs([touch(tmp_path, *names)], SUFFIXES)


@pytest.mark.parametrize(
  ("names", "out", "match"),
  [
    # Case 03: overlays of one are masks of another.
    (
      ("a.png", "a_overlay.png"),
      "out",
      r"a.png and .*a_overlay.png would both be written to .*out",
    ),
    (("a.png", "a.jpg"), "out", r"a.jpg and .*a.png would be written to the same name, a; rename"),
    (("A.png", "a.png"), "out", r"A.png and .*a.png would both be written"),
    (("a.png", "b.jpg"), "in", r"a.png is an input, and a result of .*a.png .*another --out"),
    (("x.jpg", "X_Overlay.PNG"), "in", r"X_Overlay.PNG is an input, and a result of"),
    (("sub/a.png",), "in", r"sub/a.png is an input"),
    (("a.jpg", "a.png/b.jpg"), "out", r"a.jpg would be called like the folder for .*b.jpg"),
    (("über.jpg", "u\u0308ber.jpg"), "out", r"would be written to the same name, über; rename"),
  ],
)
def test_results_never_meet_inputs_or_each_other(tmp_path, names, out, match):
  touch(tmp_path / "in", *names)
  with pytest.raises(InputError, match=match):
    plan(tmp_path / "in", tmp_path / out)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_links_do_not_hide_that_two_paths_are_one(tmp_path):
  touch(tmp_path / "in", "a.png")
  (tmp_path / "out").symlink_to(tmp_path / "in")
  with pytest.raises(InputError, match=r"a.png is an input"):
    plan(tmp_path / "in", tmp_path / "out")
  # The photo is elsewhere, and its folder holds a link to it.
  touch(tmp_path / "photos", "b.png")
  (tmp_path / "links").mkdir()
  (tmp_path / "links" / "b.png").symlink_to(tmp_path / "photos" / "b.png")
  with pytest.raises(InputError, match=r"b.png is an input"):
    plan(tmp_path / "links", tmp_path / "photos")
  with pytest.raises(InputError, match=r"b.png is an input"):
    plan(tmp_path / "links", tmp_path / "photos" / ".." / "links")


def test_a_folder_in_the_way(tmp_path):
  touch(tmp_path / "in", "a.png", "sub/b.png")
  (tmp_path / "out" / "a.png").mkdir(parents=True)
  with pytest.raises(InputError, match=r"out/a.png is a folder, but must be a file"):
    plan(tmp_path / "in", tmp_path / "out")
  touch(tmp_path / "out2", "sub")
  with pytest.raises(InputError, match=r"out2/sub is a file, but must be a folder"):
    plan(tmp_path / "in", tmp_path / "out2")


def test_two_folders_with_the_same_names(tmp_path):
  for day in ("day1", "day2"):
    touch(tmp_path / day, "IMG_1.jpg")
  with pytest.raises(
    InputError, match=r"day1/IMG_1.jpg and .*day2/IMG_1.jpg would be written to the"
  ):
    find_inputs([tmp_path / "day1", tmp_path / "day2"], SUFFIXES)
  assert list(find_inputs([tmp_path], SUFFIXES).files) == ["day1/IMG_1", "day2/IMG_1"]


NAMES = st.lists(
  st.sampled_from(["a", "A", "a_overlay", "b", "s/a", "s/b", "a.png/c", "c.d"]), unique=True
)


@given(NAMES, st.sampled_from([".png", ".jpg"]))
def test_whatever_is_planned_is_distinct_on_any_file_system(tmp_path_factory, names, suffix):
  # Compared as macOS and Windows do, with paths that nothing lies at.
  root = tmp_path_factory.getbasetemp() / "nowhere"
  files = {name: root / "in" / f"{name}{suffix}" for name in names}
  try:
    made = plan_outputs(files, outputs, root / "out")
  except InputError:
    return
  written = [os.path.join("out", output).lower() for each in made.values() for output in each]
  assert len(set(written)) == len(written) == 2 * len(names)
  parents = {os.path.dirname(path) for path in written}
  assert not parents & set(written)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("a.b.png", "a.b"),
    ("scan.NII.GZ", "scan"),
    ("scan.v2.gz", "scan.v2"),
    ("a", "a"),
    (".png", ".png"),
    ("u\u0308.png", "\u00fc"),
  ],
)
def test_names_of_named_files(tmp_path, name, expected):
  touch(tmp_path, name)
  assert list(find_inputs([tmp_path / name], SUFFIXES).files) == [expected]
