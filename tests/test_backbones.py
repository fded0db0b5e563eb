"""Backbones in forms that no golden file has: AlexNet's two columns, classifiers as convolutions.

Their features on torchvision's weights are compared in tests/test_golden.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jseg.backbones import VGG16, AlexNet, GoogLeNet
from jseg.nn import local_response_norm
from jseg.weights import Layer, convert


def draw(model, image):
  """Variables whose biases aren't 0, where a forgotten one would not show."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  rng = np.random.default_rng(0)

  def leaf(a):
    scale = np.sqrt(2 / np.prod(a.shape[:-1])) if a.ndim > 1 else 0.1
    return np.float32(rng.normal(0, scale, a.shape))

  return jax.tree.map(leaf, shapes)


@pytest.mark.parametrize(
  ("model", "parameters"),
  [
    # Layer by layer: 34,944 + 307,456 + 885,120 + 663,936 + 442,624.
    (AlexNet((96, 256, 384, 384, 256), groups=2, lrn=True), 2_334_080),
    (VGG16(fc=(4096, 4096)), 138_357_544 - 4_097_000),  # all but the 1000 classes
    (GoogLeNet(), 6_998_552 - 1_025_000),  # BVLC's without auxiliary heads, as well
  ],
)
def test_parameter_counts_of_the_published_classifiers(model, parameters):
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  assert sum(math.prod(a.shape) for a in jax.tree.leaves(params)) == parameters


def test_a_classifier_as_convolutions():
  model = VGG16((2, 2, 2, 2, 4), fc=(5, 6), fc_padding="VALID")
  rng = np.random.default_rng(1)
  image = jnp.asarray(rng.normal(size=(2, 224, 224, 3)), jnp.float32)
  # PyTorch flattens [c h w].
  tensors = {
    "classifier.0.weight": rng.normal(size=(5, 4 * 7 * 7)),
    "classifier.0.bias": rng.normal(size=5),
    "classifier.3.weight": rng.normal(size=(6, 5)),
    "classifier.3.bias": rng.normal(size=6),
  }
  layers = {"classifier.0": Layer("fc6", "dense", (7, 7)), "classifier.3": Layer("fc7", "dense")}
  dense, _ = convert(tensors, layers)
  variables = draw(model, image)
  features = jax.jit(model.apply)({"params": variables["params"] | dense["params"]}, image)
  assert features["pool5"].shape == (2, 7, 7, 4)
  x = np.asarray(features["pool5"], np.float64).transpose(0, 3, 1, 2).reshape(2, -1)
  for layer in ("classifier.0", "classifier.3"):
    x = np.maximum(x @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"], 0)
  np.testing.assert_allclose(features["fc7"], x[:, None, None], rtol=1e-5, atol=1e-5)


def published_alexnet(params, x):
  """Step by step, with two columns that only meet in convolution 3."""

  def conv(x, p, stride, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    pads = [(padding, padding)] * 2
    y = lax.conv_general_dilated(x, p["kernel"], (stride,) * 2, pads, dimension_numbers=layout)
    return jnp.maximum(y + p["bias"][None, None, None], 0)

  def columns(x, p, padding):
    half, out = x.shape[-1] // 2, p["bias"].size // 2
    left = conv(x[..., :half], jax.tree.map(lambda a: a[..., :out], p), 1, padding)
    right = conv(x[..., half:], jax.tree.map(lambda a: a[..., out:], p), 1, padding)
    return jnp.concatenate([left, right], -1)

  def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")

  pool1 = local_response_norm(pool(conv(x, params["conv1"], 4, 2)))
  pool2 = local_response_norm(pool(columns(pool1, params["conv2"], 2)))
  x = columns(conv(pool2, params["conv3"], 1, 1), params["conv4"], 1)
  return {"pool1": pool1, "pool2": pool2, "pool5": pool(columns(x, params["conv5"], 1))}


def test_the_published_alexnet_step_by_step():
  model = AlexNet((4, 8, 6, 4, 8), groups=2, lrn=True)
  # Sizes at which no window hangs over the edge: 63 -> 15 -> 7 -> 3 -> 1 and 95 -> 23 -> 11 -> 5.
  image = 20 * jax.random.normal(jax.random.key(0), (1, 63, 95, 3))
  params = draw(model, image)["params"]
  features = jax.jit(model.apply)({"params": params}, image)
  expected = jax.jit(published_alexnet)(params, image)
  assert features["pool5"].shape == (1, 1, 2, 8)
  for name, reference in expected.items():
    np.testing.assert_allclose(
      features[name], reference, rtol=0, atol=1e-5 * reference.std(), err_msg=name
    )
