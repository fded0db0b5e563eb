"""Which files are predicted, and that no result meets anything else."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jseg.collection import find_inputs, plan_outputs, stem
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
  assert list(found.files) == ["S2", "a", "b", "s", "day 1/a", "day 1/deep/x.y"]
  assert found.files["day 1/a"] == tmp_path / "in" / "day 1" / "a.png"
  assert plan(tmp_path / "in", tmp_path / "out")["day 1/a"] == [
    "day 1/a.png",
    "day 1/a_overlay.png",
  ]
  assert not found.unused
  assert not found.broken


def test_what_is_hidden_is_no_input_and_what_is_not_read_is_told(tmp_path):
  names = ("._a.png", ".DS_Store", ".hidden/b.png", "a.png", "x.HEIC", "y.heic", "Thumbs.db", "raw")
  found = find_inputs([touch(tmp_path, *names)], SUFFIXES)
  assert list(found.files) == ["a"]
  assert found.unused == {".heic": ["x.HEIC", "y.heic"], ".db": ["Thumbs.db"], "": ["raw"]}
  notes = "\n".join(found.notes())
  assert "2 file(s) that end in .heic (x.HEIC, y.heic); convert" in notes
  assert "1 file(s) that have no suffix (raw)" in notes


def test_links_to_nowhere_and_in_circles(tmp_path):
  touch(tmp_path / "in", "a.png", "sub/b.png")
  (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
  (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
  touch(tmp_path / "other", "c.png")
  (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
  found = find_inputs([tmp_path / "in"], SUFFIXES)
  assert list(found.files) == ["a", "linked/c", "sub/b"]
  assert list(found.broken) == ["gone.png"]
  assert "is a link to" in found.broken["gone.png"]


def test_a_named_file_is_taken_whatever_it_is_called(tmp_path):
  touch(tmp_path, "photo", "scan.v2.heic", ".png")
  files = find_inputs([tmp_path / n for n in ("photo", "scan.v2.heic", ".png")], SUFFIXES).files
  assert list(files) == ["photo", "scan.v2", ".png"]
  # The same file twice is one file.
  twice = [tmp_path / "photo", tmp_path / "." / "photo"]
  assert list(find_inputs(twice, SUFFIXES).files) == ["photo"]


def test_results_of_earlier_calls_are_no_inputs(tmp_path):
  touch(tmp_path, "a.jpg", "out/a.png", "out/a_overlay.png", "out/sub/b.png", "out/mine.png")
  record = Record(tmp_path / "out")
  record.begin({}, ["a.png", "a_overlay.png", "sub/b.png"])
  assert list(find_inputs([tmp_path], SUFFIXES).files) == ["a", "out/mine"]


@pytest.mark.parametrize("names", [(), ("x.txt",), ("._a.png",)])
def test_nothing_to_predict(tmp_path, names):
  with pytest.raises(InputError, match=r"holds no file of \.jpg, \.nii, .*\.png"):
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
    (("über.jpg", "u\u0308ber.jpg"), "out", r"would both be written"),
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
    ("x/scan.NII.GZ", "x/scan"),
    ("a", "a"),
    (".png", ".png"),
    ("d.x/a", "d.x/a"),
  ],
)
def test_stems(name, expected):
  assert stem(name, SUFFIXES) == expected
