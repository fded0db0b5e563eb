"""The log: what it makes of steps, when it says that input is missing, what TensorBoard gets."""

import concurrent.futures
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import jseg.config
from jseg import memory
from jseg.log import Events, MetricsAccumulator, Starvation, _Step
from jseg.types import InputError


class Task:
  metric = "miou"

  def training_metrics(self, counts):
    return {"seen": float(counts["seen"])}


def step_metrics(loss=1.0, count=1.0, **more):
  return {
    "loss": jnp.float32(loss),
    "losses": {"main": (jnp.float32(loss), jnp.float32(count))},
    "grad_norm": jnp.float32(2.0),
    "seen": jnp.int32(3),
    **more,
  }


def window(steps, explain=lambda step: ""):
  accumulator = MetricsAccumulator(Task(), 4, explain)
  for number, metrics in enumerate(steps, 1):
    with accumulator.fetching():
      pass
    accumulator.add(number, metrics)
  line = accumulator.flush()
  accumulator.close()
  return line


def test_norms_are_means_over_the_window_and_the_whole_is_made_of_the_parts():
  norms = [
    {"head": jnp.array([1.0, 3.0]), "body": jnp.array([5.0, 4.0])},
    {"head": jnp.array([3.0, 0.0]), "body": jnp.array([7.0, 1.0])},
  ]
  line = window([step_metrics(norms=each) for each in norms])
  found = {key: value for key, value in line.items() if "update_norm" in key or "/" in key}
  assert found == {
    "update_norm": 3.0,  # of 5 and 1
    "grad_norms/head": 2.0,
    "grad_norms/body": 6.0,
    "update_norms/head": 1.5,
    "update_norms/body": 2.5,
  }
  assert line["seen"] == 6
  assert not [key for key in window([step_metrics()]) if "/" in key or "update" in key]


def test_a_loss_that_is_not_finite_is_explained():
  with pytest.raises(InputError, match=r"loss became nan at step 2; .*helps. It was file-2$"):
    window([step_metrics(), step_metrics(np.nan)], lambda step: f"It was file-{step}")


@pytest.mark.parametrize(
  ("asked", "came", "ready", "idle"),
  [
    (10.0, 12.0, 9.0, 2.0),  # the devices were done before the batch was asked for
    (10.0, 12.0, 11.5, 0.5),
    (10.0, 12.0, 13.0, 0.0),  # they were busy all the time
    (10.0, 12.0, None, 0.0),  # there was nothing before
  ],
)
def test_devices_wait_from_their_last_step_to_the_next_batch(asked, came, ready, idle):
  before = None
  if ready is not None:
    before = concurrent.futures.Future()
    before.set_result(ready)
  assert _Step(1, {}, (asked, came), before).idle() == idle


def starvation(capsys, shares, **changes):
  """What is said of windows of 20 steps of 8 images, 2 s each, after the one that compiles."""
  config = jseg.config.change(jseg.config.default("unet"), changes)
  watch = Starvation(config)
  for share in (0.0, *shares):
    watch.watch({"seconds": 2.0, "images_per_second": 80.0, "waiting_for_input": share})
  return " ".join(capsys.readouterr().out.split())


def test_input_that_starves_the_devices_is_told_once_with_remedies(capsys, monkeypatch):
  monkeypatch.setattr("os.cpu_count", lambda: 8)
  said = starvation(capsys, [0.1, 0.6, 0.5, *[0.9] * 9])
  assert said.startswith("! the devices waited 40 % of the time for input: raise --config.data.thr")
  assert "(2 of 8 cores are used)" in said
  assert "data.size (256 x 256)" in said
  assert said.count("!") == 1
  assert "no more cores for --config.data.threads (8 of 8)" in starvation(
    capsys, [0.9] * 3, **{"data.threads": 8}
  )


def test_input_that_is_late_now_and_then_is_not_told(capsys):
  assert starvation(capsys, [0.7, 0.0, 0.0, 0.2, 0.2, 0.2, 0.9, 0.9]) == ""


class Device:
  def __init__(self, stats):
    self.memory_stats = lambda: stats


def test_memory_is_told_where_it_is_known(monkeypatch):
  assert set(memory.peaks()) == {"host_peak_gib"}  # a CPU's devices have none of their own
  assert 0.01 < memory.peaks()["host_peak_gib"] < 1000
  stats = [{"peak_bytes_in_use": 3 << 29}, {"peak_bytes_in_use": 1 << 30}, None, {}]
  monkeypatch.setattr("jax.local_devices", lambda: [Device(each) for each in stats])
  assert memory.peaks()["device_peak_gib"] == 1.5


def records(folder):
  """Events of the one file in a folder: TFRecord's length, checksum, content, checksum."""
  (path,) = folder.iterdir()
  content, events = path.read_bytes(), []
  while content:
    (length,) = struct.unpack("<Q", content[:8])
    events.append(Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return events


def test_tensorboard_gets_pictures_as_they_are(tmp_path):
  path = tmp_path / "a.png"
  Image.new("RGBA", (5, 3), (1, 2, 3, 4)).save(path)
  events = Events(tmp_path / "events", 1)
  events.write_pictures(7, {"val/samples": path})
  events.close()
  event = records(tmp_path / "events")[-1]
  (value,) = event.summary.value
  image = value.image
  assert (event.step, value.tag) == (7, "val/samples")
  assert (image.height, image.width, image.colorspace) == (3, 5, 4)
  assert image.encoded_image_string == path.read_bytes()
