"""Half of the products, the same sums: along one axis, and as a form of the convolution."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convolutions import assert_equals_xla
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from jseg import models
from jseg.nn import Conv, conv, winograd

axes = st.tuples(
  st.integers(1, 19), st.integers(1, 3), st.tuples(st.integers(0, 4), st.integers(0, 4))
).filter(lambda axis: axis[0] + sum(axis[2]) > 2 * axis[1])


@given(axes)
@settings(max_examples=40, deadline=None)
def test_it_is_the_sum_of_three_taps(axis):
  size, dilation, pads = axis
  rng = np.random.default_rng(size)
  x, kernel = rng.normal(size=(2, size, 3, 4)), rng.normal(size=(3, 4, 5))
  padded = np.pad(x, [(0, 0), pads, (0, 0), (0, 0)])
  outputs = padded.shape[1] - 2 * dilation
  seen = [padded[:, t * dilation : t * dilation + outputs] for t in range(3)]
  expected = sum(a @ k for a, k in zip(seen, kernel, strict=True))
  x, kernel, padded = (jnp.asarray(a, jnp.float32) for a in (x, kernel, padded))
  parts = winograd.mix_taps(kernel)
  for once in (False, True):
    y = winograd.convolve(x, lambda _: parts, jnp.matmul, pads=pads, dilation=dilation, once=once)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)

  dy = rng.normal(size=y.shape)
  dkernel = winograd.kernel_gradient(
    x,
    jnp.asarray(dy, jnp.float32),
    lambda x, dy: jnp.einsum("bwc,bwf->cf", x, dy),
    before=pads[0],
    dilation=dilation,
  )
  expected = [np.einsum("bhwc,bhwf->cf", a, dy) for a in seen]
  np.testing.assert_allclose(dkernel, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ("outputs", "dilation", "share"),
  [(4, 1, 1 / 2), (5, 1, 4 / 5), (32, 4, 1 / 2), (33, 1, 36 / 66), (12, 4, 2 / 3)],
)
def test_the_share_of_products_by_hand(outputs, dilation, share):
  assert winograd.share_of_products(outputs, dilation) == pytest.approx(share)


def test_rounding_errors_are_about_twice_the_direct_forms():
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(1, 64, 64, 192)), rng.normal(size=(3, 192, 16)) / 24
  expected = sum(x[:, t : t + 62] @ kernel[t] for t in range(3))
  x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
  kernels = winograd.mix_taps(kernel)
  ours = winograd.convolve(x, lambda _: kernels, jnp.matmul, pads=(0, 0), dilation=1, once=False)
  direct = sum(x[:, t : t + 62] @ kernel[t] for t in range(3))
  error, usual = (np.sqrt(np.square(y - expected).mean()) for y in (ours, direct))
  assert error < 2.6 * usual  # with the usual points, 0, 1, -1, 2 and -2, it is half as much again
  if hasattr(jax, "enable_x64"):  # products of JAX 0.7 round nearly twice as much
    assert error < 4e-7 * expected.std()


@pytest.fixture
def everywhere(monkeypatch):
  """Has every convolution of three taps take the form, however small it is."""
  module = sys.modules[Conv.__module__]
  for name in ("_WIDE", "_WIDE_GRADIENT", "_FEWEST_OUTPUTS", "_WORTH_COMPILING"):
    monkeypatch.setattr(module, name, 0)
  monkeypatch.setattr(module, "_FEW_PRODUCTS", 9)
  monkeypatch.setattr(module, "_convolve", module._convolve.__wrapped__)


CASES = {
  "one tile": ((2, 4, 5, 16), (3, 3, 16, 4), {"padding": 1}),
  "tiles that jut out": ((2, 13, 6, 16), (3, 3, 16, 20), {"padding": 1}),
  "valid": ((1, 9, 7, 16), (3, 3, 16, 4), {"padding": 0}),
  "uneven": ((2, 7, 8, 16), (3, 2, 16, 4), {"padding": [(0, 3), (1, 2)]}),
  "rate": ((1, 17, 16, 16), (3, 3, 16, 8), {"padding": 3, "dilation": 3}),
  "uneven rates": ((1, 16, 16, 16), (3, 5, 16, 8), {"padding": 2, "dilation": (2, 1)}),
  "volumes": ((1, 6, 5, 4, 16), (3, 3, 3, 16, 8), {"padding": 1}),
  "flat volumes": (
    (1, 1, 5, 4, 16),
    (3, 3, 3, 16, 8),
    {"padding": [(2, 1), (1, 1), (1, 1)]},
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_convolutions_and_their_gradients_equal_xla(case, everywhere):
  assert_equals_xla(*CASES[case])


def convolutions(shape, kernel_shape, platform="cpu", dtype=jnp.float32, **settings):
  """Convolutions of a forward pass, and convolutions and products of its gradients."""
  x, kernel = (jax.ShapeDtypeStruct(s, dtype) for s in (shape, kernel_shape))
  convolve = functools.partial(conv, **settings)

  def gradients(x, kernel, dy):
    return jax.vjp(convolve, x, kernel)[1](dy)

  def counts(f, *args):
    text = export.export(jax.jit(f), platforms=[platform])(*args).mlir_module()
    return text.count("stablehlo.convolution("), text.count("stablehlo.dot_general ")

  dy = jax.eval_shape(convolve, x, kernel)
  return counts(convolve, x, kernel)[0], counts(gradients, x, kernel, dy)


def test_the_form_is_taken_where_it_pays():
  map_, kernel = (1, 32, 32, 256), (3, 3, 256, 256)
  # Six convolutions, six for the input's gradient; a product for the kernel's, and its mixtures.
  assert convolutions(map_, kernel) == (6, (6, 2))
  assert convolutions((1, 16, 32, 32, 64), (3, 3, 3, 64, 64)) == (6, (6, 2))
  for platform in ("cuda", "tpu"):
    assert convolutions(map_, kernel, platform) == (1, (2, 0))
  direct = (1, (1, 1))
  assert convolutions(map_, kernel, dtype=jnp.bfloat16) == direct
  assert convolutions((1, 8, 8, 512), (3, 3, 512, 512)) == direct  # few outputs
  for side, channels in ((64, 64), (32, 128)):  # few products
    assert convolutions((1, side, side, channels), (3, 3, channels, channels)) == direct
  assert convolutions((1, 16, 16, 256), (3, 3, 256, 256)) == (6, (6, 2))  # as many, but wide
  assert convolutions((1, 256, 256, 16), (3, 3, 16, 64)) == direct  # few channels
  jutting = convolutions((1, 33, 33, 256), (3, 3, 256, 256), dilation=8, padding=8)
  assert jutting == direct
  assert convolutions(map_, kernel, strides=2)[0] == 1
  assert convolutions(map_, (5, 5, 256, 256))[0] == 1
  # The kernel's gradient has narrow products here.
  assert convolutions((1, 128, 128, 64), (3, 3, 64, 64)) == (6, (6, 1))


@pytest.mark.parametrize("name", ["unet", "unet3d", "deeplab_v3"])
def test_networks_give_the_same_loss_and_gradients(name, everywhere, monkeypatch):
  model = models.create(name, 3, **models.get(name).TINY)
  size = (1, 16, 16, 16, 1) if name == "unet3d" else (2, 64, 64, 3)
  x = jax.random.normal(jax.random.key(0), size)

  def loss(variables, x):
    return jnp.square(model.apply(variables, x).logits).mean()

  variables = model.init(jax.random.key(1), x)
  ours = jax.jit(jax.value_and_grad(loss))(variables, x)
  monkeypatch.setattr(sys.modules[Conv.__module__], "_FEWEST_OUTPUTS", 2**40)
  direct = jax.jit(jax.value_and_grad(loss))(variables, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * abs(b).max()), ours, direct
  )


def test_mixtures_of_inputs_are_not_kept_for_the_gradient(everywhere):
  def loss(kernels, x):
    for kernel in kernels:
      x = jnp.tanh(conv(x, kernel))
    return jnp.square(x).sum()

  shapes = [(3, 3, 16, 16)] * 6, (1, 128, 128, 16)
  given = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s[0], int)
  )
  program = jax.jit(jax.grad(loss)).lower(*given).compile()
  maps = program.memory_analysis().temp_size_in_bytes / (128 * 128 * 16 * 4)
  assert maps < 16  # with mixtures of all six inputs it is 36
