"""Backbones by name, and in forms that no golden file has.

Their features on torchvision's weights are compared in tests/test_golden.py.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.variables import draw
from jax import lax

from jseg import backbones
from jseg.backbones import VGG16, AlexNet, Backbone, Features, GoogLeNet
from jseg.nn import Conv, local_response_norm
from jseg.types import InputError
from jseg.weights import LayerTarget, convert


class OwnBackbone(Backbone):
  """A user's own, named as "test_backbones:OwnBackbone"."""

  @nn.compact
  def __call__(self, image, *, train=False):
    stages, x = {}, image
    for stride in (2, 4, 8, 16, 32):
      stages[stride] = x = self.typed(Conv)(self.scaled(8), (3, 3), 2)(x)
    return Features(stages)


RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
STRIDES = {
  **dict.fromkeys(RESNETS, (2, 4, 8, 16, 32)),
  **dict.fromkeys(("vgg16", "vgg16_bn"), (1, 2, 4, 8, 16, 32)),
  **dict.fromkeys(("googlenet", "googlenet_torchvision"), (2, 4, 8, 16, 32)),
  **dict.fromkeys(("alexnet", "alexnet_torchvision"), (32,)),
}


def shapes(model, size=(96, 128)):
  """Shapes of the features and of the variables."""
  image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


def test_every_backbone_is_tested():
  assert set(STRIDES) == set(backbones.names())


@pytest.mark.parametrize("name", [*STRIDES, f"{__name__}:OwnBackbone"])
def test_features_by_stride(name):
  features, _ = shapes(backbones.create(name, width=1 / 16))
  expected = STRIDES.get(name, (2, 4, 8, 16, 32))
  assert tuple(sorted(features.stages)) == expected == backbones.create(name).strides
  if not name.startswith("alexnet"):
    for stride, feature in features.stages.items():
      assert feature.shape[:3] == (1, 96 // stride, 128 // stride)
  with pytest.raises(InputError, match=r"it has no map of stride 64, only of "):
    features[64]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16_bn"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_features_keep_their_nominal_stride(name, output_stride):
  features, variables = shapes(backbones.create(name, output_stride=output_stride, width=1 / 16))
  plain, same = shapes(backbones.create(name, width=1 / 16))
  assert variables == same
  for stride, feature in features.stages.items():
    real = min(stride, output_stride)
    # VGG16's maps are those before the pooling.
    assert feature.shape == (1, 96 // real, 128 // real, plain[stride].shape[-1])


def test_dilated_vgg16_looks_as_far_as_the_strided_one():
  """DeepLab's: from the output stride on the kernels see every second element."""
  rates = {}

  def record(call, args, kwargs, context):
    if isinstance(context.module, Conv):
      rates[context.module.name] = context.module.dilation
    return call(*args, **kwargs)

  for output_stride, fourth, fifth in ((32, 1, 1), (16, 1, 1), (8, 1, 2)):
    with nn.intercept_methods(record):
      shapes(backbones.create("vgg16", output_stride=output_stride, width=1 / 16))
    assert (rates["conv4_3"], rates["conv5_1"]) == (fourth, fifth)


def test_the_kind_of_norm_replaces_one_that_is_there():
  for name in ("resnet18", "vgg16_bn", "googlenet_torchvision"):
    assert backbones.create(name, norm="group").norm == "group"
    assert backbones.create(name).norm == "batch"
  for name in ("vgg16", "googlenet"):
    assert backbones.create(name, norm="group").norm == "none"
  assert "batch_stats" not in shapes(backbones.create("alexnet", norm="batch", width=1 / 16))[1]


def test_optional_arguments_go_to_those_that_have_them():
  assert backbones.create("resnet18", optional={"stem": "deep"}).stem == "deep"
  assert backbones.create("vgg16", optional={"stem": "deep"}) == VGG16()


@pytest.mark.parametrize(
  ("name", "arguments", "message"),
  [
    (
      "resnet42",
      {},
      r"backbone 'resnet42' is unknown; did you mean resnet.* There are resnet18",
    ),
    ("no_such:Thing", {}, r"backbone 'no_such:Thing': there is no module no_such; install it"),
    (f"{__name__}:Thing", {}, r"backbone '.*:Thing': .* has no Thing"),
    (f"{__name__}:Conv", {}, r"; it must be a subclass of jseg.backbones.base.Backbone"),
    (f"{__name__}:shapes", {}, r"is <function shapes .*; it must be a subclass"),
    ("googlenet", {"output_stride": 8}, r"'googlenet' has output stride 32 and can't be dilated"),
    ("vgg16", {"output_stride": 4}, r"output_stride: 4 must be 8, 16 or 32"),
    ("vgg16", {"pool": "max4"}, r"pool: 'max4' is unknown; choose from max2, max3, indices"),
    (
      "vgg16",
      {"pool": "indices", "output_stride": 8},
      r"output_stride: 8 leaves no windows to unpool; use 32 with indices",
    ),
    ("resnet18", {"stems": 3}, r"backbone resnet18 has no argument 'stems'; choose from .*depth, "),
    ("resnet18", {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("alexnet", {"width": 0}, r"width: 0 must be above 0"),
  ],
)
def test_backbones_that_cannot_be(name, arguments, message):
  for make in (backbones.create, backbones.check):
    with pytest.raises(InputError, match=message):
      make(name, **arguments)


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
  layers = {
    "classifier.0": LayerTarget("fc6", "dense", (7, 7)),
    "classifier.3": LayerTarget("fc7", "dense"),
  }
  dense, _ = convert(tensors, layers)
  variables = draw(model, image)
  features = jax.jit(model.apply)({"params": variables["params"] | dense["params"]}, image)
  assert features[32].shape == (2, 7, 7, 4)
  x = np.asarray(features[32], np.float64).transpose(0, 3, 1, 2).reshape(2, -1)
  for layer in ("classifier.0", "classifier.3"):
    x = np.maximum(x @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"], 0)
  np.testing.assert_allclose(features.named["fc7"], x[:, None, None], rtol=1e-5, atol=1e-5)


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
  assert features[32].shape == (1, 1, 2, 8)
  for name, reference in expected.items():
    np.testing.assert_allclose(
      features.named[name], reference, rtol=0, atol=1e-5 * reference.std(), err_msg=name
    )
