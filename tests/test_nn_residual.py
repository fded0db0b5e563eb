"""The sum that ends a residual unit: what plain code gives, and no work twice."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn import add_relu


def plain(x, y):
  return nn.relu(x + y)


def maps(dtype="float32"):
  x, y = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5))
  x[0, 0, 0], y[0, 0, 0] = 1.0, -1.0  # ties
  x[0, 0, 0, 0] = np.nan
  return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("over_images", [False, True])
def test_values_and_gradients_are_those_of_the_plain_form(dtype, over_images):
  def both(add):
    def values(x, y):
      return jax.vmap(add)(x, y) if over_images else add(x, y)

    def loss(x, y):
      return jnp.sum(jnp.square(values(x, y)))

    return jax.jit(values)(*maps(dtype)), *jax.jit(jax.grad(loss, (0, 1)))(*maps(dtype))

  for found, expected in zip(both(add_relu), both(plain), strict=True):
    # NumPy knows no NaN of a bfloat16.
    np.testing.assert_array_equal(found.astype("float32"), expected.astype("float32"))
    assert found.dtype == dtype


def test_no_images_are_no_sum():
  empty = jnp.zeros((0, 3, 4, 5))
  assert add_relu(empty, empty).shape == empty.shape


def test_twice_as_many_units_move_twice_as_many_bytes():
  def moved(units):
    def chain(x, kernel):
      for _ in range(units):
        x = add_relu(x, (x.reshape(-1, 8) @ kernel).reshape(x.shape))
      return x

    given = jnp.zeros((1, 16, 16, 8)), jnp.zeros((8, 8))
    return jax.jit(chain).lower(*given).compile().cost_analysis()["bytes accessed"]

  assert moved(8) <= 2 * moved(4)
