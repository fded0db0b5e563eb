"""JSON of a run: whatever its bytes are, one message names file, fault and remedy."""

import json
import os
import pathlib

import numpy as np
import pytest
from helpers.fuzz import ROUNDS, damaged, odd_json
from helpers.tiny import tiny_config

from jseg import config as configs
from jseg import hosts, json_files
from jseg.data import ClassInfo
from jseg.log import MetricWriter
from jseg.outputs import sweep, write_bytes
from jseg.report import save_curves
from jseg.run import Files, Run
from jseg.types import InputError

LINES = [
  {"step": 1, "split": "train", "loss": 2.5, "miou": 0.5, "lr": 0.1},
  {"step": 2, "split": "val", "miou": None, "seconds": 3},
]


def fuzzed(content, rng, parse=json.loads):
  """Bytes or values of a file changed at random."""
  if rng.random() < 0.5:
    return damaged(content, rng)
  return json.dumps(odd_json(parse(content), rng)).encode()


def check(path, read, make):
  """Nothing but InputError is raised, and it names the file; some of the files are refused."""
  told = []
  for seed in range(ROUNDS):
    path.write_bytes(make(np.random.default_rng(seed)))
    try:
      read()
    except InputError as error:
      told.append(str(error))
  assert all(path.name in text for text in told)
  assert len(told) > ROUNDS / 4


def test_any_config(tmp_path):
  path = tmp_path / "config.json"
  configs.save(tiny_config("data"), path)
  content = path.read_bytes()
  check(path, lambda: configs.load(path), lambda rng: fuzzed(content, rng))


def test_any_classes(tmp_path):
  path = tmp_path / "classes.json"
  ClassInfo(("a", "b", "c"), ignore_color=(1, 2, 3), mask_values=(1, 2, 3)).save(path)
  content = path.read_bytes()
  check(path, lambda: ClassInfo.load(path), lambda rng: fuzzed(content, rng))


def test_any_metrics(tmp_path):
  path = tmp_path / "metrics.jsonl"
  content = "".join(map(json_files.line, LINES)).encode()

  def make(rng):
    if rng.random() < 0.5:
      return damaged(content, rng)
    odd = odd_json(LINES, rng)
    return "".join(
      json.dumps(line) + "\n" for line in (odd if isinstance(odd, list) else [odd])
    ).encode()

  check(path, lambda: json_files.read_metrics(path), make)


@pytest.mark.parametrize(
  ("content", "fault"),
  [
    (b"{", r"line 3 is damaged \(Expecting"),
    (b"\xff\xfe\x00", r"line 3 is damaged \(.*codec"),
    (b"[1]", r"line 3 is damaged \(it is no JSON object"),
    (b'{"split": "train"}', r"line 3 is damaged \('step' is no number"),
    (b'{"step": 3, "split": "train", "loss": "x"}', r"line 3 is damaged \('loss' is no number"),
  ],
)
def test_a_bad_line_of_metrics_is_named_on_resume(tmp_path, content, fault):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes("".join(map(json_files.line, LINES)).encode() + content + b"\n")
  for read in (
    lambda: MetricWriter(Files(tmp_path), 9),
    lambda: save_curves(path, tmp_path / "curves.png"),
  ):
    with pytest.raises(InputError, match=rf"metrics.jsonl, {fault}.*mend or delete that line"):
      read()


def test_half_a_line_is_written_again_and_events_are_there_at_once(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(map(json_files.line, LINES)) + '{"step": 3, "sp')
  writer = MetricWriter(Files(tmp_path), 1)
  writer.write(2, "val", {"miou": 0.25})
  # Not closed: as of a process that is killed now.
  assert [line["step"] for line in json_files.read_metrics(path)] == [1, 2]
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert b"val/miou" in events.read_bytes()
  writer.close()


@pytest.mark.parametrize("kind", ["list", "binary", "folder", "empty"])
def test_something_else_in_place_of_the_configuration(tmp_path, kind):
  path = tmp_path / "config.json"
  if kind == "folder":
    path.mkdir()
  else:
    path.write_bytes({"list": b"[1]", "binary": bytes(range(256)), "empty": b""}[kind])
  with pytest.raises(InputError, match=r"config.json .*; mend it, or put back a copy"):
    Run.open(tmp_path)


def test_another_process_looks_at_a_run_when_the_first_has_written_it(tmp_path, monkeypatch):
  """A configuration that is half there would be damage to it."""
  path = tmp_path / "config.json"
  path.write_text('{"half": ')

  def written_by_the_first(_):
    configs.save(tiny_config("data"), path)

  monkeypatch.setattr(hosts, "on_first", written_by_the_first)
  run = Run.start(tmp_path, tiny_config("data"), ClassInfo(("a", "b")))
  assert run.files.config == path


class Killed(BaseException):
  """Ends the program here, as SIGKILL does."""


def test_a_kill_while_a_file_is_written_leaves_the_old_one_and_a_sweep_no_rest(
  tmp_path, monkeypatch
):
  path = tmp_path / "config.json"
  write_bytes(path, b"old")

  def kill(*_, **__):
    raise Killed

  for owner, name in ((os, "fsync"), (pathlib.Path, "replace")):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, kill)
      patch.setattr(pathlib.Path, "unlink", lambda *_, **__: None)
      with pytest.raises(Killed):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
  left = sorted(tmp_path.glob(".jseg-*"))
  assert len(left) == 2
  sweep(tmp_path)
  assert sorted(tmp_path.glob(".jseg-*")) == left  # of this process, which lives
  gone = left[0].with_name(left[0].name.replace(f"-{os.getpid()}-", "-999999999-"))
  left[0].rename(gone)
  sweep(tmp_path)
  assert sorted(tmp_path.glob(".jseg-*")) == left[1:]


def test_what_has_not_changed_is_not_written(tmp_path):
  path = tmp_path / "a.json"
  write_bytes(path, b"same")
  before = path.stat()
  write_bytes(path, b"same")
  assert path.stat().st_mtime_ns == before.st_mtime_ns
  assert path.stat().st_ino == before.st_ino
