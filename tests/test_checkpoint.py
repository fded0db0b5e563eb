import contextlib
import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jseg.checkpoint import Checkpoints
from jseg.loss_scale import begin
from jseg.optim import make_optimizer
from jseg.state import TrainState
from jseg.step import parallel
from jseg.types import InputError


def make_state(step, width=3, ema=False, optimizer=None):
  params = {"layer": {"kernel": jnp.full((width, 2), float(step)), "bias": jnp.arange(2.0)}}
  return TrainState(
    step=jnp.array(step, jnp.int32),
    params=params,
    batch_stats={"mean": jnp.full(2, step / 7.0)},
    opt_state=(optimizer or optax.adamw(1e-3)).init(params),
    ema=jax.tree.map(lambda p: p + 1.0, params) if ema else {},
  )


def save_all(run, scores, **knobs):
  checkpoints = Checkpoints(run, **knobs)
  for step, miou in scores.items():
    checkpoints.save(make_state(step), {"next_index": step}, miou)
  checkpoints.wait()
  return checkpoints


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("ema", "freeze"), [(False, ()), (True, ()), (False, ("layer/bias",))])
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, ema, freeze):
  checkpoints = Checkpoints(tmp_path)
  optimizer = make_optimizer(lambda _: 0.1, optimizer="adamw", freeze=freeze)
  state = make_state(5, ema=ema, optimizer=optimizer)
  new = make_state(0, ema=ema, optimizer=optimizer)
  if ema:
    state, new = (
      state.replace(loss_scale=begin("float16")),
      new.replace(loss_scale=begin("float16")),
    )
    state.loss_scale["scale"] /= 8
  checkpoints.save(state, {"next_index": 5})
  checkpoints.wait()
  restored, iterator = checkpoints.restore(new)
  assert_equal(restored, state)
  assert iterator == {"next_index": 5}
  checkpoints.close()


@pytest.mark.parametrize("name", ["a [v2]", "sweep[lr=0.1]", "x*y?", "[!a]"])
def test_folders_may_be_called_like_patterns(tmp_path, name):
  # As the finished parts of another run, which a pattern would match.
  save_all(tmp_path / "a v", {7: None}).close()
  save_all(tmp_path / name, {10: 0.5, 20: 0.4}).close()
  checkpoints = Checkpoints(tmp_path / name)
  assert_equal(checkpoints.restore(make_state(0))[0], make_state(20))
  template = {"params": make_state(0).params, "batch_stats": make_state(0).batch_stats}
  assert_equal(checkpoints.restore_model(10, template), make_state(10).variables())
  checkpoints.close()


def test_a_run_that_moves_is_read_and_goes_on(tmp_path):
  # One of Orbax's two formats is written there, the other here.
  for before, after in (("plain", "a [v2]"), ("b [v2]", "also plain")):
    save_all(tmp_path / before, {10: None}).close()
    (tmp_path / before).rename(tmp_path / after)
    checkpoints = save_all(tmp_path / after, {20: None})
    assert checkpoints.steps() == [10, 20]
    assert_equal(checkpoints.restore(make_state(0))[0], make_state(20))
    checkpoints.close()


def test_a_backslash_is_refused_before_anything_is_saved(tmp_path):
  with pytest.raises(InputError, match="a backslash in its name; rename it"):
    Checkpoints(tmp_path / "a\\b")
  assert not list(tmp_path.iterdir())


def test_results_of_a_mapped_step_are_saved_without_a_warning(tmp_path, caplog):
  # Before JAX 0.8 they have a layout that Orbax can't name.
  batch = np.zeros((jax.local_device_count(), 1))
  state = parallel(lambda state, batch: state, in_axes=(None, 0))(make_state(5), batch)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state, {})
  checkpoints.wait()
  assert_equal(checkpoints.restore(make_state(0))[0], state)
  assert not [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
  checkpoints.close()


def test_latest_and_best_are_kept_also_by_the_next_start(tmp_path):
  scores = {10: 0.5, 20: 0.9, 30: None, 40: 0.3, 50: None}
  checkpoints = save_all(tmp_path, scores, keep=2)
  assert checkpoints.steps() == [20, 40, 50]
  checkpoints.close()
  checkpoints = save_all(tmp_path, {60: 0.4, 70: 0.1}, keep=2)
  assert checkpoints.steps() == [20, 60, 70]
  assert checkpoints.latest() == 70
  assert checkpoints.best() == 20
  checkpoints.close()


def test_picking(tmp_path):
  save_all(tmp_path, {10: 0.5, 20: 0.4}).close()
  checkpoints = Checkpoints(tmp_path, read_only=True)
  assert [checkpoints.pick(w) for w in ("best", "latest", "20", 10)] == [10, 20, 20, 10]
  with pytest.raises(
    InputError, match=r"no checkpoint '30'; there is best, latest, average:N .*, and 10, 20"
  ):
    checkpoints.pick("30")
  checkpoints.close()


def test_the_best_falls_back_to_the_latest(tmp_path):
  checkpoints = save_all(tmp_path, {10: None, 20: None})
  assert checkpoints.best() == 20
  checkpoints.close()


def test_evaluation_reads_the_average_where_there_is_one(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  state = make_state(5, ema=True)
  checkpoints.save(state, {})
  checkpoints.wait()
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path, read_only=True)
  template = {"params": make_state(0).params, "batch_stats": make_state(0).batch_stats}
  assert_equal(checkpoints.restore_model(5, template), state.variables())
  assert_equal(state.variables()["params"], state.ema)
  checkpoints.close()


def test_a_checkpoint_of_another_network(tmp_path):
  checkpoints = save_all(tmp_path, {10: None})
  with pytest.raises(
    InputError, match=r"another network .*layer/kernel: \(3, 2\) in the checkpoint, \(4, 2\) in"
  ):
    checkpoints.restore(make_state(0, width=4))
  template = {"params": {"other": jnp.zeros(1)}, "batch_stats": make_state(0).batch_stats}
  with pytest.raises(InputError, match=r"layer/bias: \(2,\) in the checkpoint, not in the network"):
    checkpoints.restore_model(10, template)
  checkpoints.close()


def test_nothing_there(tmp_path):
  with pytest.raises(InputError, match=r"has no checkpoints yet; train first"):
    Checkpoints(tmp_path / "nowhere", read_only=True)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(InputError, match=r"holds no finished checkpoint"):
    Checkpoints(tmp_path, read_only=True)


ITEMS = ["model", "training", "data", "checksums", "_CHECKPOINT_METADATA"]


def damage(path, kind):
  """Removes, empties or halves a file, or the files of a folder."""
  files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
  if kind == "gone" and path.is_dir():
    shutil.rmtree(path)
    return
  for file in files:
    content = file.read_bytes()
    if kind == "gone":
      file.unlink()
    else:
      file.write_bytes(content[: len(content) // 2 if kind == "half" else 0])


@pytest.mark.parametrize("kind", ["gone", "empty", "half"])
@pytest.mark.parametrize("item", ITEMS)
def test_damage_is_told_and_training_goes_on_from_the_checkpoint_before(
  tmp_path, item, kind, capsys
):
  save_all(tmp_path, {10: 0.5, 20: 0.4, 30: None}, keep=3).close()
  damage(tmp_path / "checkpoints" / "20" / item, kind)
  damage(tmp_path / "checkpoints" / "30" / item, kind)
  template = {"params": make_state(0).params, "batch_stats": make_state(0).batch_stats}
  harmless = item == "_CHECKPOINT_METADATA" or (item, kind) == ("checksums", "gone")
  with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
    assert checkpoints.best() == 10
    if item == "model":
      with pytest.raises(InputError, match=r"checkpoint 20 of .* is damaged .*there is 10, 30"):
        checkpoints.restore_model(20, template)
  with contextlib.closing(Checkpoints(tmp_path, keep=3)) as checkpoints:
    state, position = checkpoints.restore(make_state(0))
    if harmless:  # nothing is read from it, or it is as of an old run
      assert_equal(state, make_state(30))
      return
    assert_equal(state, make_state(10))
    assert position == {"next_index": 10}
    assert checkpoints.steps() == [10]
    checkpoints.save(make_state(20), {"next_index": 20})
    checkpoints.wait()
    assert_equal(checkpoints.restore(make_state(0))[0], make_state(20))
  told = capsys.readouterr().err
  assert "checkpoint 30 of" in told
  assert "checkpoint 20 of" in told
  assert "going on from checkpoint 10" in told
  assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["20", "30"]


def test_where_all_checkpoints_are_damaged_nothing_begins_anew(tmp_path):
  save_all(tmp_path, {10: None, 20: None}).close()
  for step in ("10", "20"):
    damage(tmp_path / "checkpoints" / step / "model", "half")
  with (
    contextlib.closing(Checkpoints(tmp_path)) as checkpoints,
    pytest.raises(InputError, match=r"(?s)checkpoint 20 .*checkpoint 10 .*another --workdir"),
  ):
    checkpoints.restore(make_state(0))
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]


@pytest.mark.parametrize("kind", ["gone", "empty", "half", "[]", '{"miou": 0.95}', '{"miou": "x"}'])
def test_damaged_metrics_are_mended(tmp_path, kind, capsys):
  save_all(tmp_path, {10: 0.9, 20: 0.8}).close()
  path = tmp_path / "checkpoints" / "20" / "metrics" / "metrics"
  if kind in ("gone", "empty", "half"):
    damage(path, kind)
  else:
    path.write_text(kind)
  if kind in ("empty", "half", "[]", '{"miou": "x"}'):
    with pytest.raises(InputError, match=r"20/metrics/metrics is damaged .*; remove it"):
      Checkpoints(tmp_path, read_only=True)
  else:
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
      assert checkpoints.best() == 10
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    assert checkpoints.best() == 10
  assert path.read_text().split() == ["{", '"miou":', "0.8", "}"]
  assert "20/metrics/metrics" in capsys.readouterr().err


def test_a_run_from_before_checksums_is_read(tmp_path, capsys):
  save_all(tmp_path, {10: 0.9, 20: 0.8}).close()
  for step in ("10", "20"):
    shutil.rmtree(tmp_path / "checkpoints" / step / "checksums")
  (tmp_path / "checkpoints" / "10" / "metrics" / "metrics").write_text("{")
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    assert_equal(checkpoints.restore(make_state(0))[0], make_state(20))
    assert checkpoints.best() == 20
  told = capsys.readouterr().err
  assert "removed" in told
  assert "checkpoint 20" not in told


def test_no_flipped_bit_is_read_in_silence(tmp_path):
  saved = make_state(10, width=50, ema=True)
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(saved, {"next_index": 10}, 0.5)
  files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
  sizes = np.array([path.stat().st_size for path in files])
  rng, refused = np.random.default_rng(0), 0
  template = make_state(0, width=50, ema=True)
  for _ in range(int(os.environ.get("JSEG_FUZZ", "60"))):
    # Half of the flips by size, half by file: metadata are small.
    chances = sizes / sizes.sum() if rng.random() < 0.5 else (sizes > 0) / (sizes > 0).sum()
    path = files[rng.choice(len(files), p=chances)]
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
    path.write_bytes(flipped)
    try:
      with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints._metric(10) == 0.5
        state, position = checkpoints.restore(template)
      assert_equal(state, saved)
      assert position == {"next_index": 10}
    except InputError:
      refused += 1
    path.write_bytes(content)
  assert refused > 0


def test_a_full_disk_keeps_what_was_saved(tmp_path, monkeypatch):
  checkpoints = save_all(tmp_path, {10: None})

  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(checkpoints._manager, "save", full)
  with pytest.raises(InputError, match=r"disk is full.*\(steps: 10\).*resumes"):
    checkpoints.save(make_state(20), {})
  monkeypatch.undo()
  restored, _ = checkpoints.restore(make_state(0))
  assert_equal(restored, make_state(10))
  checkpoints.close()


def test_what_fails_in_the_background_is_told_at_the_end_too(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path)

  def fail():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  close = checkpoints._manager.close
  monkeypatch.setattr(checkpoints._manager, "close", fail)
  with pytest.raises(InputError, match="the disk is full"):
    checkpoints.close()
  close()


def test_the_last_checkpoints_are_averaged(tmp_path, capsys):
  # The best, step 10, is kept too, and doesn't count.
  save_all(tmp_path, {10: 0.9, 20: 0.1, 40: 0.2, 90: 0.3}, keep=3).close()
  template = {"params": make_state(0).params, "batch_stats": {"mean": jnp.zeros(2)}}
  with contextlib.closing(Checkpoints(tmp_path, keep=3, read_only=True)) as checkpoints:
    step, variables = checkpoints.restore_average(3, template)
    assert step == 90
    assert_equal(variables["params"]["layer"]["kernel"], np.full((3, 2), 50.0, np.float32))
    np.testing.assert_allclose(variables["batch_stats"]["mean"], 50 / 7, rtol=1e-6)
    assert "running statistics are the means over checkpoints 20, 40, 90" in capsys.readouterr().err
    for count in (0, 4):
      with pytest.raises(InputError, match=rf"average:{count} needs .* keeps the last 3 \(keep\)"):
        checkpoints.restore_average(count, template)
