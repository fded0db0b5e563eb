"""Resampling: numbers by hand (PyTorch's formulas), JAX's own resize, and no leak from padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jseg.nn import pad_to_multiple, resize_bilinear, resize_nearest, resize_to
from jseg.types import InputError


def row(*values):
  return jnp.array(values, jnp.float32).reshape(1, 1, -1, 1)


# torch.nn.functional.interpolate(mode="bilinear", align_corners=...)
@pytest.mark.parametrize(
  ("values", "out", "align_corners", "expected"),
  [
    ((0, 4), 4, False, [0, 1, 3, 4]),
    ((0, 3), 4, True, [0, 1, 2, 3]),
    ((0, 1, 2, 3), 2, False, [0.5, 2.5]),
    ((0, 1, 2, 3), 2, True, [0, 3]),
    ((0, 1, 2, 3, 4), 3, False, [1 / 3, 2, 11 / 3]),
    ((0, 1, 2, 3, 4), 1, True, [0]),
    ((7,), 3, False, [7, 7, 7]),
    ((7,), 3, True, [7, 7, 7]),
    ((2, 5), 2, True, [2, 5]),
  ],
)
def test_bilinear_by_hand(values, out, align_corners, expected):
  x = row(*values)
  y = resize_bilinear(x, (1, out), align_corners=align_corners)
  np.testing.assert_allclose(y.ravel(), expected, atol=1e-6)
  y = resize_bilinear(x.swapaxes(1, 2), (out, 1), align_corners=align_corners)
  np.testing.assert_allclose(y.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(9, 4), (3, 14), (5, 7), (1, 1)])
def test_bilinear_equals_jax(size):
  x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
  expected = jax.image.resize(x, (2, *size, 3), "linear", antialias=False)
  np.testing.assert_allclose(resize_bilinear(x, size), expected, atol=1e-5)


def test_bilinear_volume_and_type():
  x = jnp.arange(8.0).reshape(1, 2, 2, 2, 1).astype(jnp.bfloat16)
  y = resize_bilinear(x, (3, 3, 3), align_corners=True)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y[0, 1, 1, 1, 0], 3.5)  # the middle of the cube


@pytest.mark.parametrize(
  ("n", "out", "expected"),
  [
    (2, 4, [0, 0, 1, 1]),
    (3, 2, [0, 1]),
    (3, 5, [0, 0, 1, 1, 2]),
    (5, 3, [0, 1, 3]),
    (2, 2, [0, 1]),
  ],
)
def test_nearest_by_hand(n, out, expected):
  x = jnp.arange(n, dtype=jnp.uint8).reshape(1, n, 1, 1)
  y = resize_nearest(x, (out, 2))
  assert y.dtype == jnp.uint8
  np.testing.assert_array_equal(y[0, :, 0, 0], expected)
  np.testing.assert_array_equal(y[0, :, 1, 0], expected)


@pytest.fixture(params=["taken", "multiplied"])
def _form(request, monkeypatch):
  """The form of CPUs, or that of other platforms."""
  if request.param == "multiplied":
    monkeypatch.setattr(lax, "platform_dependent", lambda *args, default, cpu: default(*args))


@pytest.mark.parametrize(
  ("size", "out_size"), [((5, 7), (9, 4)), ((6, 8), (6, 8)), ((1, 3), (10, 11)), ((6, 8), (1, 1))]
)
@pytest.mark.usefixtures("_form")
def test_resize_to_equals_jax_on_the_valid_part_and_padding_never_leaks(size, out_size):
  canvas = (10, 11)
  valid = jax.random.normal(jax.random.key(0), (*size, 3))
  padded = jnp.full((6, 8, 3), jnp.inf).at[: size[0], : size[1]].set(valid)
  # A function of its own: JAX counts the programs of one function over all its jits.
  resize = jax.jit(lambda *args: resize_to(*args, canvas))
  y = resize(padded, jnp.array(size), jnp.array(out_size))
  assert y.shape == (*canvas, 3)
  expected = jax.image.resize(valid, (*out_size, 3), "linear", antialias=False)
  np.testing.assert_allclose(y[: out_size[0], : out_size[1]], expected, atol=1e-5)
  # One program for all sizes.
  resize(padded, jnp.array((2, 2)), jnp.array((3, 3)))
  assert resize._cache_size() == 1


def test_resize_to_rounds_alike_in_every_program():
  # What is decided of a near tie must not depend on the canvas, the blocks or the compiler.
  logits = jax.random.normal(jax.random.key(0), (20, 30, 3))
  size, out = np.array((19, 23)), np.array((61, 50))
  expected = np.asarray(logits)
  for axis in (0, 1):
    at = np.clip((2 * np.arange(out[axis]) + 1) * size[axis] - out[axis], 0, None)
    before, rest = np.divmod(np.minimum(at, 2 * out[axis] * (size[axis] - 1)), 2 * out[axis])
    share = rest.astype(np.float32) * (np.float32(0.5) / np.float32(out[axis]))
    share = share.reshape(-1, *[1] * (2 - axis))
    after = np.minimum(before + 1, size[axis] - 1)
    expected = expected.take(before, axis) * (1 - share) + expected.take(after, axis) * share
  whole = jax.jit(lambda *args: resize_to(*args, (70, 60)))(logits, size, out)
  np.testing.assert_array_equal(whole[:61, :50], expected)
  blocks = jax.jit(
    lambda *args: lax.map(
      lambda first: 2 * resize_to(*args, (64, 50), rows=(first, 16)), 16 * jnp.arange(4)
    )
  )(logits, size, out)
  np.testing.assert_array_equal(blocks.reshape(64, 50, 3)[:61], 2 * expected)
  np.testing.assert_array_equal(whole[61:], jnp.broadcast_to(whole[60], (9, 60, 3)))


def test_what_whole_numbers_of_32_bits_do_not_hold():
  logits = jax.ShapeDtypeStruct((1 << 14, 4, 2), np.float32)
  size = jnp.array((4, 4))
  with pytest.raises(InputError, match=r"16384 x 65536 must be below 2\^30"):
    jax.eval_shape(lambda x: resize_to(x, size, size, (1 << 16, 4), (0, 1)), logits)


def test_gradient_of_a_resize_hands_everything_back():
  x = jnp.zeros((1, 3, 4, 2))
  dx = jax.grad(lambda x: resize_bilinear(x, (7, 9)).sum())(x)
  np.testing.assert_allclose(dx.sum(), 7 * 9 * 2, rtol=1e-6)


def test_padding_to_a_multiple():
  x = jnp.ones((2, 5, 8, 3))
  y = pad_to_multiple(x, 4)
  assert y.shape == (2, 8, 8, 3)
  np.testing.assert_array_equal(y[:, :5], x)
  assert not y[:, 5:].any()
  assert pad_to_multiple(jnp.ones((1, 1, 2, 3, 1)), 2).shape == (1, 2, 2, 4, 1)
