"""Max pooling against Flax's and against numbers by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn import max_pool


def distinct(shape):
  """Random order, no two values the same."""
  values = np.random.default_rng(0).permutation(int(np.prod(shape)))
  return jnp.asarray(values.reshape(shape) - 20, jnp.float32)


@pytest.mark.parametrize("size", [(6, 8), (7, 8), (5, 9), (2, 3)])
@pytest.mark.parametrize(
  ("window", "stride", "padding"),
  [(2, 2, 0), (3, 3, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0), (5, 1, 2)],
)
def test_equals_flax_away_from_ties(size, window, stride, padding):
  if min(size) + 2 * padding < window:
    pytest.skip("no window fits")
  x = distinct((2, *size, 3))

  def ours(x):
    return max_pool(x, window, stride, padding=padding)

  def theirs(x):
    pads = ((padding, padding),) * 2
    return nn.max_pool(x, (window, window), (stride, stride), pads)

  y, pull = jax.vjp(ours, x)
  expected, expected_pull = jax.vjp(theirs, x)
  np.testing.assert_array_equal(y, expected)
  dy = distinct(y.shape)
  np.testing.assert_array_equal(pull(dy)[0], expected_pull(dy)[0])


# Output lengths of torch.nn.MaxPool2d(window, stride, padding, ceil_mode=True).
@pytest.mark.parametrize(
  ("n", "window", "stride", "padding", "length"),
  [
    (5, 2, 2, 0, 3),
    (4, 2, 2, 0, 2),
    (6, 3, 2, 1, 4),
    (5, 3, 2, 1, 3),
    (2, 2, 2, 1, 2),
    (5, 3, 3, 1, 2),
  ],
)
def test_ceil_mode(n, window, stride, padding, length):
  x = distinct((1, n, n, 1))
  y = max_pool(x, window, stride, padding=padding, ceil=True)
  assert y.shape == (1, length, length, 1)
  for i in range(length):
    rows = slice(max(0, i * stride - padding), i * stride - padding + window)
    for j in range(length):
      columns = slice(max(0, j * stride - padding), j * stride - padding + window)
      assert y[0, i, j, 0] == x[0, rows, columns].max()


def test_floor_drops_the_odd_row_and_ceil_keeps_it():
  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  np.testing.assert_array_equal(max_pool(x).ravel(), [4])
  np.testing.assert_array_equal(max_pool(x, ceil=True).ravel(), [4, 5, 7, 8])
  dx = jax.grad(lambda x: (max_pool(x, ceil=True).ravel() * jnp.arange(1.0, 5.0)).sum())(x)
  np.testing.assert_array_equal(dx.reshape(3, 3), [[0, 0, 0], [0, 1, 2], [0, 3, 4]])


def test_ties_share_the_gradient():
  x = jnp.array([[5.0, 5, 1, 0], [2, 5, 0, 1]]).reshape(1, 2, 4, 1)
  dx = jax.grad(lambda x: (max_pool(x).ravel() * jnp.array([6.0, 10.0])).sum())(x)
  np.testing.assert_allclose(dx.reshape(2, 4), [[2, 2, 5, 0], [0, 2, 0, 5]])
  # Overlapping windows: what is handed out is still all of it.
  x = jnp.zeros((1, 5, 5, 1))
  dx = jax.grad(lambda x: max_pool(x, 3, 2, padding=1).sum())(x)
  np.testing.assert_allclose(dx.sum(), 9)


def test_the_gradient_is_elementwise():
  x = jnp.zeros((1, 8, 8, 2))
  for settings in ({}, {"window": 3, "stride": 2, "padding": 1}):
    grad = jax.jit(jax.grad(lambda x, s=settings: max_pool(x, **s).sum()))
    text = grad.lower(x).as_text()
    assert "select_and_scatter" not in text
    assert "scatter" not in text
    assert "reduce_window" not in text


def test_volumes_and_bfloat16():
  x = distinct((1, 4, 5, 6, 2)).astype(jnp.bfloat16)
  y = max_pool(x)
  assert (y.shape, y.dtype) == ((1, 2, 2, 3, 2), jnp.bfloat16)
  np.testing.assert_array_equal(y[0, 1, 0, 2], x[0, 2:4, 0:2, 4:6].max((0, 1, 2)))
