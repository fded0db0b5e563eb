import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.barrier import after, computed_after


@pytest.mark.parametrize("first", [0.0, -1.0, 1e30, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_what_comes_after_is_unchanged_whatever_came_first(first, dtype):
  first = np.full((2, 1), first).astype("float32")
  with np.errstate(invalid="ignore"):
    arrays = [jnp.asarray(first).astype(dtype), jnp.zeros((0, 3)), jnp.asarray(1.0)]
  then = jnp.asarray([1.0, np.nan, np.inf])
  for come_first in (arrays, []):
    np.testing.assert_array_equal(jax.jit(after)(then, come_first), then)


def both(first, x):
  return computed_after([2 * first], lambda x, y: {"sum": x + y, "first": x[0]}, x, 2 * x)


def test_what_is_computed_after_is_what_it_would_be():
  x = jnp.arange(6.0).reshape(3, 2)
  for first in (jnp.zeros(()), jnp.full((2, 2), jnp.nan)):
    out = jax.jit(both)(first, x)
    np.testing.assert_array_equal(out["sum"], 3 * x)
    np.testing.assert_array_equal(out["first"], x[0])
  mapped = jax.vmap(both)(jnp.zeros((4,)), jnp.stack([x, -x, 2 * x, 0 * x]))
  np.testing.assert_array_equal(mapped["sum"][1], -3 * x)
  slope = jax.jit(jax.grad(lambda x: both(jnp.zeros(7), x)["sum"].sum()))(x)
  np.testing.assert_array_equal(slope, jnp.full_like(x, 3.0))


def cubes_after(first, x):
  return computed_after([2 * first], lambda x: x**3, x).sum()


@pytest.mark.parametrize(
  "function", [lambda first, x: after(x, [2 * first]).sum(), cubes_after, jax.grad(cubes_after, 1)]
)
def test_the_compiled_program_waits_for_what_comes_first(function):
  # XLA may order what doesn't depend on each other as it likes, and drops what nothing reads.
  text = jax.jit(function).lower(jnp.zeros(7), jnp.zeros((3, 2))).compile().as_text()
  (doubled,) = re.findall(r"(%\S+) = f32\[7\]\S* fusion\(", text)
  assert re.search(rf" call\({re.escape(doubled)}, ", text)


def test_what_is_computed_after_is_computed_once_and_by_itself():
  def readers(x, y):
    total = computed_after([], jnp.add, jnp.sin(x), y)
    return total + 1, total @ total.T

  text = jax.jit(readers).lower(*jnp.ones((2, 3, 2))).compile().as_text()
  assert len(re.findall(r" sine\(", text)) == 1
  (computation,) = re.findall(r" call\(.*to_apply=(%\S+),", text)
  body = text.split(f"\n{computation} (")[1].split("\n}")[0]
  assert "add" in body
  assert "sin" not in body
