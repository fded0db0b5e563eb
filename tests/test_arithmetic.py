"""Integer arithmetic."""

import math

import jax.numpy as jnp
import numpy as np

from jseg.arithmetic import cdiv, count_bytes


def test_the_quotient_is_rounded_up():
  for a in range(-9, 10):
    for b in (1, 2, 3, 7):
      assert cdiv(a, b) == math.ceil(a / b)
  np.testing.assert_array_equal(cdiv(np.arange(5), 2), [0, 1, 1, 2, 2])
  np.testing.assert_array_equal(cdiv(jnp.arange(5), 2), [0, 1, 1, 2, 2])


def test_bytes_are_counted_as_numpy_counts_them():
  array = np.random.default_rng(0).integers(0, 200, (3, 700, 300), np.uint8)
  for each in (array, array[0], array[:, :0]):
    np.testing.assert_array_equal(count_bytes(each), np.bincount(each.ravel(), minlength=256))
