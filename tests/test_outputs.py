"""Places that are written to are tried first, and say what is wrong with them."""

import errno
import os
import pathlib
import tempfile
import types

import jax
import numpy as np
import pytest
from helpers.files import add_classes, add_pair
from ml_collections import ConfigDict

from jseg import cli
from jseg.commands.common import run_or_exit
from jseg.data.builder import prepare
from jseg.loop import use_compilation_cache
from jseg.outputs import WriteError, try_file, try_folder, write_text
from jseg.types import InputError


def test_what_can_be_written_is_left_as_it_is(tmp_path):
  try_folder(tmp_path / "a" / "b [v2]", "name another")
  try_file(tmp_path / "c" / "d.png", "name another", (".png",))
  (tmp_path / "old.txt").write_text("old")
  try_file(tmp_path / "old.txt", "name another")
  assert (tmp_path / "old.txt").read_text() == "old"
  assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b [v2]", "c", "old.txt"]


@pytest.mark.parametrize(
  ("place", "match"),
  [
    ("file", r"file can't be written \(it is a file and no folder\); name another --out"),
    ("file/sub/deep", r"deep can't be written \(.*/file is a file and no folder\)"),
    ("link", r"link can't be written"),
    ("n" * 300, r"File name too long"),
    ("/proc/nowhere/out", r"/proc/nowhere/out can't be written \(No such file or directory\)"),
  ],
)
def test_folders_that_cannot_be(tmp_path, place, match):
  (tmp_path / "file").write_text("mine")
  (tmp_path / "link").symlink_to(tmp_path / "file")
  with pytest.raises(InputError, match=match):
    try_folder(tmp_path / place, "name another --out")
  assert (tmp_path / "file").read_text() == "mine"


def refuse(code):
  def fail(*_, **__):
    raise OSError(code, os.strerror(code))

  return fail


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
  # For root no folder is read-only: what is simulated is the answer of the system.
  monkeypatch.setattr(tempfile, "TemporaryFile", refuse(errno.EROFS))
  with pytest.raises(InputError, match=r"can't be written \(Read-only file system\); mount it"):
    try_folder(tmp_path, "mount it")
  monkeypatch.setattr(pathlib.Path, "mkdir", refuse(errno.EACCES))
  with pytest.raises(InputError, match=r"x can't be written \(Permission denied\)"):
    try_folder(tmp_path / "x", "ask")


@pytest.mark.parametrize(
  ("name", "match"),
  [
    ("sheet", r"sheet must end in .png or .jpg, which says what kind of file it is; name another"),
    ("sheet.gif2", r"must end in .png"),
    ("folder.png", r"folder.png is a folder and can't be written as a file"),
    ("file/a.png", r"file can't be written \(it is a file and no folder\)"),
  ],
)
def test_files_that_cannot_be(tmp_path, name, match):
  (tmp_path / "file").write_text("mine")
  (tmp_path / "folder.png").mkdir()
  with pytest.raises(InputError, match=match):
    try_file(tmp_path / name, "name another", (".png", ".jpg"))


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  write_text(path, "old é")
  monkeypatch.setattr(pathlib.Path, "replace", refuse(errno.ENOSPC))
  with pytest.raises(WriteError, match=r"a.json can't be written \(No space.*mend that"):
    write_text(path, "new")
  assert path.read_text("utf-8") == "old é"
  assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
  ("sheet", "match"),
  [
    ("sheet", r"sheet must end in .png or"),
    ("data/train/images/a.png", r"would lie among the data of .*data; name another --sheet"),
    ("data/classes.json/a.png", r"would lie among|is a file and no folder"),
    ("train", r"must end in"),
  ],
)
def test_the_sheet_is_tried_before_the_data_are_read(tmp_path, monkeypatch, sheet, match):
  add_classes(tmp_path / "data")
  add_pair(tmp_path / "data" / "train", "a")
  monkeypatch.setattr("jseg.data.check_folder", lambda _: pytest.fail("work has begun"))
  with pytest.raises(SystemExit, match=match):
    cli.main(["check-data", str(tmp_path / "data"), "--sheet", str(tmp_path / sheet)])
  assert not (tmp_path / "data" / "train" / "images" / "a.png").exists()


def test_the_sheet_makes_its_folder(tmp_path):
  add_classes(tmp_path / "data")
  for split in ("train", "val"):
    add_pair(tmp_path / "data" / split, "a\nb" if split == "val" else "a", np.eye(4, 6))
  sheet = tmp_path / "new [1]" / "sheet.png"
  cli.main(["check-data", str(tmp_path / "data"), "--sheet", str(sheet)])
  assert sheet.is_file()


def no_home(monkeypatch):
  def fail(_):
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr(pathlib.Path, "expanduser", fail)
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)


@pytest.mark.parametrize("cache", ["~/.cache/jseg", "/proc/nowhere/cache"])
def test_without_a_place_for_compiled_programs_there_is_none(monkeypatch, capsys, cache):
  if cache.startswith("~"):
    no_home(monkeypatch)
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  before = jax.config.jax_compilation_cache_dir
  use_compilation_cache(ConfigDict({"compilation_cache": cache}))
  assert jax.config.jax_compilation_cache_dir == before
  assert "compiled programs are not kept: " in capsys.readouterr().out


def test_without_a_home_prepared_data_need_a_folder(monkeypatch, tmp_path):
  no_home(monkeypatch)
  monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", "~/tensorflow_datasets")
  monkeypatch.chdir(tmp_path)
  source = types.SimpleNamespace(problems=[], fingerprint=lambda: "0" * 16)
  with pytest.raises(InputError, match=r"data.data_dir: there is no home .*name a folder"):
    prepare(source, "x", None)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_entered_is_named(monkeypatch):
  def forbidden():
    raise PermissionError(errno.EACCES, "Permission denied", "/root/photos")

  with pytest.raises(SystemExit, match="error: /root/photos: Permission denied; change that"):
    run_or_exit(forbidden)


def test_ctrl_c_leaves_no_traceback():
  def stop():
    raise KeyboardInterrupt

  with pytest.raises(SystemExit) as info:
    run_or_exit(stop)
  assert info.value.code == 130
