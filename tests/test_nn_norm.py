"""Normalization: numbers by hand, and a batch that lies on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn import Norm
from jseg.nn.devices import AXIS
from jseg.types import InputError

# Two images of 1 x 2 pixels, one channel: the mean is 5, the variance (16 + 4 + 0 + 36) / 4 = 14.
X = jnp.array([1.0, 3.0, 5.0, 11.0]).reshape(2, 1, 2, 1)


def variables(scale=1.0, bias=0.0, mean=0.0, var=1.0):
  return {
    "params": {"scale": jnp.array([scale]), "bias": jnp.array([bias])},
    "batch_stats": {"mean": jnp.array([mean]), "var": jnp.array([var])},
  }


def test_batch_norm_by_hand():
  norm = Norm("batch", momentum=0.9, epsilon=2.0)  # 14 + 2: the divisor is 4
  y, new = norm.apply(variables(2.0, 0.5), X, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(y.ravel(), [-1.5, -0.5, 0.5, 3.5], rtol=1e-6)
  np.testing.assert_allclose(new["batch_stats"]["mean"], [0.5], rtol=1e-6)  # .9 * 0 + .1 * 5
  np.testing.assert_allclose(new["batch_stats"]["var"], [2.3], rtol=1e-6)  # .9 * 1 + .1 * 14


def test_running_statistics_are_used_and_kept_in_evaluation():
  norm = Norm("batch", epsilon=2.0)
  y, new = norm.apply(variables(2.0, 0.5, 3.0, 14.0), X, train=False, mutable=["batch_stats"])
  np.testing.assert_allclose(y.ravel(), [-0.5, 0.5, 1.5, 4.5], rtol=1e-6)
  assert (new["batch_stats"]["mean"], new["batch_stats"]["var"]) == (3.0, 14.0)


def plain_batch_norm(params, x, epsilon=1e-5):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  hat = (x - mean[None, None, None]) / jnp.sqrt(var + epsilon)[None, None, None]
  return hat * params["scale"][None, None, None] + params["bias"][None, None, None]


def plain_group_norm(params, x, groups, epsilon=1e-5):
  g = x.reshape(*x.shape[:3], groups, -1)
  mean, var = g.mean((1, 2, 4), keepdims=True), g.var((1, 2, 4), keepdims=True)
  hat = ((g - mean) / jnp.sqrt(var + epsilon)).reshape(x.shape)
  return hat * params["scale"][None, None, None] + params["bias"][None, None, None]


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_gradients_equal_those_of_the_plain_formula(kind):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(2.0, 3.0, (3, 4, 5, 6)), jnp.float32)
  params = {"scale": jnp.asarray(rng.normal(size=6), jnp.float32), "bias": jnp.ones(6)}
  norm = Norm(kind, groups=4)  # two groups, as 6 channels don't divide by 4
  state = {} if kind == "group" else {"mean": jnp.zeros(6), "var": jnp.ones(6)}

  def ours(params, x):
    y = norm.apply({"params": params, "batch_stats": state}, x, train=True, mutable=["batch_stats"])
    return jnp.sin(y[0]).sum(), y[0]

  def theirs(params, x):
    y = plain_group_norm(params, x, 2) if kind == "group" else plain_batch_norm(params, x)
    return jnp.sin(y).sum(), y

  a, b = (jax.jit(jax.grad(f, (0, 1), has_aux=True))(params, x) for f in (ours, theirs))
  for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(p, q, atol=2e-4, rtol=1e-4)


def test_group_norm_does_not_look_at_other_images():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 8)), jnp.float32)
  norm = Norm("group", groups=2)
  state = norm.init(jax.random.key(0), x, train=True)
  assert set(state) == {"params"}
  y = norm.apply(state, x, train=True)
  np.testing.assert_allclose(y[:1], norm.apply(state, x[:1], train=False), atol=1e-6)
  np.testing.assert_allclose(y[0, :, :, :4].mean(), 0, atol=1e-6)
  np.testing.assert_allclose(y[0, :, :, :4].std(), 1, atol=1e-4)


def on_devices(kind, devices, split):
  """Output, new statistics and gradient of (y * [1 2 3 4]^2) with X split over devices."""
  weights = jnp.array([1.0, 4.0, 9.0, 16.0]).reshape(X.shape)

  def step(x, w):
    def loss(params):
      state = {**variables(mean=1.0), "params": params}
      y, new = Norm(kind, epsilon=2.0).apply(state, x, train=True, mutable=["batch_stats"])
      return (w * y**2).sum(), (y, new["batch_stats"])

    grads, (y, stats) = jax.grad(loss, has_aux=True)(variables()["params"])
    dx = jax.grad(lambda x: loss_of_x(x, w))(x)
    return y, dx, stats, jax.lax.psum(grads, AXIS)

  def loss_of_x(x, w):
    y, _ = Norm(kind, epsilon=2.0).apply(variables(), x, train=True, mutable=["batch_stats"])
    return (w * y**2).sum()

  mapped = jax.pmap(step, AXIS, devices=jax.devices()[:devices])
  y, dx, stats, grads = mapped(split(X), split(weights))
  return y.ravel(), dx.ravel(), stats, grads


def test_two_devices_equal_one():
  one = on_devices("batch", 1, lambda a: a[None])
  two = on_devices("batch", 2, lambda a: a[:, None])
  np.testing.assert_allclose(one[0], [-1, -0.5, 0, 1.5], rtol=1e-6)
  for a, b in zip(one[:2], two[:2], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert abs(one[1]).max() > 1  # the gradient that was compared is not zero
  for a, b in zip(jax.tree.leaves(one[2:]), jax.tree.leaves(two[2:]), strict=True):
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
    np.testing.assert_allclose(a[0], b[1], rtol=1e-5)
  np.testing.assert_allclose(two[2]["mean"].ravel(), [1.4, 1.4], rtol=1e-6)  # .9 * 1 + .1 * 5
  np.testing.assert_allclose(two[2]["var"].ravel(), [2.3, 2.3], rtol=1e-6)


def test_local_batch_norm_uses_each_device_alone_but_devices_agree_on_the_state():
  y, _, stats, _ = on_devices("local_batch", 2, lambda a: a[:, None])
  # Means 2 and 8, variances 1 and 9.
  expected = [-1 / 3**0.5, 1 / 3**0.5, -3 / 11**0.5, 3 / 11**0.5]
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  np.testing.assert_allclose(stats["mean"].ravel(), [1.4, 1.4], rtol=1e-6)
  assert stats["var"][0] == stats["var"][1]


def test_frozen_batch_norm():
  norm = Norm("frozen_batch", epsilon=2.0)
  state = variables(2.0, 0.5, 3.0, 14.0)

  def loss(params, x):
    y, new = norm.apply({**state, "params": params}, x, train=True, mutable=["batch_stats"])
    return y.sum(), (y, new)

  (grads, dx), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(state["params"], X)
  np.testing.assert_allclose(y.ravel(), [-0.5, 0.5, 1.5, 4.5], rtol=1e-6)
  assert new["batch_stats"] == state["batch_stats"]
  assert not any(g.any() for g in jax.tree.leaves(grads))
  np.testing.assert_allclose(dx, 0.5)


def test_statistics_of_bfloat16_are_float32():
  x = (1000 + 4 * jnp.arange(64.0)).reshape(1, 8, 8, 1).astype(jnp.bfloat16)
  norm = Norm("batch")
  y, new = norm.apply(variables(), x, train=True, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16
  assert new["batch_stats"]["var"].dtype == jnp.float32
  exact = x.astype(jnp.float32)
  np.testing.assert_allclose(new["batch_stats"]["mean"], [0.1 * exact.mean()], rtol=1e-5)
  expected = (exact - exact.mean()) / exact.std()
  np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02)


# JAX 0.7's mean of 18 equal numbers may be another one; that of 16 is exact.
exact = pytest.mark.skipif(not hasattr(jax, "enable_x64"), reason="JAX 0.7's mean isn't exact")


@pytest.mark.parametrize(
  ("level", "shape"),
  [
    (0.0, (2, 3, 3, 1)),
    (1.0, (2, 3, 3, 1)),
    pytest.param(1e4, (2, 3, 3, 1), marks=exact),
    (1e4, (2, 4, 2, 1)),
  ],
)
def test_a_constant_channel_stays_finite_and_has_a_gradient(level, shape):
  x = jnp.full(shape, level)
  dy = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), jnp.float32)

  def normalized(x):
    return Norm("batch").apply(variables(), x, train=True, mutable=["batch_stats"])[0]

  y, backward = jax.vjp(normalized, x)
  np.testing.assert_allclose(y, jnp.zeros_like(x), atol=1e-2)
  np.testing.assert_allclose(backward(dy)[0], (dy - dy.mean()) / np.sqrt(1e-5), rtol=1e-3)


def test_what_is_not_a_number_is_not_hidden():
  x = jnp.ones((2, 3, 3, 1)).at[0, 0, 0].set(np.nan)
  y, state = Norm("batch").apply(variables(), x, train=True, mutable=["batch_stats"])
  assert jnp.isnan(y).all()
  assert jnp.isnan(state["batch_stats"]["var"]).all()


def test_no_norm_has_no_parameters():
  y, state = Norm("none").init_with_output(jax.random.key(0), X, train=True)
  assert not state
  np.testing.assert_array_equal(y, X)


def test_unknown_kind():
  with pytest.raises(InputError, match=r"norm: 'layer' is unknown; choose from batch, local_batch"):
    Norm("layer").init(jax.random.key(0), X, train=True)


def test_values_that_lie_close_together_keep_their_digits():
  # The mean of squares less the square of the mean would leave two digits of this variance.
  rng = np.random.default_rng(0)
  x = (30 + 1e-2 * rng.normal(size=(4, 1, 1, 8))).astype(np.float32)
  norm = Norm("batch")
  variables = norm.init(jax.random.key(0), jnp.array(x), train=False)
  y, _ = norm.apply(variables, jnp.array(x), train=True, mutable=["batch_stats"])
  exact = x.astype(np.float64)
  exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
  np.testing.assert_allclose(y, exact, atol=1e-3)
