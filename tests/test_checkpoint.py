import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jseg.checkpoint import Checkpoints
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
  checkpoints.save(state, {"next_index": 5})
  checkpoints.wait()
  restored, iterator = checkpoints.restore(make_state(0, ema=ema, optimizer=optimizer))
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
  with pytest.raises(InputError, match=r"no checkpoint '30'; there is best, latest and 10, 20"):
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


def test_a_damaged_checkpoint_names_the_others(tmp_path):
  save_all(tmp_path, {10: None, 20: None}).close()
  shutil.rmtree(tmp_path / "checkpoints" / "20" / "model")
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(InputError, match=r"checkpoint 20 .* damaged"):
    checkpoints.restore(make_state(0))
  checkpoints.close()


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
