"""The exact filter in blocks against brute force: what is skipped, both forms, which one runs."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jseg import crf
from jseg.crf import blocks, call, exact, exact_tpu
from jseg.crf.params import EXACT_PIXELS


def clusters(n=2400, seed=0):
  """Points in float64 [n 3], most of them in clusters far apart, some of which don't count."""
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(n, 3)) * 2 + 5 * rng.integers(0, 3, (n, 1))
  valid = np.ones(n)
  valid[20:90] = 0
  values = rng.normal(size=(2, n, 4)) * valid[:, None]
  return features, valid, *values


def brute_force(features, valid, x, g):
  """The matrix, its product with x, and the derivative of g (K x) by the features."""
  squares = ((features[:, None] - features[None]) ** 2).sum(-1)
  matrix = np.exp(-squares / 2) * valid[:, None] * valid[None]
  both = matrix * (g @ x.T + x @ g.T)
  return matrix, matrix @ x, both @ features - both.sum(1, keepdims=True) * features


@functools.cache
def case(tolerance):
  features, valid, x, g = clusters()
  single = jnp.asarray(features, jnp.float32)
  found = jax.jit(blocks.make_blocks, static_argnums=2)(single, jnp.asarray(valid), tolerance)
  return found, single, jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32)


def test_blocks_hold_each_point_once_and_those_that_do_not_count_last():
  found, *_ = case(0.0)
  order, place, used = map(np.asarray, found[:3])
  n = len(place)
  assert len(set(place.tolist())) == n
  np.testing.assert_array_equal(order[place], np.arange(n))
  by_block = used.reshape(len(found.keep), -1)
  full = by_block.shape[1]
  assert used.sum() == n - 70
  np.testing.assert_array_equal(by_block.sum(1), [full, full, full, n - 70 - 3 * full])


def test_what_is_left_out_of_a_row_is_within_the_tolerance(monkeypatch):
  # Small blocks of points that fill a box evenly: their distances are of all sizes.
  monkeypatch.setattr(blocks, "POINTS", 16)
  monkeypatch.setattr(blocks, "MULTIPLE", 8)
  rng = np.random.default_rng(1)
  features = rng.uniform(0, (14, 9, 5), (1600, 3))
  valid = rng.uniform(size=1600) < 0.9
  full = brute_force(features, valid, features, features)[0].sum(1)[valid]
  ones, single = jnp.asarray(valid, jnp.float32)[:, None], jnp.asarray(features, jnp.float32)
  shares = []
  for tolerance in (0.0, 1e-5, 1e-2, 0.3):
    make = jax.jit(lambda f, v, tolerance=tolerance: blocks.make_blocks(f, v, tolerance))
    found = make(single, jnp.asarray(valid))
    sums = jax.jit(exact.exact_filter)(ones, single, found)
    missing = 1 - np.asarray(sums)[valid, 0] / full
    assert missing.min() > -1e-5
    assert missing.max() < tolerance + 1e-5
    assert missing.max() > tolerance / 100  # what is skipped does count
    keep = np.asarray(found.keep)
    np.testing.assert_array_equal(keep, keep.T)
    shares.append(keep.mean())
  assert 1 > shares[0] > shares[1] > shares[2] > shares[3] > 0.05


def test_sums_and_derivatives_equal_brute_force():
  _, product, slope = brute_force(*clusters())
  found, features, x, g = case(1e-5)

  @jax.jit
  def both(x, features, g):
    y, back = jax.vjp(lambda x, f: exact.exact_filter(x, f, found), x, features)
    return y, *back(g)

  y, by_x, by_features = both(x, features, g)
  features, valid, x, g = clusters()
  np.testing.assert_allclose(y, product, atol=1e-5 * abs(product).max())
  by_g = brute_force(features, valid, g, x)[1]
  np.testing.assert_allclose(by_x, by_g, atol=1e-5 * abs(by_g).max())
  np.testing.assert_allclose(by_features, slope, atol=2e-5 * abs(slope).max())


@pytest.mark.parametrize("pairs", [2**16, 4])
def test_the_kernels_for_tpus_equal_brute_force(monkeypatch, pairs):
  monkeypatch.setattr(exact_tpu, "PAIRS", pairs)
  _, product, slope = brute_force(*clusters())
  found, features, x, g = case(1e-5)

  @jax.jit
  def both(x, features, g):
    ordered = [exact._sorted(a, found) for a in (g, x, features)]
    y = exact_tpu.weighted_sums(*ordered[1:], found.keep, interpret=True)
    by_features = exact_tpu.by_features(*ordered, found.keep, interpret=True)
    return exact._unsorted(y, found), exact._unsorted(by_features, found)

  y, by_features = both(x, features, g)
  np.testing.assert_allclose(y, product, atol=1e-5 * abs(product).max())
  np.testing.assert_allclose(by_features, slope, atol=1e-4 * abs(slope).max())


def test_the_order_of_floats_and_the_search_in_it():
  x = jnp.asarray([-np.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 3.0, np.inf], jnp.float32)
  order = np.asarray(blocks._ordered(x))
  assert (np.diff(order) > 0).sum() == len(x) - 2  # Both zeros are one.
  wanted = jnp.asarray([-(2**31), -7, 0, 2**31 - 1], jnp.int32)
  np.testing.assert_array_equal(blocks._least(lambda t: t >= wanted, 4), wanted)


def test_auto_is_exact_up_to_a_size_of_each_platform_and_a_method_that_is_set_is_used_at_any():
  auto = crf.CrfParams()
  for platform, most in EXACT_PIXELS.items():
    assert call._method(auto, most, platform) == "exact"
    assert call._method(auto, most + 1, platform) == "lattice"
  assert call._method(auto, 1, "cpu") == "lattice"
  for platform in ("cpu", *EXACT_PIXELS):
    for method in ("lattice", "landmarks", "exact"):
      for size in (1, 2**30):
        assert call._method(auto.replace(method=method), size, platform) == method


def lowered(f, platform, *args):
  return f.trace(*args).lower(lowering_platforms=(platform,)).as_text()


def test_programs_hold_the_form_of_their_target(monkeypatch):
  args = jnp.zeros((6, 7, 2)), jnp.zeros((6, 7, 3))

  def f(params):
    return jax.jit(lambda logits, image: crf.dense_crf(logits, image, params))

  auto, lattice = crf.CrfParams(iterations=1), crf.CrfParams(iterations=1, method="lattice")
  of_any = f(auto)  # traced once
  for_all = jax.export.export(of_any, platforms=("cpu", "cuda", "tpu"))(*args)
  np.testing.assert_allclose(for_all.call(*args), 0.5, atol=1e-6)
  keys = re.compile("shift_left .*i64")  # of the lattice
  assert keys.search(lowered(of_any, "cpu", *args))
  assert not keys.search(lowered(of_any, "cuda", *args))
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert "tpu_custom_call" in lowered(f(auto), "tpu", *args)
  assert "tpu_custom_call" not in lowered(f(lattice), "tpu", *args)
