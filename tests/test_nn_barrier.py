import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn.barrier import after, computed_after, true_after


@pytest.mark.parametrize("first", [0.0, -1.0, 1e30, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_what_comes_after_is_unchanged_whatever_came_first(first, dtype):
  first = np.full((2, 1), first).astype("float32")
  with np.errstate(invalid="ignore"):
    arrays = [jnp.asarray(first).astype(dtype), jnp.zeros((0, 3)), jnp.asarray(1.0)]
  then = jnp.asarray([1.0, np.nan, np.inf])
  np.testing.assert_array_equal(jax.jit(after)(then, arrays), then)
  assert jax.jit(true_after)(arrays)
  assert true_after([])


def test_what_is_computed_after_is_what_it_would_be():
  def both(first, x):
    return computed_after([first], lambda x, y: {"sum": x + y, "first": x[0]}, x, 2 * x)

  x = jnp.arange(6.0).reshape(3, 2)
  for first in (jnp.zeros(()), jnp.full((2, 2), jnp.nan)):
    out = jax.jit(both)(first, x)
    np.testing.assert_array_equal(out["sum"], 3 * x)
    np.testing.assert_array_equal(out["first"], x[0])
  mapped = jax.vmap(both)(jnp.zeros((4,)), jnp.stack([x, -x, 2 * x, 0 * x]))
  np.testing.assert_array_equal(mapped["sum"][1], -3 * x)
  # It is a branch of its own in the compiled program, too.
  assert "conditional(" in jax.jit(both).lower(jnp.zeros(()), x).compile().as_text()
