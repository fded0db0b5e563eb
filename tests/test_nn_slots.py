"""Heads that work through the used slots of a batch in chunks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jseg.nn.detection import MaskHead, in_chunks, list_slots
from jseg.nn.detection.slots import fitting_chunk
from jseg.nn.devices import AXIS


def test_a_list_holds_the_used_slots_of_all_images_first():
  used = np.array([[True, True, False], [False] * 3, [True, False, False]])
  slots = list_slots(jnp.asarray(used))
  values = jnp.arange(9).reshape(3, 3) + 1
  assert int(slots.count) == 3
  assert list(slots.take(values)[:3]) == [1, 2, 7]
  assert list(slots.image[:3]) == [0, 0, 2]
  back = slots.put_back(jnp.arange(9) + 10)
  np.testing.assert_array_equal(back, [[10, 11, 0], [0, 0, 0], [12, 0, 0]])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=2))
def test_what_is_listed_comes_back(counts):
  used = np.arange(4)[None] < np.array(counts)[:, None]
  values = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
  slots = list_slots(jnp.asarray(used))
  back = slots.put_back(slots.take(jnp.asarray(values)))
  np.testing.assert_array_equal(back, np.where(used[..., None], values, 0))


@pytest.mark.parametrize(
  ("length", "most", "chunk"), [(1000, 256, 250), (100, 8, 5), (128, 8, 8), (11, 4, 4), (3, 8, 3)]
)
def test_chunks_divide_the_list_where_they_can(length, most, chunk):
  assert fitting_chunk(length, most) == chunk


HEAD = MaskHead(3, features=4, convs=1, norm="group")
N = 11  # slots, in chunks of 4


@functools.cache
def inputs():
  rng = np.random.default_rng(0)
  x = jnp.float32(rng.normal(size=(N, 4, 4, 4)))
  classes = jnp.asarray(rng.integers(0, 3, N), jnp.int32)
  return HEAD.init(jax.random.key(0), x, classes), x, classes


def masks(variables, x, classes, count):
  return in_chunks(HEAD.apply, variables, x, classes, count=count, chunk=4)


def together(variables, x, classes, count):
  y = HEAD.apply(variables, x, classes)
  return jnp.where((jnp.arange(N) < count)[:, None, None], y, 0)


def with_gradient(compute):
  """Masks up to `count`, and the gradient of the sum of their squares."""

  def loss(variables, x, classes, count):
    y = compute(variables, x, classes, count)
    y = jnp.where((jnp.arange(N) < count)[:, None, None], y, 0)
    return jnp.square(y).sum(), y

  return jax.value_and_grad(loss, (0, 1), has_aux=True)


@functools.cache
def compiled(compute):
  return jax.jit(with_gradient(compute))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, N])
def test_chunks_are_what_all_slots_would_be(count):
  ours = compiled(masks)(*inputs(), jnp.int32(count))
  chex.assert_trees_all_close(ours, compiled(together)(*inputs(), jnp.int32(count)), atol=1e-4)
  assert bool(ours[0][0] > 0) == (count > 0)
  # What lies behind the last chunk is left alone, whatever it is.
  variables, x, classes = inputs()
  first = -(-count // 4) * 4
  broken = compiled(masks)(variables, x.at[first:].set(jnp.nan), classes, jnp.int32(count))
  chex.assert_trees_all_equal(broken, ours)


def test_devices_take_as_many_turns_as_they_need():
  variables, x, classes = inputs()
  counts = jnp.array([1, N], jnp.int32)

  def step(count):
    result = with_gradient(masks)(variables, x, classes, count)
    return result, jax.lax.psum(result[1], AXIS)

  (_, y), gradient = jax.pmap(step, AXIS)(counts)[0]
  for i, count in enumerate(counts):
    (_, expected), expected_gradient = compiled(together)(variables, x, classes, count)
    chex.assert_trees_all_close(y[i], expected, atol=1e-4)
    own = jax.tree.map(lambda a, i=i: a[i], gradient)
    chex.assert_trees_all_close(own, expected_gradient, atol=1e-4)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_a_loop(platform):
  exported = jax.export.export(compiled(masks), platforms=[platform])(*inputs(), jnp.int32(1))
  assert "stablehlo.while" in exported.mlir_module()
