import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn.barrier import after, true_after


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
