"""Pooling against Flax's, against PyTorch's loops in NumPy and against numbers by hand."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jseg.nn import avg_pool, larger, max_pool, max_pool_with_indices, max_unpool


def distinct(shape):
  """Random order, no two values the same."""
  values = np.random.default_rng(0).permutation(int(np.prod(shape)))
  return jnp.asarray(values.reshape(shape) - 20, jnp.float32)


@pytest.mark.parametrize("size", [(6, 8), (5, 9), (2, 3)])
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

  dy = distinct(jax.eval_shape(ours, x).shape)

  @jax.jit
  def both(x):
    return [(y, pull(dy)[0]) for y, pull in (jax.vjp(f, x) for f in (ours, theirs))]

  for got, expected in zip(*both(x), strict=True):
    np.testing.assert_array_equal(got, expected)


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
  x, y = np.asarray(x), np.asarray(max_pool(x, window, stride, padding=padding, ceil=True))
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
  grad = jax.grad(lambda x: (max_pool(x, ceil=True).ravel() * jnp.arange(1.0, 5.0)).sum())
  dx = jax.jit(grad)(x)
  np.testing.assert_array_equal(dx.reshape(3, 3), [[0, 0, 0], [0, 1, 2], [0, 3, 4]])


def test_the_first_of_equal_pixels_takes_the_gradient():
  x = jnp.array([[5.0, 5, 1, 0], [2, 5, 0, 1]]).reshape(1, 2, 4, 1)
  dx = jax.jit(jax.grad(lambda x: (max_pool(x).ravel() * jnp.array([6.0, 10.0])).sum()))(x)
  np.testing.assert_array_equal(dx.reshape(2, 4), [[6, 0, 10, 0], [0, 0, 0, 0]])
  # Overlapping windows: the first that is not padding.
  x = jnp.zeros((1, 5, 5, 1))
  dx = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2, padding=1).sum()))(x)
  counts = np.array([1, 1, 0, 1, 0])
  np.testing.assert_array_equal(dx.reshape(5, 5), np.multiply.outer(counts, counts))


def test_no_gradient_hangs_on_two_values_being_equal():
  """XLA computes a value anew where it is cheap, and may round it otherwise the second time.

  A gradient that looks for the pixel that equals the maximum then finds none: it was NaN in a U-Net
  of widths 64 to 1024 on 4 images of 96 x 96.
  """
  x = jnp.zeros((1, 9, 9, 2))
  for pool in (max_pool, lambda x: max_pool(x, 3, 2, padding=1), lambda x: larger(x, -x)):
    text = jax.jit(jax.grad(lambda x, pool=pool: pool(x).sum())).lower(x).as_text()
    assert re.search(r"compare +GT", text)
    assert not re.search(r"compare +(EQ|NE)\b.*FLOAT", text)


def test_the_gradient_is_elementwise():
  x = jnp.zeros((1, 8, 8, 2))
  for pool in (
    max_pool,
    lambda x: max_pool(x, 3, 2, padding=1),
    lambda x: avg_pool(x, 3, padding=1),
    lambda x: max_unpool(*max_pool_with_indices(x)) * x,
  ):
    text = jax.jit(jax.grad(lambda x, pool=pool: pool(x).sum())).lower(x).as_text()
    assert not {"scatter", "gather", "reduce_window"} & set(re.findall(r"stablehlo\.(\w+)", text))
    assert "select_and_scatter" not in text


def test_volumes_and_bfloat16():
  x = distinct((1, 4, 5, 6, 2)).astype(jnp.bfloat16)
  y = max_pool(x)
  assert (y.shape, y.dtype) == ((1, 2, 2, 3, 2), jnp.bfloat16)
  np.testing.assert_array_equal(y[0, 1, 0, 2], x[0, 2:4, 0:2, 4:6].max((0, 1, 2)))


def torch_max_pool_with_indices(x, window, ceil):
  """The loops of PyTorch's CPU kernel; positions are counted within the window."""
  b, h, w, c = x.shape
  size = [-(-n // window) if ceil else n // window for n in (h, w)]
  y = np.full((b, *size, c), -np.inf, x.dtype)
  indices = np.zeros(y.shape, np.uint8)
  for n, i, j, k in np.ndindex(*y.shape):
    for p, q in itertools.product(range(window), range(window)):
      row, column = i * window + p, j * window + q
      if row < h and column < w and x[n, row, column, k] > y[n, i, j, k]:
        y[n, i, j, k] = x[n, row, column, k]
        indices[n, i, j, k] = p * window + q
  return y, indices


def torch_max_unpool(y, indices, size, window):
  b, h, w, c = y.shape
  x = np.zeros((b, *size, c), y.dtype)
  for n, i, j, k in np.ndindex(b, h, w, c):
    p, q = divmod(int(indices[n, i, j, k]), window)
    x[n, i * window + p, j * window + q, k] = y[n, i, j, k]
  return x


@pytest.mark.parametrize(
  ("size", "window", "ceil"),
  [((4, 6), 2, False), ((5, 4), 2, True), ((5, 7), 2, False), ((7, 5), 3, True)],
)
def test_indices_and_unpooling_equal_torch(size, window, ceil):
  @jax.jit
  def ours(x, dy):
    (y, indices), pull = jax.vjp(lambda x: max_pool_with_indices(x, window, ceil=ceil), x)
    (dx,) = pull((dy, np.zeros(y.shape, jax.dtypes.float0)))
    back, pull = jax.vjp(lambda y: max_unpool(y, indices, size, window=window), y)
    return y, indices, back, dx, pull(dx)[0]

  for seed, levels in ((0, 1000), (1, 2)):  # with two levels most windows are tied
    rng = np.random.default_rng(seed)
    x = rng.integers(-levels, 0, (2, *size, 2)).astype(np.float32)
    expected, positions = torch_max_pool_with_indices(x, window, ceil)
    dy = rng.normal(size=expected.shape).astype(np.float32)
    y, indices, back, dx, dy_again = ours(x, dy)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, positions)
    assert indices.dtype == jnp.uint8
    np.testing.assert_array_equal(back, torch_max_unpool(expected, positions, size, window))
    # dy goes to the pixel that was found, whole, and unpooling's derivative takes it from there.
    np.testing.assert_array_equal(dx, torch_max_unpool(dy, positions, size, window))
    np.testing.assert_array_equal(dy_again, dy)


def jitted():
  pool = jax.jit(max_pool_with_indices, static_argnames="ceil")
  return pool, jax.jit(max_unpool, static_argnums=2)


def test_indices_by_hand():
  pool, unpool = jitted()
  x = jnp.array([[1.0, 5, 7, 7, 3], [5, 2, 7, 8, 4], [0, 0, -1, -2, -6]]).reshape(1, 3, 5, 1)
  y, indices = pool(x)
  np.testing.assert_array_equal(y.ravel(), [5, 8])
  np.testing.assert_array_equal(indices.ravel(), [1, 3])  # the first of the two fives
  y, indices = pool(x, ceil=True)
  np.testing.assert_array_equal(y.reshape(2, 3), [[5, 8, 4], [0, -1, -6]])
  np.testing.assert_array_equal(indices.reshape(2, 3), [[1, 3, 2], [0, 0, 0]])
  back = [[0, 5, 0, 0, 0], [0, 0, 0, 8, 4], [0, 0, -1, 0, -6]]
  np.testing.assert_array_equal(unpool(y, indices, (3, 5)).reshape(3, 5), back)
  np.testing.assert_array_equal(unpool(y, indices)[0, :3, :5, 0], back)
  assert unpool(y, indices).shape == (1, 4, 6, 1)


def test_indices_of_volumes_and_of_infinite_maxima():
  pool, unpool = jitted()
  x = distinct((1, 4, 2, 6, 2))
  y, indices = pool(x)
  np.testing.assert_array_equal(y, max_pool(x))
  back = np.asarray(unpool(y, indices))
  assert (back != 0).sum() == (np.asarray(y) != 0).sum()
  np.testing.assert_array_equal(back[back != 0], np.asarray(x)[back != 0])
  # Minus infinity inside of the map is found there and not in the overhang.
  y, indices = pool(jnp.full((1, 3, 3, 1), -jnp.inf), ceil=True)
  np.testing.assert_array_equal(indices.ravel(), 0)
  assert np.isneginf(unpool(y, indices, (3, 3))[0, 2, 2, 0])


def test_unpooling_refuses_the_indices_of_another_map():
  with pytest.raises(AssertionError, match="shape"):
    max_unpool(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 3, 1), jnp.uint8))


def test_a_window_with_more_positions_than_uint8_holds_is_refused():
  with pytest.raises(AssertionError, match="256"):
    max_pool_with_indices(jnp.zeros((1, 17, 17, 1)), 17)


def torch_avg_pool(x, window, stride, padding, ceil, count_padding):
  """The loops of PyTorch's CPU kernel, which are Caffe's; the last is `count_include_pad`."""
  h, w = x.shape[1:3]
  y = jax.eval_shape(lambda x: max_pool(x, window, stride, padding=padding, ceil=ceil), x)
  y = np.zeros(y.shape)
  for i, j in np.ndindex(y.shape[1:3]):
    top, left = i * stride - padding, j * stride - padding
    bottom, right = min(top + window, h + padding), min(left + window, w + padding)
    pixels = (bottom - top) * (right - left)
    part = x[:, max(top, 0) : min(bottom, h), max(left, 0) : min(right, w)]
    y[:, i, j] = part.sum((1, 2)) / (pixels if count_padding else part[0, :, :, 0].size)
  return y


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize(
  ("size", "window", "stride", "padding", "ceil"),
  [
    ((5, 6), 3, 1, 1, False),
    ((6, 5), 3, 2, 1, True),
    ((5, 7), 2, 2, 0, False),
    ((4, 5), 2, 2, 1, True),
    ((4, 6), 3, 2, 0, True),
  ],
)
def test_average_pooling_equals_torch(size, window, stride, padding, ceil, count_padding):
  x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  options = {"padding": padding, "ceil": ceil, "count_padding": count_padding}
  expected = torch_avg_pool(x, window, stride, **options)
  dy = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)

  @jax.jit
  def ours(x):
    y, pull = jax.vjp(lambda x: avg_pool(x, window, stride, **options), x)
    return y, pull(dy)[0]

  y, dx = ours(x)
  np.testing.assert_allclose(y, expected, atol=1e-6)
  np.testing.assert_allclose((dx * x).sum(), (dy * expected).sum(), atol=1e-4)  # it is linear


def test_both_divisors_by_hand():
  x = jnp.ones((1, 3, 3, 1))
  y = avg_pool(x, 3, padding=1)[0, :, :, 0] * 9
  np.testing.assert_allclose(y, [[4, 6, 4], [6, 9, 6], [4, 6, 4]], rtol=1e-6)
  np.testing.assert_allclose(avg_pool(x, 3, padding=1, count_padding=False), x, rtol=1e-6)


def test_average_of_bfloat16_is_summed_in_float32():
  x = jnp.ones((1, 32, 32, 1), jnp.bfloat16)  # 8 bits count only to 256
  y = avg_pool(x, 32, 32)
  assert y.dtype == jnp.bfloat16
  assert y.item() == 1


def test_on_a_tpu_the_same_in_other_forms(monkeypatch):
  rng = np.random.default_rng(0)
  pooled = max_pool.__wrapped__  # traced anew where the platform seems to be another
  x = jnp.asarray(rng.integers(0, 3, (2, 6, 9, 2)), jnp.float32)  # most windows are tied

  def results(x):
    pools = [lambda x: pooled(x), lambda x: pooled(x, 3, 3)]
    pools.append(lambda x: max_unpool(*max_pool_with_indices(x, 3), window=3))
    pulled = [jax.vjp(pool, x) for pool in pools]
    overlapping = pooled(x, 3, 2, padding=1)
    return [(y, *pull(y + 1)) for y, pull in pulled], overlapping

  expected = jax.jit(lambda x: results(x))(x)
  monkeypatch.setattr(
    lax, "platform_dependent", lambda *args, default, **forms: forms.get("tpu", default)(*args)
  )
  jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda x: results(x))(x), expected)
