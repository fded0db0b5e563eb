"""The record of a folder of results: what is done stays done, and nothing is mixed."""

import os

import pytest

from jseg.record import RECORD, Entry, Record, describe_source
from jseg.types import InputError

SETTINGS = {"step": 3, "weights": "ab", "tile": "True"}


def make(tmp_path, *names, settings=SETTINGS):
  """A folder in which files are done, as a call leaves it."""
  out = tmp_path / "out"
  out.mkdir(exist_ok=True)
  record = Record.read(out)
  record.begin({"run": "/runs/a", **settings}, [f"{name}.png" for name in names])
  for name in names:
    source = tmp_path / f"{name}.jpg"
    source.write_bytes(b"photo")
    (out / f"{name}.png").write_bytes(b"mask")
    record.add(name, Entry(describe_source(source), [f"{name}.png"], [0.5]))
  return out


def missing(tmp_path, *names, settings=SETTINGS, overwrite=False):
  files = {name: tmp_path / f"{name}.jpg" for name in names}
  failed = {}
  record = Record.read(tmp_path / "out")
  return list(record.missing(files, settings, failed, overwrite=overwrite)), failed


def test_what_is_done_is_not_done_again(tmp_path):
  make(tmp_path, "a", "b")
  (tmp_path / "c.jpg").write_bytes(b"new")
  assert missing(tmp_path, "a", "b", "c") == (["c"], {})
  assert Record.read(tmp_path / "out").results() == {"a": [0.5], "b": [0.5]}
  assert missing(tmp_path, "a", "c", overwrite=True) == (["a", "c"], {})


def test_a_result_that_is_gone_or_of_another_content_is_made_again(tmp_path):
  out = make(tmp_path, "a", "b", "c", "d")
  (out / "a.png").unlink()
  (tmp_path / "b.jpg").write_bytes(b"another photo")
  os.utime(tmp_path / "c.jpg", (1, 1))
  assert missing(tmp_path, "a", "b", "c", "d")[0] == ["a", "b", "c"]


def test_a_photo_that_is_gone_is_named(tmp_path):
  make(tmp_path, "a")
  (tmp_path / "a.jpg").unlink()
  todo, failed = missing(tmp_path, "a")
  assert not todo
  assert "a.jpg: can't be read (No such file" in failed["a"]


def test_half_a_line_is_not_done(tmp_path):
  out = make(tmp_path, "a", "b")
  text = (out / RECORD).read_text()
  (out / RECORD).write_text(text[:-5])
  assert list(Record.read(out).done) == ["a"]
  # Its files are known all the same: they may be replaced.
  Record.read(out).refuse_strangers(["b.png"])


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"step": 6}, r"step: was 3, is 6\); name another --out, or add --overwrite"),
    ({"weights": "cd"}, r"weights: was ab, is cd"),
    ({"tile": None}, r"tile: was True, is None"),
    ({"margin": "8"}, r"margin: was None, is 8"),
  ],
)
def test_other_settings_are_not_mixed(tmp_path, settings, match):
  make(tmp_path, "a", "b")
  changed = {k: v for k, v in {**SETTINGS, **settings}.items() if v is not None}
  with pytest.raises(InputError, match=match):
    missing(tmp_path, "a", settings=changed)
  # Not even with --overwrite while others stay.
  with pytest.raises(InputError, match=r"also of 1 file\(s\) that aren't given now, such as b"):
    missing(tmp_path, "a", settings=changed, overwrite=True)
  assert missing(tmp_path, "a", "b", settings=changed, overwrite=True)[0] == ["a", "b"]


def test_a_run_that_moved_is_the_same(tmp_path):
  out = make(tmp_path, "a")
  record = Record.read(out)
  record.begin({"run": "/elsewhere", **SETTINGS}, [])
  assert missing(tmp_path, "a") == ([], {})


def test_another_photo_of_the_same_name_is_refused(tmp_path):
  make(tmp_path, "a")
  other = tmp_path / "day2"
  other.mkdir()
  (other / "a.jpg").write_bytes(b"other photo")
  record = Record.read(tmp_path / "out")
  with pytest.raises(InputError, match=r"result of .*a.jpg, which bears the same name as .*day2/a"):
    record.missing({"a": other / "a.jpg"}, SETTINGS, {}, overwrite=False)
  # The same photo in another place is the same photo.
  moved = tmp_path / "moved.jpg"
  (tmp_path / "a.jpg").rename(moved)
  record = Record.read(tmp_path / "out")
  assert record.missing({"a": moved}, SETTINGS, {}, overwrite=False) == {}


def test_files_that_are_no_results_are_not_replaced(tmp_path):
  out = make(tmp_path, "a")
  (out / "b.png").write_bytes(b"painted by hand")
  (out / "c.png").symlink_to(tmp_path / "nowhere")
  record = Record.read(out)
  record.refuse_strangers(["a.png", "d.png"])
  with pytest.raises(
    InputError, match=r"b.png, and 1 more like it, is there already and isn't kno"
  ):
    record.refuse_strangers(["a.png", "b.png", "c.png"])


@pytest.mark.parametrize("text", ["", "hello\n", "[]\n", '{"a": 1}\n', "\x00\n"])
def test_something_else_of_the_records_name(tmp_path, text):
  (tmp_path / RECORD).write_text(text)
  with pytest.raises(InputError, match="is no record of jseg predict, or damaged"):
    Record.read(tmp_path)


def test_failures_are_written_down_and_tried_again(tmp_path):
  out = make(tmp_path, "a")
  (tmp_path / "bad.jpg").write_bytes(b"x")
  record = Record.read(out)
  record.add_failure("bad", "damaged [/b]")
  assert '"failed": "damaged [/b]"' in (out / RECORD).read_text()
  assert missing(tmp_path, "a", "bad")[0] == ["bad"]


def test_names_that_were_decomposed_are_known(tmp_path):
  """Names were once as macOS decomposes them."""
  out = make(tmp_path, "u\u0308")
  record = Record.read(out)
  assert record.missing({"\u00fc": tmp_path / "u\u0308.jpg"}, SETTINGS, {}, overwrite=False) == {}
  assert record.owned == {"\u00fc.png", "u\u0308.png"}
  assert record.results() == {"\u00fc": [0.5]}
