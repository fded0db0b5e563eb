"""`--fix`: what is certain is repaired in a copy, what isn't is told, nothing is written over."""

import hashlib
import json
import unicodedata

import numpy as np
import pytest
from helpers.files import add_classes
from helpers.mangled import CHANGES, encode, exif, indexed, make_folder, write
from PIL import Image

from jseg import data
from jseg.cli import main
from jseg.data import repair_folder
from jseg.data.files.images import decode_raw
from jseg.data.sources.folder import folder_source
from jseg.types import InputError

LABELS = np.array([[0, 0, 1, 1, 2, 2]] * 4, np.uint8)
GRAY = np.zeros((4, 6), np.uint8)


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "set"
  add_classes(root, classes=["a", "b", "c"])
  write(root / "train" / "images" / "x.png", encode(np.zeros((4, 6, 3), np.uint8)))
  write(root / "train" / "masks" / "x.png", encode(LABELS))
  return root


def contents(root):
  files = [path for path in sorted(root.rglob("*")) if path.is_file()]
  return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def repaired(root, out):
  """Labels in the copy by name, and what was done; the origin stays what it was."""
  before = contents(root)
  repairs = repair_folder(root, out)
  assert contents(root) == before
  items = folder_source(out).splits["train"]
  return {item.name: decode_raw(item.load().label) for item in items}, repairs


def is_plain(path):
  with Image.open(path) as image:
    return (image.format, image.mode, path.read_bytes()[24]) == ("PNG", "L", 8)


def pixels(path):
  return decode_raw(path.read_bytes())


def test_a_good_folder_is_copied(root, tmp_path):
  labels, repairs = repaired(root, tmp_path / "out")
  assert (repairs.done, repairs.copied, repairs.refused) == ({}, 3, [])
  np.testing.assert_array_equal(labels["x"], LABELS)
  mask = ("train", "masks", "x.png")
  assert root.joinpath(*mask).read_bytes() == (tmp_path / "out").joinpath(*mask).read_bytes()


@pytest.mark.parametrize(
  ("name", "mask", "palette"),
  [
    ("x.png", indexed(1 + LABELS, [[9] * 3, [0] * 3, [255, 0, 0], [0, 255, 0]]), True),
    ("x.png", encode(np.array([[0] * 3, [255, 0, 0], [0, 255, 0]], np.uint8)[LABELS]), True),
    ("x.png", encode(np.repeat(LABELS[..., None], 3, -1)), False),
    ("x.png", encode(LABELS.astype(np.uint16)), False),
    ("x.pgm", encode(LABELS.astype(np.uint16), "PPM"), False),
    ("x.tif", encode(LABELS.astype(np.float32), "TIFF"), False),
    ("x.png", encode(np.rot90(LABELS, 2), exif=exif(3)), False),
  ],
  ids=["palette", "colors", "gray in three channels", "16 bits", "pgm", "floats", "EXIF"],
)
def test_masks_become_plain_class_numbers(name, mask, palette, root, tmp_path):
  if palette:
    add_classes(root, classes=["a", "b", "c"], palette=[[0] * 3, [255, 0, 0], [0, 255, 0]])
  (root / "train" / "masks" / "x.png").unlink()
  write(root / "train" / "masks" / name, mask)
  if name == "x.png" and "EXIF" not in str(mask):
    stored = encode(np.zeros((4, 6, 3), np.uint8), exif=exif(3))
    write(root / "train" / "images" / "x.png", stored)
  labels, repairs = repaired(root, tmp_path / "out")
  np.testing.assert_array_equal(labels["x"], LABELS)
  assert is_plain(tmp_path / "out" / "train" / "masks" / "x.png")
  assert any("train/masks/x.png" in names for names in repairs.done.values())


def test_numbers_are_those_of_classes_json(root, tmp_path):
  add_classes(root, classes=["a", "b"], mask_values=[0, 255], ignore_label=7)
  write(root / "train" / "masks" / "x.png", indexed(LABELS % 2, [[0] * 3, [255] * 3], bits=1))
  # An index is certain only by its color.
  labels, repairs = repaired(root, tmp_path / "one")
  assert repairs.done == {}
  np.testing.assert_array_equal(labels["x"], LABELS % 2)
  write(root / "train" / "masks" / "x.png", encode((LABELS % 2).astype(bool)))
  labels, _ = repaired(root, tmp_path / "two")
  np.testing.assert_array_equal(labels["x"], LABELS % 2)
  stored = pixels(tmp_path / "two" / "train" / "masks" / "x.png")
  np.testing.assert_array_equal(stored, LABELS % 2 * 255)


def test_ids_of_objects_stay_what_they_are(root, tmp_path):
  add_classes(root, task="instance")
  ids = LABELS.astype(np.int32) * 30000
  write(root / "train" / "masks" / "x.png", encode(ids.astype(np.float32), "TIFF"))
  repair_folder(root, tmp_path / "out")
  stored = np.asarray(Image.open(tmp_path / "out" / "train" / "masks" / "x.png"))
  assert stored.dtype == np.uint16
  np.testing.assert_array_equal(
    stored, np.where(ids > 65535, 0, ids)
  ) if ids.max() < 65536 else None


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_drawn_on_stored_pixels_are_turned_where_sizes_show_it(orientation, root, tmp_path):
  image = np.repeat(LABELS[..., None] * 100, 3, -1)
  write(root / "train" / "images" / "x.png", encode(image, exif=exif(orientation)))
  labels, repairs = repaired(root, tmp_path / "out")
  upright = data.read_image(tmp_path / "out" / "train" / "images" / "x.png")
  assert upright.shape == (6, 4, 3)
  np.testing.assert_array_equal(upright[..., 0], labels["x"] * 100)
  assert repairs.done == {"EXIF's turn is applied": ["train/images/x.png", "train/masks/x.png"]}


def test_what_is_not_certain_stays_and_is_told(root, tmp_path):
  write(root / "train" / "images" / "x.png", encode(np.zeros((4, 6, 3), np.uint8), exif=exif(3)))
  write(root / "train" / "images" / "lone.png", encode(GRAY))
  repairs = repair_folder(root, tmp_path / "out")
  assert repairs.done == {}
  before, after = data.check_folder(root), data.check_folder(tmp_path / "out")
  assert [note.kind for note in after.notes] == [note.kind for note in before.notes] == ["turned"]
  assert [problem.kind for problem in after.problems] == ["partner"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_classes_json_is_saved_as_utf8(encoding, root, tmp_path):
  text = json.dumps({"classes": ["a", "ä", "c"]}, ensure_ascii=False)
  (root / "classes.json").write_bytes(text.encode(encoding))
  _, repairs = repaired(root, tmp_path / "out")
  assert (tmp_path / "out" / "classes.json").read_bytes() == text.encode()
  (done,) = repairs.done
  assert done.endswith("becomes UTF-8")


def test_an_encoding_that_is_not_certain_is_refused(root, tmp_path):
  (root / "classes.json").write_bytes('{"classes": ["ä"]}'.encode("latin-1"))
  with pytest.raises(InputError, match="is not encoded in UTF-8"):
    repair_folder(root, tmp_path / "out")


def test_names_become_nfc(root, tmp_path):
  name = unicodedata.normalize("NFD", "ü")
  for kind in ("images", "masks"):
    write(root / "train" / kind / "cam" / f"{name}.png", encode(GRAY))
  labels, repairs = repaired(root, tmp_path / "out")
  assert sorted(labels) == [unicodedata.normalize("NFC", "cam/ü"), "x"]
  assert [len(names) for names in repairs.done.values()] == [2]


def test_nothing_is_written_over_or_in_place(root, tmp_path):
  write(tmp_path / "full" / "precious.txt", b"mine")
  for out, message in (
    (root, "must lie outside"),
    (root / "fixed", "must lie outside"),
    (tmp_path, "must lie outside"),
    (tmp_path / "full", "is there already"),
    (tmp_path / "full" / "precious.txt", "is there already"),
    (tmp_path / "full" / "precious.txt" / "out", "can't be written"),
  ):
    with pytest.raises(InputError, match=message):
      repair_folder(root, out)
  assert (tmp_path / "full" / "precious.txt").read_bytes() == b"mine"


def test_two_masks_of_one_name_are_copied_as_they_are(root, tmp_path):
  write(root / "train" / "masks" / "x.tif", encode(LABELS.astype(np.float32), "TIFF"))
  assert [problem.kind for problem in data.check_folder(root).problems] == ["twice"]
  assert repair_folder(root, tmp_path / "out").done == {}
  for name in ("x.png", "x.tif"):
    copy = tmp_path / "out" / "train" / "masks" / name
    assert copy.read_bytes() == (root / "train" / "masks" / name).read_bytes()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_copy_is_never_worse(change, tmp_path):
  """Masks that were read are read as the same, and no problem is new."""
  rng = np.random.default_rng(1)
  make_folder(tmp_path / "set", rng)
  change(tmp_path / "set", rng)
  try:
    before = data.check_folder(tmp_path / "set")
  except InputError:
    return
  repair_folder(tmp_path / "set", tmp_path / "out")
  after = data.check_folder(tmp_path / "out")
  assert len(after.problems) <= len(before.problems)
  if before.ok:
    for split, contents_ in before.splits.items():
      np.testing.assert_array_equal(after.splits[split].pixels, contents_.pixels)


# The command.


def run(*words):
  """Exit status of `jseg`."""
  try:
    main(list(map(str, words)))
  except SystemExit as error:
    return 1 if isinstance(error.code, str) else error.code
  return 0


def test_exit_status_is_by_severity(root, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert run("check-data", root) == 0
  assert (tmp_path / "contact_sheet.png").is_file()
  add_classes(root, classes=["a", "b", "c", "never"])
  assert run("check-data", root) == 0
  assert "No errors; 1 warning(s)." in capsys.readouterr().out
  assert run("check-data", root, "--strict") == 1
  write(root / "train" / "masks" / "x.png", b"")
  assert run("check-data", root) == 1


def test_json_is_all_of_stdout_and_no_sheet_is_drawn(root, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  write(root / "train" / "masks" / "x.png", encode(LABELS.astype(np.uint16)))
  assert run("check-data", root, "--json", "--fix", "out") == 0
  content = json.loads(capsys.readouterr().out)
  assert content["ok"]
  assert content["fixed"]["done"] == {"saved with 8 or 16 bits": ["train/masks/x.png"]}
  assert not (tmp_path / "contact_sheet.png").exists()
  (root / "classes.json").unlink()
  assert run("check-data", root, "--json") == 1
  content = json.loads(capsys.readouterr().out)
  assert not content["ok"]
  assert "classes.json is missing" in content["problems"][0]["problem"]


@pytest.mark.parametrize(
  ("sheet", "message"),
  [
    ("sheet", "must end in .png"),
    (".", "must end in .png"),
    ("set/train/images/x.png", "would lie among the data of"),
  ],
)
def test_the_place_of_the_sheet_is_tried_first(sheet, message, root, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = contents(tmp_path)
  with pytest.raises(SystemExit, match=message):
    main(["check-data", str(root), "--sheet", sheet])
  assert contents(tmp_path) == before


def test_brackets_in_a_path_are_no_markup(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  make_folder(tmp_path / "set [v2]", np.random.default_rng(0))
  assert run("check-data", "set [v2]", "--sheet", "a [red].png") == 0
  output = capsys.readouterr().out
  assert "set [v2]" in output
  assert "overlays: a [red].png" in output
