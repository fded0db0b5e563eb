"""ResNet's strides and dilations by hand, and the cascade of DeepLab V3 built on it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.variables import draw

from jseg import models
from jseg.backbones import ResNet
from jseg.backbones.resnet import LAYERS
from jseg.nn import Conv, Norm
from jseg.types import InputError


def modules(model, kind, train=False):
  """{path: module} of every module of a kind, without computing anything."""
  found = {}

  def record(call, args, kwargs, context):
    if isinstance(context.module, kind):
      found["/".join(context.module.path)] = context.module
    return call(*args, **kwargs)

  def init(image):
    with nn.intercept_methods(record):
      return model.init(jax.random.key(0), image, train=train)

  jax.eval_shape(init, jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32))
  return found


def of_layers(model, layers, conv="conv2"):
  """(stride, dilation) of the first, second and third unit's convolution, by layer."""
  convs = modules(model, Conv)
  prefix = "" if isinstance(model, ResNet) else "backbone/"
  units = [[convs[f"{prefix}{layer}_{i}/{conv}"] for i in range(3)] for layer in layers]
  return [[(unit.strides, unit.dilation) for unit in layer] for layer in units]


@pytest.mark.parametrize(
  ("knobs", "layer3", "layer4"),
  [
    ({"output_stride": 32}, [(2, 1), (1, 1), (1, 1)], [(2, 1), (1, 1), (1, 1)]),
    ({"output_stride": 16}, [(2, 1), (1, 1), (1, 1)], [(1, 2), (1, 2), (1, 2)]),
    ({"output_stride": 8}, [(1, 2), (1, 2), (1, 2)], [(1, 4), (1, 4), (1, 4)]),
    ({"output_stride": 4}, [(1, 4), (1, 4), (1, 4)], [(1, 8), (1, 8), (1, 8)]),
    (
      {"output_stride": 8, "keep_first_rate": True},
      [(1, 1), (1, 2), (1, 2)],
      [(1, 2), (1, 4), (1, 4)],
    ),
    (
      {"output_stride": 16, "multi_grid": (1, 2, 4)},
      [(2, 1), (1, 1), (1, 1)],
      [(1, 2), (1, 4), (1, 8)],
    ),
  ],
)
def test_strides_and_rates_by_hand(knobs, layer3, layer4):
  assert of_layers(ResNet(50, **knobs), ["layer3", "layer4"]) == [layer3, layer4]


@pytest.mark.parametrize(("where", "one", "three"), [("1x1", 2, 1), ("3x3", 1, 2)])
def test_which_convolution_has_the_stride(where, one, three):
  model = ResNet(50, stride_on=where)
  assert of_layers(model, ["layer2"], "conv1")[0][0][0] == one
  assert of_layers(model, ["layer2"], "conv2")[0][0][0] == three


@pytest.mark.parametrize(
  ("stem", "stride_on", "keep_first_rate", "output_strides"),
  [("plain", "1x1", False, (4, 16)), ("deep", "3x3", True, (4, 8))],
)
def test_dilation_keeps_what_strides_computed(
  stem, stride_on, keep_first_rate, output_strides, monkeypatch
):
  """Every so many pixels of a dilated network are the strided one, exactly (section 3.1)."""
  # Strides and rates change with a layer's first unit; one more shows what follows.
  monkeypatch.setitem(LAYERS, 50, (1, 1, 2, 2))
  # The largest number of dilated stages for both; the other strides once.

  def make(output_stride):
    return ResNet(
      50,
      output_stride,
      keep_first_rate=keep_first_rate,
      stem=stem,
      stride_on=stride_on,
      width=1 / 16,
    )

  image = jax.random.normal(jax.random.key(0), (1, 65, 97, 3))
  variables = draw(make(32), image)
  strided = jax.jit(make(32).apply)(variables, image)[32]
  assert strided.shape[1:3] == (3, 4)
  for output_stride in output_strides:
    dense = jax.jit(make(output_stride).apply)(variables, image)[32]
    every = 32 // output_stride
    np.testing.assert_allclose(
      dense[:, ::every, ::every], strided, rtol=0, atol=1e-5 * strided.max()
    )


@pytest.mark.parametrize("norm", ["batch", "local_batch", "frozen_batch", "group", "none"])
def test_the_kind_of_norm_reaches_every_norm(norm):
  norms = modules(ResNet(50, stem="deep", norm=norm), Norm, train=True)
  assert len(norms) == 3 + 3 * 16 + 4  # stem, units, projections
  assert {module.kind for module in norms.values()} == {norm}


def test_frozen_statistics_stay_and_training_equals_evaluation():
  model = ResNet(18, norm="frozen_batch", width=1 / 16)
  image = jax.random.normal(jax.random.key(0), (2, 33, 33, 3))
  variables = draw(model, image)
  apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
  trained, new = apply(variables, image, train=True, mutable=("batch_stats",))
  jax.tree.map(np.testing.assert_array_equal, trained, apply(variables, image))
  jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(("output_stride", "base"), [(16, 2), (8, 4)])
def test_the_cascade_doubles_its_rates(output_stride, base):
  """Figure 3(b): rates 2, 4, 8 and 16 at stride 16; units multiply them by the multi-grid."""
  model = models.create(
    "deeplab_v3", 21, form="cascade", output_stride=output_stride, multi_grid=(1, 2, 1)
  )
  expected = [
    [(1, rate), (1, 2 * rate), (1, rate)] for rate in (base, 2 * base, 4 * base, 8 * base)
  ]
  assert of_layers(model, ["layer4", "layer5", "layer6", "layer7"]) == expected


def test_parameters_of_the_cascade():
  # A bottleneck on 2048 channels, 1x1 to 512, 3x3, 1x1 back, each with scale and bias.
  unit = 2048 * 512 + 9 * 512 * 512 + 512 * 2048 + 2 * (512 + 512 + 2048)
  resnet101 = 44_549_160 - (2048 * 1000 + 1000)  # torchvision's, without its classes
  for blocks in (5, 6, 7):
    expected = resnet101 + 3 * (blocks - 4) * unit + 2048 * 21 + 21
    count = models.count_parameters("deeplab_v3", 21, form="cascade", blocks=blocks)
    assert count == expected
  assert expected == 82_706_517


@pytest.mark.parametrize(
  ("knobs", "message"),
  [
    ({"form": "pyramid"}, r"form: 'pyramid' is unknown; choose from aspp, cascade"),
    ({"blocks": 8}, r"blocks: 8 must be 5, 6 or 7"),
    ({"form": "cascade", "head": "torchvision"}, r"head: 'torchvision' stands on ASPP"),
  ],
)
def test_impossible_forms(knobs, message):
  with pytest.raises(InputError, match=message):
    models.create("deeplab_v3", 21, **knobs)
  with pytest.raises(InputError, match=r"cascade_blocks: -1 must be at least 0"):
    ResNet(cascade_blocks=-1)
