import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.losses import cross_entropy, mean_over_devices
from jseg.types import IGNORE


def test_hand_worked():
  # softmax of (0, ln 3) is (1/4, 3/4): the losses are ln 4 and ln 4/3; the third pixel is void.
  logits = jnp.array([[0.0, jnp.log(3.0)]] * 3)
  total, count = cross_entropy(logits, jnp.array([0, 1, IGNORE]))
  assert float(total) == pytest.approx(np.log(4.0) + np.log(4.0 / 3.0), rel=1e-6)
  assert float(count) == 2.0


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_ignored_pixels_have_neither_loss_nor_gradient(wrap):
  logits = jnp.array([[1.0, -2.0, 0.5], [1e4, -1e4, 0.0]])
  gradient = wrap(jax.grad(lambda x: cross_entropy(x, jnp.array([2, IGNORE]))[0]))(logits)
  assert np.isfinite(gradient).all()
  assert (np.asarray(gradient[1]) == 0).all()
  assert np.abs(gradient[0]).max() > 0.1


def test_nothing_valid_is_zero_over_zero_without_nan():
  total, count = jax.jit(cross_entropy)(jnp.ones((2, 3)), jnp.full(2, IGNORE))
  assert (float(total), float(count)) == (0.0, 0.0)


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.zeros((4096, 2), jnp.bfloat16)
  total, count = cross_entropy(logits, jnp.zeros(4096, jnp.int32))
  assert total.dtype == count.dtype == jnp.float32
  assert float(total) == pytest.approx(4096 * np.log(2.0), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-50.0, 50.0))
def test_adding_a_constant_to_all_logits_changes_nothing(seed, shift):
  rng = np.random.default_rng(seed)
  logits, label = rng.normal(size=(7, 4)).astype(np.float32), rng.integers(0, 4, 7)
  base, shifted = (
    cross_entropy(jnp.array(x), jnp.array(label))[0] for x in (logits, logits + shift)
  )
  assert float(shifted) == pytest.approx(float(base), abs=1e-3)


def test_sums_are_reduced_before_the_division():
  # Device 0 sees one pixel of loss 1, device 1 nine of loss .1: (1 + .9) / 10, not the mean of the
  # device means, (1 + .1) / 2.
  mean, count = jax.pmap(lambda t, c: mean_over_devices(t, c, "batch"), axis_name="batch")(
    jnp.array([1.0, 0.9]), jnp.array([1.0, 9.0])
  )
  np.testing.assert_allclose(mean, [0.19, 0.19], rtol=1e-6)
  np.testing.assert_allclose(count, [10.0, 10.0])
