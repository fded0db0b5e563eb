"""The convolution and the up-convolution: every form equals XLA's, and the intended one is used."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convolutions import arrays, assert_equals_xla, reference
from helpers.doubles import doubles
from jax import lax

from jseg.nn import Conv, UpConv, conv

# input, kernel, settings; 16 channels and more take the products for the kernel's gradient.
CASES = {
  "1x1": ((2, 5, 6, 3), (1, 1, 3, 4), {}),
  "1x1 stride 2": ((2, 5, 6, 3), (1, 1, 3, 4), {"strides": 2}),
  "1x1 padded": ((2, 5, 6, 3), (1, 1, 3, 4), {"padding": 1, "strides": (2, 1)}),
  "narrow": ((2, 5, 6, 3), (3, 3, 3, 4), {}),
  "wide": ((2, 5, 6, 16), (3, 3, 16, 4), {}),
  "valid": ((2, 5, 6, 16), (3, 3, 16, 4), {"padding": "VALID"}),
  "uneven kernel and padding": (
    (2, 5, 6, 16),
    (2, 5, 16, 4),
    {"padding": [(0, 2), (3, 1)], "dilation": (2, 1)},
  ),
  "padding beyond the kernel": ((1, 4, 5, 16), (3, 3, 16, 2), {"padding": 6}),
  "stride 2": ((2, 7, 6, 16), (3, 3, 16, 4), {"strides": 2, "padding": 1}),
  "stem": ((2, 9, 10, 16), (7, 7, 16, 4), {"strides": 2, "padding": 3}),
  "stride 3, rate 2": ((1, 11, 12, 16), (3, 3, 16, 4), {"strides": (3, 1), "dilation": 2}),
  "rate 2": ((2, 9, 8, 16), (3, 3, 16, 4), {"dilation": 2}),
  "rate 5 of 9": ((2, 9, 9, 16), (3, 3, 16, 4), {"dilation": 5}),
  "rate 5 of 9, stride 2": (
    (1, 9, 9, 4),
    (3, 3, 4, 4),
    {"dilation": 5, "strides": 2, "padding": 5},
  ),
  "rate beyond the map": ((2, 5, 6, 16), (3, 3, 16, 4), {"dilation": 6}),
  "rate beyond the height": ((2, 4, 9, 16), (3, 3, 16, 4), {"dilation": 4}),
  "1-d": ((2, 9, 16), (3, 16, 4), {}),
  "3-d": ((2, 4, 5, 3, 16), (3, 3, 3, 16, 4), {}),
  "3-d stride 2": ((1, 4, 5, 6, 16), (3, 3, 3, 16, 4), {"strides": 2, "padding": 1}),
  "3-d stride 2 of slices": (
    (2, 4, 5, 6, 16),
    (3, 3, 3, 16, 4),
    {"strides": (1, 2, 2), "padding": 1},
  ),
  "3-d narrow": ((2, 4, 5, 6, 1), (3, 3, 3, 1, 4), {}),
  "3-d valid": ((1, 5, 6, 5, 16), (3, 3, 3, 16, 20), {"padding": "VALID"}),
  "3-d uneven": (
    (1, 6, 6, 7, 16),
    (2, 3, 3, 16, 4),
    {"padding": [(0, 3), (2, 1), (1, 1)], "dilation": (2, 1, 1)},
  ),
  "3-d flat kernel": ((2, 3, 5, 6, 16), (1, 3, 3, 16, 4), {}),
  "3-d column": ((1, 7, 2, 3, 16), (3, 1, 1, 16, 4), {"padding": [(2, 0), (0, 0), (0, 0)]}),
}


@pytest.fixture
def module(monkeypatch):
  """The module, by its class's, as the name in `jseg.nn` is the function's; always traced anew."""
  module = sys.modules[Conv.__module__]
  monkeypatch.setattr(module, "_convolve", module._convolve.__wrapped__)
  return module


@pytest.mark.parametrize("case", CASES)
def test_conv_and_its_gradients_equal_xla(case):
  assert_equals_xla(*CASES[case])


# Rows one by one; a few rows, the last of which overlap; a few images or slices.
@pytest.mark.parametrize("places", [1, 21, 90])
@pytest.mark.parametrize(
  "case", ["uneven kernel and padding", "stride 2", "rate 2", "1-d", "3-d stride 2 of slices"]
)
def test_gradients_part_by_part_equal_xla(case, places, module, monkeypatch):
  monkeypatch.setattr(module, "_CACHED", 1)
  monkeypatch.setattr(module, "_FEWEST", places)
  assert_equals_xla(*CASES[case])


@pytest.mark.parametrize("case", ["wide", "3-d"])
def test_gradients_part_by_part_with_64_bits(case, module, monkeypatch):
  monkeypatch.setattr(module, "_CACHED", 1)
  monkeypatch.setattr(module, "_FEWEST", 21)
  with doubles():  # loops count with 64 bits
    assert_equals_xla(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_conv_and_its_gradients_in_float64_equal_xla(case):
  with doubles():
    assert_equals_xla(*CASES[case], dtype=jnp.float64)


@pytest.mark.parametrize(
  ("places", "most", "part"),
  [
    ((2, 8, 10), 1000, (2, 8, 10)),
    ((2, 8, 10), 80, (1, 8, 10)),
    ((2, 8, 10), 79, (1, 4, 10)),
    ((2, 8, 10), 3, (1, 1, 10)),
    ((2, 257, 10), 79, (1, 7, 10)),  # 37 parts, the last with two rows of the one before
    ((4, 6, 8, 10), 960, (2, 6, 8, 10)),
  ],
)
def test_parts_of_a_batch(places, most, part, module):
  assert module._part(places, most) == part


@pytest.mark.parametrize("cached", [1, 2 * 2 * 30 * 3 * 4])  # slices one by one, and two by two
def test_volumes_in_chunks_of_slices_equal_xla(cached, module, monkeypatch):
  monkeypatch.setattr(module, "_CACHED", cached)
  x, kernel = arrays((2, 6, 5, 6, 3), (3, 3, 3, 3, 4))
  settings = {"padding": [(5, 1), (1, 1), (1, 1)], "dilation": (2, 1, 1)}
  text = jax.jit(lambda x, kernel: conv(x, kernel, **settings)).lower(x, kernel).as_text()
  assert f"tensor<2x{1 if cached == 1 else 2}x5x6x3xf32>" in text
  expected = reference(x, kernel, **settings)
  tolerance = 1e-5 * abs(expected).max()
  np.testing.assert_allclose(conv(x, kernel, **settings), expected, rtol=0, atol=tolerance)


def test_conv_by_hand():
  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  kernel = jnp.array([[0, 1, 0], [10, 100, 0], [0, 0, 0.0]]).reshape(3, 3, 1, 1)
  # Each output is 100 times the pixel, 10 times its left and once its upper neighbor.
  expected = [[0, 100, 210], [300, 431, 542], [603, 764, 875]]
  np.testing.assert_allclose(conv(x, kernel)[0, :, :, 0], expected)
  np.testing.assert_allclose(
    conv(x, kernel, strides=2, padding=1)[0, :, :, 0], [[0, 210], [603, 875]]
  )
  np.testing.assert_allclose(conv(x, kernel, padding="VALID")[0, :, :, 0], [[431]])


def count(text, op):
  return text.count(f"stablehlo.{op}(") + text.count(f"stablehlo.{op} ")


def test_the_form_follows_shape_and_platform():
  def lowered(platform, shape, kernel_shape, gradient=False, **settings):
    def f(x, kernel):
      if not gradient:
        return conv(x, kernel, **settings)
      return jax.vjp(lambda k: conv(x, k, **settings), kernel)[1](jnp.ones((*shape[:-1], 8)))[0]

    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, kernel_shape)]
    text = jax.export.export(jax.jit(f), platforms=[platform])(*args).mlir_module()
    # Spatial dimensions have the numbers 0 and 1 in maps, and 2 as well in volumes.
    flat = not any("0, 1, 2" in line for line in text.splitlines() if "convolution(" in line)
    assert flat == (len(shape) == 4 or platform == "cpu")
    return count(text, "convolution"), count(text, "dot_general")

  wide, square = (1, 16, 16, 32), (3, 3, 32, 8)
  assert lowered("cpu", wide, (1, 1, 32, 8)) == (0, 1)
  assert lowered("cpu", wide, square) == (1, 0)
  # The gradient of the kernel: one product in a loop over images. On GPU, cuDNN's.
  convolutions, products = lowered("cpu", wide, square, gradient=True)
  assert products == 1
  assert lowered("cuda", wide, square, gradient=True)[1] == 0
  assert lowered("cuda", wide, square, gradient=True)[0] > convolutions
  # Volumes on CPU: one convolution of slices for all taps of the depth, none of three dimensions.
  volume, cube = (1, 8, 8, 8, 32), (3, 3, 3, 32, 8)
  assert lowered("cpu", volume, cube) == (1, 0)
  assert lowered("cpu", volume, cube, gradient=True)[1] == 1
  for platform in ("cuda", "tpu"):
    assert lowered(platform, volume, cube) == (1, 0)
    assert lowered(platform, volume, cube, gradient=True)[1] == 0
  # Nine taps of which the corner ones cover a third of the map in each direction.
  assert lowered("cpu", wide, square, dilation=11) == (0, 9)
  assert lowered("cuda", wide, square, dilation=11) == (1, 0)
  # A map of two pixels is mostly padding for the same taps without a rate, but not worth as much.
  assert lowered("cpu", (1, 2, 2, 32), square) == (1, 0)
  # Only the middle tap ever meets the map.
  assert lowered("cpu", wide, square, dilation=16) == (0, 1)
  assert lowered("cuda", wide, square, dilation=16) == (0, 1)


def test_conv_under_vmap_and_pmap():
  x, kernel = arrays((4, 2, 5, 6, 16), (3, 3, 16, 4))

  def loss(kernel, x):
    return jnp.sin(conv(x, kernel)).sum()

  expected = [jax.grad(loss)(kernel, x[i]) for i in range(4)]
  for mapped in (jax.vmap(jax.grad(loss), (None, 0)), jax.pmap(jax.grad(loss), in_axes=(None, 0))):
    np.testing.assert_allclose(mapped(kernel, x), expected, rtol=0, atol=2e-5 * np.max(expected))


def test_forward_mode_is_refused_and_not_wrong():
  x, kernel = arrays((1, 5, 6, 3), (3, 3, 3, 4))
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda x: conv(x, kernel), (x,), (x,))


def test_bfloat16_gradients_are_summed_in_float32():
  x, kernel = arrays((8, 16, 16, 16), (3, 3, 16, 4))
  grad = jax.grad(lambda k, x: conv(x, k).astype(jnp.float32).sum())
  exact = grad(kernel, x)
  half = grad(kernel.astype(jnp.bfloat16), x.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  assert conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  # Sums of 2048 terms of size 1, so about 45: rounding the terms to 2^-9 comes to 0.1, the sum once
  # more to 2^-9 of itself. A bfloat16 sum would be off by several units.
  np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=1.0, rtol=2**-7)


def test_bfloat16_volumes_are_rounded_once():
  x, kernel = arrays((1, 4, 6, 6, 32), (3, 3, 3, 32, 4))
  x, kernel = (a.astype(jnp.bfloat16) for a in (x, kernel))
  y, pull = jax.vjp(conv, x, kernel)
  dy = (y / 32).astype(jnp.bfloat16)
  wide = [a.astype(jnp.float32) for a in (x, kernel)]
  exact, exact_pull = jax.vjp(reference, *wide)
  pairs = zip((y, *pull(dy)), (exact, *exact_pull(dy.astype(jnp.float32))), strict=True)
  for half, full in pairs:
    assert half.dtype == jnp.bfloat16
    # Half a unit of the last of 8 bits. Each rounding of a partial sum would add as much.
    np.testing.assert_allclose(half.astype(jnp.float32), full, rtol=2**-8 * 1.01, atol=2e-4)


def test_conv_module():
  x, _ = arrays((2, 5, 6, 3), (1,))
  module = Conv(4, (3, 3), dilation=2, dtype=jnp.bfloat16)
  variables = module.init(jax.random.key(0), x)
  shapes = jax.tree.map(lambda a: (a.shape, a.dtype.name), variables["params"])
  assert shapes == {"kernel": ((3, 3, 3, 4), "float32"), "bias": ((4,), "float32")}
  variables["params"]["bias"] += jnp.arange(4.0)
  y = module.apply(variables, x)
  assert y.dtype == jnp.bfloat16
  expected = (
    reference(x, variables["params"]["kernel"], dilation=2) + jnp.arange(4.0)[None, None, None]
  )
  # Terms and results are rounded to 2^-9; the biases are whole numbers apart.
  np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-5, atol=2**-4)
  assert "bias" not in Conv(4, (3, 3), use_bias=False).init(jax.random.key(0), x)["params"]


@pytest.mark.parametrize(
  ("groups", "features", "settings"),
  [(2, 6, {}), (4, 4, {"dilation": 2}), (8, 16, {"strides": 2, "padding": 1})],
)
def test_groups_equal_xla(groups, features, settings):
  x, kernel = arrays((2, 6, 7, 8), (3, 3, 8 // groups, features))
  module = Conv(features, (3, 3), groups=groups, **settings)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
  assert shapes["kernel"].shape == kernel.shape
  bias = jnp.arange(float(features))

  def ours(x, kernel):
    return module.apply({"params": {"kernel": kernel, "bias": bias}}, x)

  def theirs(x, kernel):
    y = reference(x, kernel, groups=groups, **settings)
    return y + bias[None, None, None]

  @jax.jit
  def both(x, kernel, dy):
    pulls = [jax.vjp(f, x, kernel) for f in (ours, theirs)]
    return [(y, *pull(dy)) for y, pull in pulls]

  dy, _ = arrays(jax.eval_shape(theirs, x, kernel).shape, (), seed=1)
  for a, b in zip(*both(x, kernel, dy), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * abs(b).max())


def test_he_initialization_with_groups():
  # Each output sees the channels of its group alone.
  kernel = Conv(512, (3, 3), groups=2).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))
  assert abs(kernel["params"]["kernel"].std() / np.sqrt(2 / (9 * 32)) - 1) < 0.01


def test_he_initialization():
  kernel = Conv(256, (3, 3)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
  assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.01
  # An output of an up-convolution sees one tap.
  kernel = UpConv(256).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
  assert abs(kernel.std() / np.sqrt(2 / 64) - 1) < 0.02


def test_up_convolution():
  x, kernel = arrays((2, 3, 5, 4), (2, 2, 4, 3))
  bias = jnp.array([1.0, 2.0, 3.0])
  y = UpConv(3).apply({"params": {"kernel": kernel, "bias": bias}}, x)
  assert y.shape == (2, 6, 10, 3)
  for b, i, j, up, left in [(0, 0, 0, 0, 0), (1, 2, 4, 1, 1), (0, 1, 3, 1, 0), (1, 1, 0, 0, 1)]:
    expected = x[b, i, j] @ kernel[up, left] + bias
    np.testing.assert_allclose(y[b, 2 * i + up, 2 * j + left], expected, rtol=1e-5)
  theirs = lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), "VALID") + bias[None, None, None]
  np.testing.assert_allclose(y, theirs, atol=1e-5)


def test_a_map_is_not_copied_and_gone_before_its_gradient():
  def loss(kernels, image):
    x = jnp.tanh(conv(image, kernels[0]))
    x = jnp.concatenate([x, jnp.sin(x)], axis=-1)
    return jnp.square(conv(x, kernels[1])).sum()

  shapes = ((3, 3, 16, 32), (3, 3, 64, 16)), (2, 128, 128, 16)
  given = jax.tree.map(lambda s: jnp.zeros(s), shapes, is_leaf=lambda s: isinstance(s[0], int))
  program = jax.jit(jax.grad(loss)).lower(*given).compile()
  maps = program.memory_analysis().temp_size_in_bytes / (2 * 128 * 128 * 64 * 4)
  assert maps < 5.5
  assert "[2,1,128,128," not in program.as_text()
