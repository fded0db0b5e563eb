"""Keys of examples, and the question whether a batch is split."""

import jax
import jax.numpy as jnp
import numpy as np

from jseg.nn.devices import AXIS, example_keys, is_split


def test_keys_are_those_of_the_places_in_the_global_batch():
  key = jax.random.key(7)
  expected = [jax.random.key_data(jax.random.fold_in(key, place)) for place in range(4)]
  one = jax.random.key_data(example_keys(key, 4))
  np.testing.assert_array_equal(one, expected)
  two = jax.pmap(lambda _, key: jax.random.key_data(example_keys(key, 2)), AXIS, in_axes=(0, None))(
    jnp.arange(2), key
  )
  np.testing.assert_array_equal(two.reshape(one.shape), expected)


def test_only_a_map_over_the_axis_splits():
  answers = [is_split()]

  def ask(x):
    answers.append(is_split())
    return x

  jax.vmap(ask, axis_name=AXIS)(jnp.arange(2))
  jax.vmap(ask, axis_name="other")(jnp.arange(2))
  assert answers == [False, True, False]
