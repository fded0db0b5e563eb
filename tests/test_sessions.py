"""`run.json`: sessions one after another, whatever ended them."""

import json
import subprocess

import pytest

import jseg.config
from jseg.data import ClassInfo
from jseg.run import Run
from jseg.sessions import Session, revision
from jseg.types import InputError


@pytest.fixture
def run(tmp_path):
  return Run(tmp_path, jseg.config.default("unet"), ClassInfo(["a", "b"]))


def sessions(run):
  return json.loads(run.files.sessions.read_text())["sessions"]


def test_a_session_says_what_trained_and_how_long(run, monkeypatch):
  monkeypatch.setattr("sys.argv", ["/home/somebody/bin/jseg", "train", "--workdir=a b"])
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1  --xla_b=2")
  with Session(run, "abc", 5) as session:
    (begun,) = sessions(run)
    assert (begun["outcome"], begun["ended"]) == ("running", None)
    with session.compiling(6), session.timing("save"):
      pass
    session.save(7)
  (ended,) = sessions(run)
  assert ended["outcome"] == "finished"
  assert ended["ended"] >= ended["started"]
  assert ended["steps"] == [5, 7]
  assert ended["command"] == "jseg train '--workdir=a b'"
  assert "somebody" not in json.dumps(ended)
  assert ended["data"] == {"name": "shapes", "fingerprint": "abc"}
  assert set(ended["versions"]) == {"jseg", "python", "jax", "jaxlib", "flax", "optax"}
  assert ended["devices"] == {"platform": "cpu", "kind": "cpu", "count": 4}
  assert ended["xla_flags"] == ["--xla_a=1", "--xla_b=2"]
  assert list(ended["seconds"]) == ["compile", "train", "evaluate", "save"]


def test_only_the_first_call_of_a_session_compiles(run, monkeypatch):
  clock = iter(range(100))
  monkeypatch.setattr("time.perf_counter", lambda: next(clock))
  with Session(run, "abc", 5) as session:
    for step in (6, 7, 8):
      with session.compiling(step):
        pass
  assert sessions(run)[0]["seconds"]["compile"] == 1


def test_sessions_are_added_and_those_that_were_killed_are_named(run):
  killed = Session(run, "abc", 0)
  killed.__enter__()
  killed.save(4)
  with Session(run, "abc", 4) as stopped:
    stopped.end("stopped")
  with pytest.raises(InputError, match="full"), Session(run, "abc", 6):
    raise InputError("full")
  found = [(each["outcome"], each["steps"], each["ended"] is None) for each in sessions(run)]
  assert found == [("killed", [0, 4], True), ("stopped", [4, 4], False), ("failed", [6, 6], False)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sessions": [1]}'])
def test_a_damaged_file_is_told(run, text):
  run.files.sessions.write_text(text)
  with pytest.raises(InputError, match=r"run.json is damaged .*; move it away: the run goes on"):
    Session(run, "abc", 0)


def git(folder, *words):
  identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
  subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_the_revision_of_a_working_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
  assert revision(tmp_path) is None
  git(tmp_path, "init")
  assert revision(tmp_path) is None  # no commit
  (tmp_path / "a.py").write_text("1")
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-m", "a")
  found = revision(tmp_path)
  assert len(found["revision"]) == 40
  assert not found["dirty"]
  (tmp_path / "b.py").write_text("untracked")
  assert not revision(tmp_path)["dirty"]
  (tmp_path / "a.py").write_text("2")
  assert revision(tmp_path) == {**found, "dirty": True}
  monkeypatch.setenv("PATH", "")
  assert revision(tmp_path) is None
