"""Two processes never write one folder, and a dead one doesn't keep it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jseg import lock
from jseg.lock import locked
from jseg.owner import Owner
from jseg.run import held
from jseg.types import InputError

HOLD = """
import pathlib, sys, time
from jseg.lock import locked
with locked(pathlib.Path(sys.argv[1]), "it", "wait"):
  print("held", flush=True)
  time.sleep(60)
"""


def test_the_second_is_refused_and_death_releases(tmp_path):
  path = tmp_path / "run" / "lock"
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout.readline() == "held\n"
    with (
      pytest.raises(
        InputError, match=rf"in use by process {process.pid} on .* since 20.*--workdir"
      ),
      held(tmp_path / "run"),
    ):
      pass
    assert [file.name for file in path.parent.iterdir()] == ["lock"]
  finally:
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert path.exists()
  with locked(path, "it", "wait"):
    assert json.loads(path.read_text())["pid"] == os.getpid()
    with pytest.raises(InputError, match="in use by"), locked(path, "it", "wait"):
      pass
  assert not path.exists()


def left_by(path, **changes):
  path.write_text(json.dumps({"host": "node7", "pid": 12, "since": "2026-11-01", **changes}))


QUICK = {"beat": 0.02, "silent": 0.3}


@contextlib.contextmanager
def living(path):
  """Somebody else who touches the file."""
  ended = threading.Event()

  def touch():
    while not ended.wait(0.02):
      os.utime(path)

  other = threading.Thread(target=touch)
  other.start()
  try:
    yield
  finally:
    ended.set()
    other.join()


def test_a_holder_on_another_machine_that_is_silent_is_told_and_replaced(tmp_path, capsys):
  path = tmp_path / "lock"
  left_by(path)
  with locked(path, "it", "wait", **QUICK):
    assert json.loads(path.read_text())["host"] == Owner.here().host
  told = " ".join(capsys.readouterr().err.split())
  assert "process 12 on node7 since 2026-11-01 gives no sign of life" in told


def test_a_holder_on_another_machine_that_lives_is_not_replaced(tmp_path):
  path = tmp_path / "lock"
  left_by(path)
  with (
    living(path),
    pytest.raises(InputError, match=r"it is in use by process 12 on node7 .*gone.*remove .*lock"),
    locked(path, "it", "wait", **QUICK),
  ):
    pass
  assert json.loads(path.read_text())["host"] == "node7"


@pytest.mark.parametrize("alive", [True, False])
def test_file_systems_without_locks(tmp_path, monkeypatch, alive):
  monkeypatch.setattr(lock, "_flock", lambda file: None)
  path = tmp_path / "lock"
  process = subprocess.Popen(["sleep", "60"])
  left_by(path, host=Owner.here().host, pid=process.pid)
  if not alive:
    process.kill()
    process.wait()
    with locked(path, "it", "wait", **QUICK):
      pass
    return
  with (
    living(path),
    pytest.raises(InputError, match="in use by process"),
    locked(path, "it", "wait", **QUICK),
  ):
    pass
  process.kill()
  process.wait()


def test_what_no_lock_left_is_replaced(tmp_path):
  path = tmp_path / "lock"
  path.write_text("half a li")
  with locked(path, "it", "wait", **QUICK):
    pass


def test_it_says_that_it_lives(tmp_path):
  path = tmp_path / "lock"
  with locked(path, "it", "wait", **QUICK):
    os.utime(path, (1, 1))
    until = time.monotonic() + 30
    while path.stat().st_mtime == 1:
      assert time.monotonic() < until
      time.sleep(0.01)
