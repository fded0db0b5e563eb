"""Traces: of which steps, and what is said of them. The profiler itself is JAX's."""

import errno

import jax
import jax.numpy as jnp
import pytest

from jseg.outputs import WriteError
from jseg.profile import Trace


@pytest.fixture
def calls(monkeypatch, tmp_path):
  """What the profiler was told, with the steps that came between."""
  told = []

  def start(folder, *, create_perfetto_trace):
    assert create_perfetto_trace
    told.append("start")

  def stop():
    (tmp_path / "plugins" / "profile" / "2026").mkdir(parents=True, exist_ok=True)
    told.append("stop")

  monkeypatch.setattr("jax.profiler.start_trace", start)
  monkeypatch.setattr("jax.profiler.stop_trace", stop)
  return told


def trace(calls, folder, first, last, count):
  with Trace(folder, first, count) as traced:
    for step in range(first + 1, last + 1):
      with traced.step(step):
        calls.append(step)
      traced.ends(step, None)


def test_steps_are_traced_when_all_is_compiled(calls, tmp_path, capsys):
  trace(calls, tmp_path, 10, 17, 3)
  assert calls == [11, 12, "start", 13, 14, 15, "stop", 16, 17]
  said = capsys.readouterr().out
  assert "traced steps 13 to 15. To open the trace:" in said
  assert f"xprof --logdir {tmp_path}" in said
  assert str(tmp_path / "plugins" / "profile" / "2026" / "perfetto_trace.json.gz") in said


def test_a_session_that_is_too_short(calls, tmp_path, capsys):
  trace(calls, tmp_path, 0, 4, 3)
  assert calls == [1, 2, "start", 3, 4, "stop"]
  assert "traced steps 3 to 4." in capsys.readouterr().out
  trace(calls, tmp_path, 0, 2, 3)
  assert "nothing is traced: the session ended before step 3" in capsys.readouterr().out


def test_nothing_is_traced_unless_asked(calls, tmp_path, capsys):
  trace(calls, tmp_path, 0, 6, 0)
  assert calls == [1, 2, 3, 4, 5, 6]
  assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_told(calls, tmp_path, monkeypatch):
  def full():
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("jax.profiler.stop_trace", full)
  with pytest.raises(WriteError, match=r"can't be written \(No space left"):
    trace(calls, tmp_path, 0, 6, 2)


@pytest.mark.skipif(jax.profiler.ProfileData is None, reason="JAX 0.7.0 doesn't read traces")
def test_a_trace_names_its_steps(tmp_path):
  double = jax.jit(lambda x: 2 * x)
  with Trace(tmp_path, 10, 2) as traced:
    for step in range(11, 17):
      with traced.step(step):
        x = double(jnp.ones(3))
      traced.ends(step, x)
  (file,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
  planes = jax.profiler.ProfileData.from_file(str(file)).planes
  events = [event for plane in planes for line in plane.lines for event in line.events]
  steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
  assert sorted(steps) == [13, 14]
