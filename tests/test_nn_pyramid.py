"""Pyramids: pooling to bins against PyTorch's definition, and what each branch sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.nn import (
  ASPP,
  ConvBeside,
  FCNHead,
  PyramidPooling,
  conv,
  pool_to_bins,
  resize_bilinear,
)


def bins_by_loop(x, bins):
  """AdaptiveAvgPool2d, cell by cell: from floor(i n / bins) to ceil((i + 1) n / bins)."""
  y = np.zeros((len(x), bins, bins, x.shape[-1]), np.float32)
  spans = [
    [(int(np.floor(i * n / bins)), int(np.ceil((i + 1) * n / bins))) for i in range(bins)]
    for n in x.shape[1:3]
  ]
  for i, (top, bottom) in enumerate(spans[0]):
    for j, (left, right) in enumerate(spans[1]):
      y[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
  return y


# Bins that divide the map, that overlap, and that outnumber its pixels.
@pytest.mark.parametrize(
  ("size", "bins"), [((6, 12), 3), ((8, 11), 6), ((7, 5), 1), ((2, 4), 6), ((1, 1), 3)]
)
def test_bins_equal_a_loop(size, bins):
  x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  np.testing.assert_allclose(pool_to_bins(x, bins), bins_by_loop(x, bins), atol=1e-6)


def test_bins_by_hand():
  # Five pixels in two bins share the middle one; in seven bins pixels are repeated or averaged.
  x = jnp.array([0, 1, 2, 4, 8], jnp.float32).reshape(1, 1, 5, 1)
  np.testing.assert_allclose(pool_to_bins(x, 2)[0, 0, :, 0], [1, 14 / 3], rtol=1e-6)
  np.testing.assert_allclose(
    pool_to_bins(x, 7)[0, 0, :, 0], [0, 0.5, 1.5, 2, 3, 6, 8], rtol=1e-6, atol=1e-6
  )


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7))
def test_bins_of_a_constant_are_that_constant(height, width, bins):
  pooled = pool_to_bins(np.full((1, height, width, 1), 3, np.float32), bins)
  np.testing.assert_allclose(pooled, np.full((1, bins, bins, 1), 3), rtol=1e-6)


def test_bins_of_half_precision_are_summed_in_float32():
  x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(512.0)
  pooled = pool_to_bins(x, 1)
  assert pooled.dtype == jnp.bfloat16
  np.testing.assert_allclose(float(pooled[0, 0, 0, 0]), 1 + 511 / 4096, rtol=2**-8)


def test_aspp_sees_at_its_rates_and_the_whole_image():
  # A lone pixel, and kernels of ones: a branch's pattern is its taps.
  x = np.zeros((1, 9, 9, 1), np.float32)
  x[0, 4, 4] = 81
  model = ASPP((2, 4), features=1, norm="none")
  params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
  assert set(params) == {"conv0", "conv1", "conv2", "image", "project"}
  assert params["project"]["kernel"].shape == (1, 1, 4, 1)  # of the four branches

  def seen(branch):
    ones = jax.tree.map(lambda a: np.ones(a.shape, np.float32), params)
    ones["project"]["kernel"] = np.eye(4, dtype=np.float32)[branch].reshape(1, 1, 4, 1)
    return np.asarray(model.apply({"params": ones}, x))[0, :, :, 0]

  for branch, rate in ((0, 0), (1, 2), (2, 4)):
    taps = {(4 + rate * i, 4 + rate * j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    expected = np.zeros((9, 9))
    expected[tuple(np.array(sorted(taps)).T)] = 81
    np.testing.assert_allclose(seen(branch), expected)
  np.testing.assert_allclose(seen(3), np.ones((9, 9)))  # the mean


def test_pyramid_pooling_gives_the_averages_of_each_level():
  x = np.random.default_rng(0).uniform(1, 2, (1, 7, 9, 4)).astype(np.float32)
  model = PyramidPooling((1, 3), norm="none")
  params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
  # Of c / 2 channels each: the level's first two.
  pick = jax.tree.map(lambda a: np.eye(*a.shape[-2:], dtype=np.float32)[None, None], params)
  whole, thirds = model.apply({"params": pick}, x)
  np.testing.assert_allclose(whole, x.mean((1, 2), keepdims=True)[..., :2], rtol=1e-5)
  np.testing.assert_allclose(thirds, bins_by_loop(x, 3)[..., :2], rtol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_coarse_maps_are_convolved_as_if_they_were_interpolated(kernel, dtype):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(2, 7, 9, 5), (2, 1, 1, 3), (2, 6, 6, 2), (2, 3, 2, 4)]
  maps = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
  model = ConvBeside(features=6, kernel_size=(kernel, kernel), dtype=jnp.dtype(dtype))
  params = jax.jit(model.init)(jax.random.key(4), maps[0], maps[1:])["params"]
  assert params["kernel"].shape == (kernel, kernel, 14, 6)

  def plain(params, maps):
    beside = [resize_bilinear(y, (7, 9), align_corners=True) for y in maps[1:]]
    return conv(jnp.concatenate([maps[0], *beside], -1), params["kernel"])

  def ours(params, maps):
    y = model.apply({"params": params}, maps[0], maps[1:])
    assert y.dtype == dtype
    return y.astype(jnp.float32)

  # 14 channels under each of the taps: numbers of size sqrt(14 taps), rounded to 2^-24 or 2^-9.
  bound = {"float32": 1e-5, "bfloat16": 0.1}[dtype]

  def both(params, maps, f):
    def loss(params, maps):
      y = f(params, maps)
      return jnp.sin(y).sum(), y

    gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, maps)
    return y, gradients

  compiled = jax.jit(both, static_argnums=2)
  (found, *gradients), (expected, *right) = (compiled(params, maps, f) for f in (ours, plain))
  np.testing.assert_allclose(found, expected, atol=bound)
  if dtype == "float32":
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, right)


def test_dropout_of_the_head_is_of_training_only():
  x = np.ones((1, 3, 3, 8), np.float32)
  model = FCNHead(2, dropout=0.5, norm="none", reduction=2)
  params = jax.tree.map(
    lambda a: np.ones(a.shape, np.float32),
    jax.eval_shape(model.init, jax.random.key(0), x)["params"],
  )
  # 72 ones in the middle, through 4 channels, and the bias.
  quiet = model.apply({"params": params}, x)
  np.testing.assert_allclose(quiet[0, 1, 1], [4 * 72 + 1] * 2)
  loud = model.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)})
  # Each of the 4 is dropped or doubled.
  assert set(np.unique(loud[0, 1, 1])) <= {1.0 + 144 * i for i in range(5)}
  assert not np.allclose(loud, quiet)
