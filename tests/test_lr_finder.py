"""The range test of the learning rate."""

import json

import flax.linen as nn
import numpy as np
import pytest
from helpers.tiny import tiny_config

from jseg.lr_finder import find_lr, make_curve
from jseg.models import Network
from jseg.nn import Conv
from jseg.types import InputError, Outputs


class OneLayer(Network):
  """A single convolution."""

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(self.typed(Conv)(self.num_classes, (3, 3))(image))


def test_averages_by_hand():
  # Weights of the average are .1, .09, .081, ... back in time, divided by their sum.
  curve = make_curve([1e-3, 1e-2, 1e-1], [4.0, 2.0, 3.0])
  expected = [4.0, (2 + 0.9 * 4) / 1.9, (3 + 0.9 * 2 + 0.81 * 4) / 2.71]
  np.testing.assert_allclose(curve.averages, expected, rtol=1e-12)
  assert curve.lowest == 1e-2
  assert curve.suggestion == pytest.approx(1e-3)


def test_what_follows_a_loss_that_blows_up_is_left_out():
  rates = np.geomspace(1e-4, 1, 6).tolist()
  for end in ([1e3, 0.0], [float("nan"), 0.0], [float("inf")]):
    curve = make_curve(rates, [1.0, 1.0, 1.0, 1.0, *end])
    assert len(curve.rates) == len(curve.losses) == len(curve.averages) == 4
  with pytest.raises(InputError, match="no longer finite after 1 steps; begin with a lower rate"):
    make_curve(rates, [1.0, float("nan")])


def test_a_range_test_of_a_network(tmp_path):
  config = tiny_config(tmp_path, f"{__name__}:OneLayer", optim__clip_value=1.0)
  curve = find_lr(config, tmp_path / "lr", steps=12, low=1e-4, high=0.1)
  # The first step hardly moves, and the loss of the first batches is that of new parameters.
  assert curve.rates[0] == pytest.approx(1e-4)
  assert curve.rates[11] == pytest.approx(0.1)
  assert min(curve.losses) < curve.losses[0]
  written = json.loads((tmp_path / "lr/lr.json").read_text())
  assert written["losses"] == curve.losses
  assert written["suggestion"] == curve.suggestion
  assert (tmp_path / "lr/lr.png").read_bytes()[:4] == b"\x89PNG"
  (tmp_path / "lr/config.json").write_text("{}")
  with pytest.raises(InputError, match="holds a run; name another folder"):
    find_lr(config, tmp_path / "lr")


@pytest.mark.parametrize(
  ("knobs", "match"),
  [
    ({"steps": 9}, "steps: 9 must be at least 10"),
    ({"low": 1.0, "high": 0.1}, "1.0 and 0.1 must be rates above 0, the lower one first"),
    ({"low": 0.0}, "0.0 and 10.0 must be rates"),
  ],
)
def test_impossible_values(tmp_path, knobs, match):
  with pytest.raises(InputError, match=match):
    find_lr(tiny_config(tmp_path), tmp_path / "lr", **knobs)
