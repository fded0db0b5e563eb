"""Dropout: its rate and scale, and that its masks don't depend on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn import Dropout
from jseg.nn.devices import AXIS


def drop(x, rate=0.25, train=True, name="dropout"):
  return Dropout(rate).apply({}, x, train=train, rngs={name: jax.random.key(3)})


def test_values_are_dropped_at_the_rate_and_the_others_scaled():
  y = np.asarray(drop(jnp.full((50, 20, 20, 1), 3.0)))
  assert set(np.unique(y)) == {0.0, 4.0}
  # Five standard deviations of a binomial of 20,000 draws.
  assert abs((y == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / y.size) ** 0.5
  assert len({image.tobytes() for image in y}) == len(y)


@pytest.mark.parametrize(("rate", "train"), [(0.5, False), (0.0, True)])
def test_otherwise_values_pass(rate, train):
  x = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(drop(x, rate, train), x)


def test_masks_go_by_the_place_in_the_global_batch():
  x = jnp.ones((8, 5, 5, 2))
  whole = drop(x, name="sample")

  def split(devices):
    step = jax.pmap(lambda part: drop(part, name="sample"), axis_name=AXIS)
    return step(x.reshape(devices, 8 // devices, 5, 5, 2)).reshape(x.shape)

  for devices in (2, 4):
    np.testing.assert_array_equal(split(devices), whole)
