"""Upsampling: the definition in NumPy loops, numbers by hand, XLA's own transposed convolution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jseg.nn import (
  ConvTranspose,
  UpConv,
  bed_of_nails,
  bilinear_kernel,
  conv_transpose,
  upsample_fixed,
)


def definition(x, kernel, strides):
  """PyTorch's and Caffe's: every input adds a scaled copy of the kernel."""
  *size, _, f = kernel.shape
  out = [(n - 1) * s + k for n, s, k in zip(x.shape[1:-1], strides, size, strict=True)]
  y = np.zeros((x.shape[0], *out, f))
  for at in np.ndindex(*x.shape[1:-1]):
    place = tuple(slice(i * s, i * s + k) for i, s, k in zip(at, strides, size, strict=True))
    y[(slice(None), *place)] += np.einsum("bc,...cf->b...f", x[(slice(None), *at)], kernel)
  return y


# input without batch, kernel without channels, strides
CASES = {
  "k4 s2": ((3, 5), (4, 4), (2, 2)),
  "k3 s2": ((3, 4), (3, 3), (2, 2)),
  "k2 s2": ((3, 4), (2, 2), (2, 2)),
  "kernel below stride": ((3, 2), (1, 2), (3, 3)),
  "k7 s4 and k5 s1": ((2, 3), (7, 5), (4, 1)),
  "one pixel": ((1, 1), (5, 4), (2, 2)),
  "1-d": ((4,), (5,), (2,)),
  "3-d": ((2, 3, 2), (4, 3, 2), (2, 2, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_transposed_convolution_and_its_gradients_equal_the_definition(case):
  size, kernel_size, strides = CASES[case]
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *size, 3)).astype(np.float32)
  kernel = rng.normal(size=(*kernel_size, 3, 4)).astype(np.float32)
  expected = definition(x, kernel, strides)
  # Bilinear: <dy, f(x', k)> = <dx, x'> and <dy, f(x, k')> = <dk, k'> for any x' and k'.
  dy, x2, kernel2 = (rng.normal(size=a.shape).astype(np.float32) for a in (expected, x, kernel))

  @jax.jit
  def ours(x, kernel):
    y, pull = jax.vjp(lambda x, k: conv_transpose(x, k, strides=strides), x, kernel)
    return y, *pull(dy)

  y, dx, dkernel = ours(x, kernel)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(
    (dx * x2).sum(), (dy * definition(x2, kernel, strides)).sum(), atol=1e-3
  )
  np.testing.assert_allclose(
    (dkernel * kernel2).sum(), (dy * definition(x, kernel2, strides)).sum(), atol=1e-3
  )


def test_the_kernel_is_not_mirrored():
  ours = jax.jit(conv_transpose, static_argnames="strides")
  x = jnp.array([1.0, 10.0]).reshape(1, 2, 1)
  y = ours(x, jnp.array([1.0, 2, 3]).reshape(3, 1, 1), strides=2)
  np.testing.assert_array_equal(y.ravel(), [1, 2, 3 + 10, 20, 30])
  # XLA's own wants it mirrored.
  x, kernel = (
    jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(1, 3, 4, 2), (4, 4, 2, 3)])
  )
  theirs = jax.jit(lambda x, k: lax.conv_transpose(x, k[::-1, ::-1], (2, 2), "VALID"))(x, kernel)
  np.testing.assert_allclose(ours(x, kernel, strides=2), theirs, atol=1e-5)


def test_the_derivative_is_made_of_products():
  x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((4, 4, 2, 2))
  grad = jax.grad(lambda x, k: conv_transpose(x, k, strides=2).sum(), (0, 1))
  ops = set(re.findall(r"stablehlo\.(\w+)", jax.jit(grad).lower(x, kernel).as_text()))
  assert "dot_general" in ops
  assert not {"convolution", "scatter", "gather"} & ops


def test_module():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 16))
  module = ConvTranspose(32, (4, 4), 2, use_bias=True, dtype=jnp.bfloat16)
  variables = jax.jit(module.init)(jax.random.key(1), x)
  kernel = variables["params"]["kernel"]
  assert (kernel.shape, kernel.dtype) == ((4, 4, 16, 32), jnp.float32)
  # An output sees 2 x 2 of the 4 x 4 taps.
  assert abs(kernel.std() / np.sqrt(2 / (4 * 16)) - 1) < 0.03
  variables["params"]["bias"] += jnp.arange(32.0)
  y = jax.jit(module.apply)(variables, x)
  assert y.dtype == jnp.bfloat16
  expected = definition(np.asarray(x), np.asarray(kernel), (2, 2)) + np.arange(32)
  # Terms and results are rounded to 2^-9; the biases are whole numbers apart.
  np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-5, atol=2**-4)
  bare = jax.eval_shape(ConvTranspose(2, (4, 4), 2).init, jax.random.key(1), x)
  assert list(bare["params"]) == ["kernel"]


def test_up_convolution_of_volumes():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 2, 3, 2, 4)).astype(np.float32)
  module = UpConv(3)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  kernel = np.asarray(variables["params"]["kernel"])
  assert kernel.shape == (2, 2, 2, 4, 3)
  variables["params"]["bias"] += jnp.arange(3.0)
  expected = definition(x, kernel, (2, 2, 2)) + np.arange(3)
  np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, atol=1e-5)
  bare = jax.eval_shape(UpConv(3, use_bias=False).init, jax.random.key(0), x)
  assert list(bare["params"]) == ["kernel"]
  init = jax.jit(UpConv(64).init)
  wide = init(jax.random.key(0), jnp.zeros((1, 1, 1, 1, 64)))["params"]["kernel"]
  assert abs(wide.std() / np.sqrt(2 / 64) - 1) < 0.02


# upsample_filt of FCN's surgery.py, by hand.
@pytest.mark.parametrize(
  ("size", "expected"),
  [
    (1, [1]),
    (2, [0.5, 0.5]),
    (3, [0.5, 1, 0.5]),
    (4, [0.25, 0.75, 0.75, 0.25]),
    (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
  ],
)
def test_bilinear_kernel_by_hand(size, expected):
  kernel = bilinear_kernel(None, (size, size, 3, 3))
  filters = np.outer(expected, expected)
  for c, f in np.ndindex(3, 3):
    np.testing.assert_allclose(kernel[:, :, c, f], filters * (c == f), atol=1e-6)


@pytest.mark.parametrize(("k", "s"), [(4, 2), (63, 32), (5, 2), (2, 3)])
def test_fixed_upsampling_equals_the_learned_one_at_its_start(k, s):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 2, 3, 2)).astype(np.float32)
  dy = rng.normal(size=(2, s + k, 2 * s + k, 2)).astype(np.float32)
  module = ConvTranspose(2, (k, k), s, kernel_init=bilinear_kernel)

  @jax.jit
  def both(x):
    variables = module.init(jax.random.key(0), x)
    y, pull = jax.vjp(lambda x: module.apply(variables, x), x)
    fixed, pull_fixed = jax.vjp(lambda x: upsample_fixed(x, k, s), x)
    return (y, *pull(dy)), (fixed, *pull_fixed(dy))

  for learned, fixed in zip(*both(x), strict=True):
    np.testing.assert_allclose(fixed, learned, atol=1e-3 if s == 32 else 1e-5)


def test_fixed_upsampling_interpolates():
  upsample = jax.jit(upsample_fixed, static_argnums=(1, 2))
  x = jnp.array([0.0, 8, 16]).reshape(1, 3, 1)
  # Centers of outputs lie a quarter of an input on either side of it.
  np.testing.assert_allclose(upsample(x, 4, 2).ravel(), [0, 0, 2, 6, 10, 14, 12, 4])
  # An odd kernel leaves inputs where they are.
  np.testing.assert_allclose(upsample(x, 3, 2).ravel(), [0, 0, 4, 8, 12, 16, 8])
  volume = jnp.full((1, 3, 3, 3, 2), 5.0, jnp.bfloat16)
  y = upsample(volume, 4, 2)
  assert (y.shape, y.dtype) == ((1, 8, 8, 8, 2), jnp.bfloat16)
  np.testing.assert_array_equal(y[:, 2:-2, 2:-2, 2:-2], 5)


def test_checkerboard():
  """A stride that doesn't divide the kernel reaches some outputs more often than others."""
  ours = jax.jit(conv_transpose, static_argnames="strides")

  def taps(k):
    return np.asarray(ours(jnp.ones((1, 5, 1)), jnp.ones((k, 1, 1)), strides=2)).ravel()

  np.testing.assert_array_equal(taps(3), [1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 1])
  np.testing.assert_array_equal(taps(4), [1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1])
  np.testing.assert_array_equal(taps(2), np.ones(10))


def test_bed_of_nails():
  x = jnp.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1)
  expected = [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(bed_of_nails(x)[0, :, :, 0], expected)
  np.testing.assert_array_equal(bed_of_nails(x[:, 0], 3).ravel(), [1, 0, 0, 2, 0, 0])
  dx = jax.grad(lambda x: (bed_of_nails(x) * jnp.arange(16.0).reshape(1, 4, 4, 1)).sum())(x)
  np.testing.assert_array_equal(dx.ravel(), [0, 2, 8, 10])


@pytest.mark.parametrize("case", CASES)
def test_on_a_tpu_the_same_in_another_form(case, monkeypatch):
  size, kernel_size, strides = CASES[case]
  x, kernel = (
    jax.random.normal(jax.random.key(i), s)
    for i, s in enumerate([(2, *size, 3), (*kernel_size, 3, 4)])
  )

  def compiled():
    return jax.jit(lambda x, kernel: conv_transpose(x, kernel, strides=strides))(x, kernel)

  expected = compiled()
  monkeypatch.setattr(
    lax, "platform_dependent", lambda *args, default, **forms: forms.get("tpu", default)(*args)
  )
  np.testing.assert_allclose(compiled(), expected, atol=1e-5)
