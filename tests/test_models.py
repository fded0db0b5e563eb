"""The registry, and networks against their papers.

Parity with independent implementations is in tests/test_golden.py, what all networks must do in
tests/test_conformance.py.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.variables import draw
from jax import lax

from jseg import models
from jseg.backbones import ResNet
from jseg.images import denormalize
from jseg.models import fcn
from jseg.nn import Conv, local_response_norm
from jseg.nn.unet_sizes import unpadded_output
from jseg.types import IGNORE, InputError, Outputs


# Float32: a thousand roundings of 2^-24 in values that spread like these. A map that lies a pixel
# off, or a kernel in the wrong place, changes them by more than a hundredth of their spread.
def close(a, b, atol=1e-4):
  np.testing.assert_allclose(a, b, rtol=0, atol=atol * np.std(b))


def test_names_and_arguments():
  assert "unet" in models.names()
  assert models.arguments("unet") == {
    "widths": (64, 128, 256, 512, 1024),
    "padding": "SAME",
    "norm": "batch",
    "dropout": 0.0,
    "backbone": "",
    "decoder": (256, 128, 64, 32, 16),
    "width": 1.0,
  }


@pytest.mark.parametrize("name", models.names())
def test_tiny_presets_are_arguments(name):
  assert models.get(name).TINY
  assert set(models.get(name).TINY) <= set(models.arguments(name))


class OwnNetwork(models.Network):
  """A user's own, named as "test_models:OwnNetwork"."""

  TINY: ClassVar = {"features": 2}

  features: int = 4

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(self.typed(Conv)(self.num_classes, (self.features, 1))(image))


class WithoutDefault(models.Network):
  """A network that no configuration file can hold."""

  features: int


def test_a_network_of_ones_own():
  name = f"{__name__}:OwnNetwork"
  assert models.create(name, 3, features=5) == OwnNetwork(3, features=5)
  assert models.arguments(name) == {"features": 4}
  network = models.get(name)
  assert (network.TINY, network.ndim, network.task) == ({"features": 2}, 2, "semantic")
  assert network.AUX_WEIGHTS == {}
  assert models.count_parameters(name, 3, features=2) == 2 * 3 * 3 + 3
  assert models.upgrade(name, {"lag": True}) == {"lag": True}


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("no_such:Thing", r"model 'no_such:Thing': there is no module no_such; install it"),
    (f"{__name__}:Thing", r"model '.*:Thing': .* has no Thing"),
    (f"{__name__}:ResNet", r"ResNet'>; it must be a subclass of jseg.models.base.Network"),
    (f"{__name__}:WithoutDefault", r"WithoutDefault: argument features must have a default"),
  ],
)
def test_what_is_no_network(name, message):
  with pytest.raises(InputError, match=message):
    models.create(name, 2)


@pytest.mark.parametrize("name", models.names())
def test_arguments_of_this_version_stay(name):
  assert models.upgrade(name, models.arguments(name)) == models.arguments(name)


@pytest.mark.parametrize(
  ("name", "old", "new"),
  [
    ("pspnet", {"depth": 101, "aux": False}, {"backbone": "resnet101", "aux": False}),
    ("fcn_resnet", {"depth": 18}, {"backbone": "resnet18"}),
    ("refinenet", {"depth": 152}, {"backbone": "resnet152"}),
    ("mask_rcnn", {"depth": 34}, {"backbone": "resnet34"}),
    ("deeplab_v3", {"depth": 50, "lag": True}, {"backbone": "resnet50", "keep_first_rate": True}),
    ("unet", {"widths": (4, 8)}, {"widths": (4, 8)}),
  ],
)
def test_arguments_of_earlier_versions(name, old, new):
  given = dict(old)
  assert models.upgrade(name, given) == new
  assert given == old
  models.create(name, 2, **new)


# Beside those of the papers.
@pytest.mark.parametrize(
  ("name", "backbone"),
  [
    ("pspnet", "resnet34"),
    ("pspnet", "vgg16"),
    ("fcn_resnet", "vgg16_bn"),
    ("deeplab_v2", "resnet34"),
    ("deeplab_v2", "vgg16_bn"),
    ("deeplab_v3", "resnet152"),
    ("deeplab_v3", "vgg16"),
    ("refinenet", "resnet34"),
    ("refinenet", "vgg16_bn"),
    ("refinenet", "googlenet"),
    ("fcn32s", "resnet101"),
    ("fcn16s", "vgg16_bn"),
    ("fcn8s", "resnet50"),
    ("unet", "resnet50"),
    ("unet", "vgg16_bn"),
    ("unet", "googlenet_torchvision"),
    ("mask_rcnn", "resnet50"),
    ("mask_rcnn", "vgg16_bn"),
    ("mask_rcnn", "googlenet"),
  ],
)
def test_networks_take_other_backbones(name, backbone):
  model = models.create(name, 3, **models.get(name).TINY | {"backbone": backbone, "width": 0.125})
  image = jax.ShapeDtypeStruct((1, 45, 70, 3), jnp.float32)
  outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  if name == "mask_rcnn":
    assert outputs.boxes.shape == (1, 8, 4)
  else:
    assert outputs.logits.shape == (1, 45, 70, 3)


def test_dimensions():
  assert {name: models.get(name).ndim for name in models.names() if models.get(name).ndim != 2} == {
    "unet3d": 3
  }


@pytest.mark.parametrize(
  ("name", "num_classes", "overrides", "message"),
  [
    ("unett", 2, {}, r"model 'unett' is unknown; did you mean unet\? There are patch"),
    ("unet", 2, {"wide": 3}, r"unet has no setting 'wide'; choose from widths, padding, norm"),
    ("unet", 1, {}, r"num_classes: 1 must be 2 to 255"),
    ("unet", 256, {}, r"num_classes: 256 must be 2 to 255"),
    ("mask_rcnn", 1, {}, r"num_classes: 1 must be at least 2"),
    ("unet", 2.0, {}, r"num_classes: 2.0 must be a whole number"),
    ("unet", True, {}, r"num_classes: True must be a whole number"),
    ("unet", 2, {"padding": "same"}, r"padding: 'same' is unknown; choose SAME or VALID"),
    ("unet", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("unet", 2, {"dropout": 1.0}, r"dropout: 1.0 must be at least 0 \(off\) and below 1"),
    ("unet", 2, {"widths": ()}, r"widths: \(\) must be one or more positive"),
    ("unet3d", 2, {"padding": "same"}, r"padding: 'same' is unknown; choose SAME or VALID"),
    ("unet3d", 2, {"widths": (8, 1)}, r"widths: \(8, 1\) must be one or more .* of 2 and more"),
    ("unet3d", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("fcn32s", 2, {"backbone": "vgg19"}, r"'vgg19' is unknown; choose from resnet18, .*vgg16"),
    ("fcn8s", 2, {"backbone": "alexnet"}, r"alexnet has no skips .* use it with fcn32s, or vgg16"),
    ("fcn16s", 2, {"backbone": "googlenet"}, r"backbone: googlenet has no skips in the paper"),
    ("fcn8s", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("unet", 2, {"backbone": "resnet42"}, r"backbone 'resnet42' is unknown; did you mean resnet"),
    (
      "unet",
      2,
      {"backbone": "resnet18", "padding": "VALID"},
      r"padding: VALID is for U-Net without a backbone; set SAME",
    ),
    ("unet", 2, {"backbone": "vgg16", "decoder": (8,)}, r"decoder: \(8,\) must be five positive"),
    ("unet", 2, {"backbone": "alexnet"}, r"'alexnet' has no map of stride 2; take a ResNet or VGG"),
    ("refinenet", 2, {"backbone": "alexnet"}, r"backbone: 'alexnet' has no map of stride 4; take"),
    ("pspnet", 2, {"backbone": "googlenet"}, r"'googlenet' has output stride 32 and can't be dil"),
    ("deeplab_v3", 2, {"backbone": "vgg16", "form": "cascade"}, r"form: the cascade repeats a Res"),
    (
      "mask_rcnn",
      2,
      {"backbone": "resnet42"},
      r"'resnet42' is unknown; did you mean resnet",
    ),
    ("fcn32s", 2, {"at_once": True}, r"at_once: FCN-32s has one score; leave at_once False"),
    ("fcn8s", 2, {"padding": "SAME"}, r"padding: 'SAME' is unknown; choose published or same"),
    ("segnet", 2, {"widths": (4, 4)}, r"widths: \(4, 4\) must be five positive channel counts"),
    ("segnet", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("segnet_basic", 2, {"width": 0}, r"width: 0 must be a positive channel count"),
    ("segnet_basic", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("deeplab_v1", 2, {"widths": (4, 4, 4, 4, 0)}, r"widths: \(4, 4, 4, 4, 0\) must be five"),
    (
      "deeplab_v2",
      2,
      {"backbone": "resnet42"},
      r"'resnet42' is unknown; did you mean resnet",
    ),
    ("deeplab_v2", 2, {"scales": (1.5,)}, r"scales: \(1.5,\) must be .* above 0, at most 1"),
    ("deeplab_v2", 2, {"scales": ()}, r"scales: \(\) must be one or more factors"),
    ("deeplab_v2", 2, {"rates": (6, 0)}, r"rates: \(6, 0\) must be one or more .* at least 1"),
    ("deeplab_v2", 2, {"width": 0}, r"width: 0 must be above 0"),
    ("deeplab_v2", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("deeplab_v3", 2, {"output_stride": 32}, r"output_stride: 32 must be 8 or 16"),
    ("deeplab_v3", 2, {"head": "plain"}, r"head: 'plain' is unknown; choose from paper, torchv"),
    ("deeplab_v3", 2, {"rates": ()}, r"rates: \(\) must be one or more numbers of at least 1"),
    ("deeplab_v3", 2, {"multi_grid": (0,)}, r"multi_grid: \(0,\) must be one or more numbers"),
    (
      "deeplab_v3",
      2,
      {"backbone": "resnet42"},
      r"'resnet42' is unknown; did you mean resnet",
    ),
    ("deeplab_v3", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    (
      "fcn_resnet",
      2,
      {"backbone": "resnet42"},
      r"'resnet42' is unknown; did you mean resnet",
    ),
    ("fcn_resnet", 2, {"width": -1}, r"width: -1 must be above 0"),
    ("fcn_resnet", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("pspnet", 2, {"bins": (1, 0)}, r"bins: \(1, 0\) must be one or more numbers of at least 1"),
    ("pspnet", 2, {"backbone": "resnet42"}, r"'resnet42' is unknown; did you mean resnet"),
    ("pspnet", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("refinenet", 2, {"blocks": 3}, r"blocks: 3 must be 1, 2 or 4"),
    ("refinenet", 2, {"order": "pool"}, r"order: 'pool' is unknown; choose from pool_conv, conv"),
    ("refinenet", 2, {"chain": -1}, r"chain: -1 must be at least 0"),
    ("refinenet", 2, {"features": (8,)}, r"features: \(8,\) must be two positive channel counts"),
    (
      "refinenet",
      2,
      {"backbone": "resnet42"},
      r"'resnet42' is unknown; did you mean resnet",
    ),
    ("refinenet", 2, {"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
    ("patch_classifier", 2, {"patch": 94}, r"patch: 94 must be odd, so that it has a middle"),
    ("patch_classifier", 2, {"patch": 97}, r"patch: 97 does not fit kernels \(4, 5, 4, 4\): maps"),
    ("patch_classifier", 2, {"patch": 3}, r"patch: 3 does not fit .*; 95 fits \(4, 5, 4, 4\)"),
  ],
)
def test_bad_values_are_refused_when_the_network_is_made(name, num_classes, overrides, message):
  with pytest.raises(InputError, match=message):
    models.create(name, num_classes, **overrides)


@pytest.mark.parametrize(
  ("knobs", "message"),
  [
    ({"depth": 42}, r"depth: 42 is unknown; choose from 18, 34, 50, 101, 152"),
    ({"output_stride": 2}, r"output_stride: 2 is unknown; choose from 4, 8, 16, 32"),
    ({"stem": "wide"}, r"stem: 'wide' is unknown; choose from plain, deep"),
    ({"stride_on": "3"}, r"stride_on: '3' is unknown; choose from 1x1, 3x3"),
    ({"multi_grid": ()}, r"multi_grid: \(\) must be one or more factors of at least 1"),
    ({"width": 0.0}, r"width: 0.0 must be above 0"),
    ({"norm": "layer"}, r"norm: 'layer' is unknown; choose from batch"),
  ],
)
def test_bad_values_of_a_resnet_are_refused(knobs, message):
  with pytest.raises(InputError, match=message):
    ResNet(**knobs)


def test_parameter_count_of_the_published_unet():
  published = {"padding": "VALID", "norm": "none"}
  assert models.count_parameters("unet", 2, channels=1, **published) == 31_030_658
  model = models.create("unet", 2, **published)
  image = jax.ShapeDtypeStruct((1, 572, 572, 1), jnp.float32)
  outputs, variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=True), image
  )
  assert outputs.logits.shape == (1, 388, 388, 2)
  kernels = [a for a in jax.tree.leaves(variables["params"]) if a.ndim == 4]
  assert len(kernels) == 23


# The others' are counted where their references are recognized, in test_weights_import.py.
@pytest.mark.parametrize(
  ("name", "parameters"), [("deeplab_v2", 44_048_532), ("deeplab_v3", 58_040_661)]
)
def test_parameter_counts_of_networks_on_resnet(name, parameters):
  assert models.count_parameters(name, 21) == parameters


# The tiny RefineNet's maps have 64, 32, 16 and 8 channels, its paths 8, 4, 4 and 4; a unit on n
# channels has 18 n^2 + n parameters. By hand: reduction, units, fusion, chains, output, classifier.
@pytest.mark.parametrize(
  ("knobs", "parameters"),
  [
    ({}, 6624 + 4072 + 1008 + 2016 + 6108 + 74),
    ({"chain": 3}, 6624 + 4072 + 1008 + 3024 + 6108 + 74),
    ({"chain": 0}, 6624 + 4072 + 1008 + 6108 + 74),
    ({"order": "conv_pool"}, 6624 + 4072 + 1008 + 2016 + 6108 + 74),
    ({"blocks": 2}, 6624 + 4072 + 864 + 576 + 1752 + 74),
    ({"blocks": 1}, 6624 + 4072 + 720 + 288 + 876 + 74),
  ],
)
def test_parameters_of_refinenets_decoder_by_hand(knobs, parameters):
  tiny = dict(models.get("refinenet").TINY) | {"blocks": 4, "chain": 2}
  model = models.create("refinenet", 2, **(tiny | knobs))
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  decoder = {k: v for k, v in variables["params"].items() if k != "backbone"}
  assert sum(a.size for a in jax.tree.leaves(decoder)) == parameters


def test_orders_of_chained_pooling():
  """Scaling by a positive number and taking a maximum commute; by a negative one they don't."""
  image = jnp.float32(np.random.default_rng(1).normal(size=(1, 37, 41, 3)))
  nets = [
    models.create(
      "refinenet", 2, **(dict(models.get("refinenet").TINY) | {"blocks": 1, "order": order})
    )
    for order in ("pool_conv", "conv_pool")
  ]
  variables = draw(nets[0], image)
  applied = [jax.jit(net.apply) for net in nets]

  def logits(factor):
    kernel = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(factor * jnp.eye(4))
    chains = {name: {"kernel": kernel} for name in ("chain0_0", "chain0_1")}
    params = variables["params"] | chains
    return [apply(variables | {"params": params}, image).logits for apply in applied]

  first, second = logits(0.5)
  close(first, second)
  first, second = logits(-0.5)
  assert np.abs(first - second).max() > 0.01 * np.std(first)


def test_refinenet_begins_with_small_scores():
  # Four blocks, which multiply what one does.
  model = models.create(
    "refinenet", 5, **(dict(models.get("refinenet").TINY) | {"blocks": 4, "chain": 2})
  )
  image = jnp.float32(np.random.default_rng(0).normal(size=(2, 64, 64, 3)))
  rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "dropout"))}
  outputs, variables = jax.jit(lambda: model.init_with_output(rngs, image, train=True))()
  assert np.abs(outputs.logits).max() < 0.1  # the first loss is that of a guess, log 5
  assert np.std(variables["params"]["layer4_reduce"]["kernel"]) == pytest.approx(0.01, rel=0.1)


def test_batch_norm_replaces_the_biases_before_it():
  with_norm = models.count_parameters("unet", 2, widths=(4, 8))
  without = models.count_parameters("unet", 2, widths=(4, 8), norm="none")
  assert with_norm - without == 2 * (4 + 8 + 4)  # scale and bias instead of bias, twice a block


def test_unet_on_a_backbone_takes_any_size():
  decoder = (8, 8, 4, 4, 4)
  model = models.create("unet", 3, backbone="resnet18", width=0.0625, decoder=decoder)
  x = np.random.default_rng(0).normal(size=(1, 50, 70, 3)).astype(np.float32)
  variables = draw(model, x)
  apply = jax.jit(model.apply)
  logits = apply(variables, x).logits
  padded = np.pad(x, [(0, 0), (0, 14), (0, 26), (0, 0)])
  np.testing.assert_array_equal(logits, apply(variables, padded).logits[:, :50, :70])


def xla_conv(x, p, padding="VALID"):
  layout = ("NHWC", "HWIO", "NHWC")
  y = lax.conv_general_dilated(x, p["kernel"], (1, 1), padding, dimension_numbers=layout)
  return y + p["bias"][None, None, None]


def published_unet(params, x, depth):
  """The paper's figure 1, step by step."""
  convs = [params[f"Conv_{i}"] for i in range(4 * depth + 3)]
  ups = [params[f"UpConv_{i}"] for i in range(depth)]
  skips = []
  for level in range(depth + 1):
    if level:
      skips.append(x)
      x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for _ in range(2):
      x = jnp.maximum(xla_conv(x, convs.pop(0)), 0)
  for up in ups:
    b, h, w, _ = x.shape
    y = jnp.zeros((b, 2 * h, 2 * w, up["kernel"].shape[-1]))
    for i in range(2):
      for j in range(2):
        copy = x @ up["kernel"][i, j] + up["bias"][None, None, None]
        y = y.at[:, i::2, j::2].set(copy)
    skip = skips.pop()
    top, left = (skip.shape[1] - 2 * h) // 2, (skip.shape[2] - 2 * w) // 2
    x = jnp.concatenate([skip[:, top : top + 2 * h, left : left + 2 * w], y], -1)
    for _ in range(2):
      x = jnp.maximum(xla_conv(x, convs.pop(0)), 0)
  return xla_conv(x, convs.pop(0))


def test_unpadded_unet_equals_the_paper_step_by_step():
  model = models.create("unet", 3, widths=(4, 8, 16), padding="VALID", norm="none")
  x = jax.random.normal(jax.random.key(0), (2, 44, 52, 1))
  params = draw(model, x)["params"]
  logits = jax.jit(lambda p, x: model.apply({"params": p}, x, train=True))(params, x).logits
  assert logits.shape == (2, 4, 12, 3)
  expected = jax.jit(lambda p, x: published_unet(p, x, depth=2))(params, x)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_padded_unet_keeps_pixels_in_place():
  # A step at column 24 must come out as a step there: skips, pooling and up-convolution aligned.
  model = models.create("unet", 2, widths=(4, 8), norm="none")
  x = jnp.zeros((1, 20, 48, 1))
  variables, apply = draw(model, x), jax.jit(model.apply)
  base = apply(variables, x).logits
  moved = apply(variables, x.at[:, 9, 24].set(1.0)).logits
  rows, columns = np.nonzero(np.abs(moved - base).max((0, 3)))
  # Two 3x3s, a pool, two 3x3s at half resolution, up, two 3x3s: at most 9 pixels on each side.
  assert 9 - 9 <= rows.min() < 9 < rows.max() <= 9 + 9
  assert 24 - 9 <= columns.min() < 24 < columns.max() <= 24 + 9


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((256, 572), r"height 256 does not fit .* at each of 4 levels; train on crops of 252 or 268"),
    ((572, 573), r"width 573 does not fit .*; train on crops of 572 or 588"),
    ((572, 100), r"width 100 does not fit .* crops of 188 \(augment.crop\), or with padding SAME"),
  ],
)
def test_sizes_that_do_not_halve_evenly_are_refused_in_training(shape, message):
  model = models.create("unet", 2, padding="VALID", norm="none")
  image = jax.ShapeDtypeStruct((1, *shape, 1), jnp.float32)
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), image)


@pytest.mark.parametrize(
  ("name", "size"), [("unet", (7, 30)), ("unet", (36, 45)), ("unet3d", (5, 9, 20))]
)
def test_unpadded_networks_see_the_mirrored_image_in_evaluation(name, size):
  model = models.create(name, 3, widths=(2, 4, 4), padding="VALID", norm="none")
  x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype(np.float32)
  variables = draw(model, x)
  logits = jax.jit(model.apply)(variables, x).logits
  edges = []
  for n in size:  # the smallest size whose output covers n, its output over the first n pixels
    whole = next(m for m in range(n, 999) if unpadded_output(m, 2) >= n)
    before = (whole - unpadded_output(whole, 2)) // 2
    edges.append((before, whole - n - before))
  mirrored = np.pad(x, [(0, 0), *edges, (0, 0)], mode="reflect")
  middle = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, mirrored).logits
  assert logits.shape == (1, *size, 3)
  close(logits, middle[(slice(None), *map(slice, size))])


def test_the_published_volume():
  model = models.create("unet3d", 3, padding="VALID")
  image = jax.ShapeDtypeStruct((1, 132, 132, 116, 3), jnp.float32)
  outputs, _ = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=True), image
  )
  assert outputs.logits.shape == (1, 44, 44, 28, 3)
  label = jax.ShapeDtypeStruct(image.shape[:-1], jnp.uint8)
  assert jax.eval_shape(model.training_labels, label).shape == (1, 44, 44, 28)
  with pytest.raises(InputError, match=r"depth 64 does not fit .* at each of 3 levels"):
    jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=True), jnp.zeros((1, 64, 132, 116, 3))
    )


@pytest.mark.parametrize(
  ("name", "padding", "first"),
  [("unet", "SAME", 0), ("unet", "VALID", 20), ("unet3d", "VALID", 20)],
)
def test_training_labels_lie_on_the_logits(name, padding, first):
  model = models.create(name, 2, widths=(2, 2, 2), padding=padding, norm="none")
  size = (60,) * models.get(name).ndim
  label = np.arange(60**2).reshape(1, 60, 60)[..., None] + np.zeros(size[2:] or 1)
  label = label.reshape(1, *size)
  expected = label[(slice(None), *[slice(first, 60 - first)] * len(size))]
  np.testing.assert_array_equal(model.training_labels(label), expected)
  image = jnp.zeros((1, *size, 1))
  outputs, _ = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=True), image
  )
  assert outputs.logits.shape[:-1] == expected.shape


def test_dropout_acts_at_the_two_coarsest_levels_in_training_only():
  model = models.create("unet", 2, widths=(4, 8, 16), norm="none", dropout=0.5)
  x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  variables = draw(model, x)
  apply = jax.jit(model.apply)
  np.testing.assert_array_equal(apply(variables, x).logits, apply(variables, x).logits)

  @jax.jit
  def train(seed):
    return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}).logits

  np.testing.assert_array_equal(train(1), train(1))
  assert abs(train(1) - train(2)).max() > 1e-3
  _, state = jax.eval_shape(
    lambda x: model.apply(
      variables,
      x,
      train=True,
      rngs={"dropout": jax.random.key(0)},
      capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
      mutable=["intermediates"],
    ),
    x,
  )
  shapes = [a.shape for a in jax.tree.leaves(state)]
  assert sorted(shapes) == [(1, 4, 4, 16), (1, 8, 8, 8)]


# shelhamer/fcn.berkeleyvision.org: the offsets of the Crop layers in voc-fcn*/train.prototxt.
@pytest.mark.parametrize(
  ("name", "backbone", "offsets"),
  [
    ("fcn32s", "vgg16", [19]),
    ("fcn16s", "vgg16", [5, 27]),
    ("fcn8s", "vgg16", [5, 9, 31]),
    ("fcn32s", "alexnet", [18]),
  ],
)
def test_published_crop_offsets(monkeypatch, name, backbone, offsets):
  crops = []
  cropped = fcn.Map.cropped

  def record(self, start, size):
    crops.append(int((start - self.origin) / self.stride))
    return cropped(self, start, size)

  monkeypatch.setattr(fcn.Map, "cropped", record)
  model = models.create(name, 21, backbone=backbone, width=0.0625, fc=8)
  for size in ((500, 500), (61, 83)):
    crops.clear()
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    # Skips are cropped to the upsampled scores, which are not cropped themselves.
    expected = [crop for skip in offsets[:-1] for crop in (0, skip)] + offsets[-1:]
    assert crops == expected


@pytest.mark.parametrize(
  "backbone",
  ["vgg16", "alexnet", "googlenet", "alexnet_torchvision", "googlenet_torchvision", "resnet18"],
)
def test_fcn_lays_its_logits_on_the_image(backbone):
  """What one column of pixels changes lies around it, on average over a stride."""
  knobs = dict(models.get("fcn32s").TINY) | {"backbone": backbone, "learn_upsampling": False}
  model = models.create("fcn32s", 2, **knobs)
  width, columns = 960, np.arange(464, 496)
  x = jnp.zeros((32, 1, width, 3)).at[np.arange(32), :, columns].set(1)
  variables = jax.eval_shape(model.init, jax.random.key(0), x[:1])

  def positive(path, a):
    # Without biases and with means, nothing but the column is seen, and it is never cancelled.
    is_one = path[-1].key in ("scale", "var")
    return jnp.full(a.shape, 1 if is_one else a.shape[-1] / a.size if a.ndim > 1 else 0)

  variables = jax.tree_util.tree_map_with_path(positive, variables)
  logits = jax.jit(model.apply)(variables, x).logits[:, 0, :, 0]
  assert (logits >= 0).all()
  reached = np.asarray(logits > 0)
  first = reached.argmax(-1)
  last = width - 1 - reached[:, ::-1].argmax(-1)
  assert first.min() > 0  # the image's edge cuts nothing off
  assert last.max() < width - 1
  np.testing.assert_allclose(np.mean((first + last) / 2 - columns), 0, atol=1e-6)


@pytest.mark.parametrize(("name", "backbone"), [("fcn32s", "alexnet"), ("fcn8s", "vgg16")])
def test_fixed_upsampling_is_what_learned_upsampling_begins_with(name, backbone):
  knobs = dict(models.get(name).TINY) | {"backbone": backbone}
  learned = models.create(name, 3, **knobs)
  fixed = models.create(name, 3, learn_upsampling=False, **knobs)
  x = jax.random.normal(jax.random.key(0), (1, 40, 70, 3))
  params = draw(fixed, x)["params"]

  @jax.jit
  def upsampling(key):
    initial = learned.init(key, x)["params"]
    return {name: p for name, p in initial.items() if name.startswith("upscore")}

  @jax.jit
  def both(params, upsampling):
    return [m.apply({"params": p}, x).logits for m, p in ((fixed, params), (learned, upsampling))]

  kernels = upsampling(jax.random.key(0))
  assert len(kernels) == {"fcn32s": 1, "fcn8s": 3}[name]
  close(*both(params, params | kernels))


@pytest.mark.parametrize(
  ("name", "backbone", "shift", "size", "margin"),
  [
    # fc7 sees 404 pixels, and an output pixel scores at most 56 to each side of it.
    ("fcn8s", "vgg16", 3, (570, 540), 260),
    ("fcn32s", "alexnet", 2, (480, 450), 215),
  ],
)
def test_padding_same_is_the_published_network_inside(name, backbone, shift, size, margin):
  knobs = dict(models.get(name).TINY) | {"backbone": backbone, "learn_upsampling": False}
  published = models.create(name, 3, **knobs | {"padding": "published"})
  same = models.create(name, 3, **knobs | {"padding": "same"})
  # The pixels around the image put the published network's grid so many pixels further left.
  x = np.random.default_rng(0).normal(size=(1, *(n + shift for n in size), 3)).astype(np.float32)
  variables = draw(same, x)
  ours = jax.jit(same.apply)(variables, x).logits[:, shift:, shift:]
  theirs = jax.jit(published.apply)(variables, x[:, shift:, shift:]).logits
  inside = (slice(None), *(slice(margin, n - margin) for n in size))
  assert theirs[inside].size > 1000
  close(ours[inside], theirs[inside])
  assert abs(ours - theirs).max() > 0.01 * np.std(theirs)  # the borders do differ


@pytest.mark.parametrize("padding", ["published", "same"])
@pytest.mark.parametrize(
  ("name", "backbone"),
  [
    *((f"fcn{s}s", backbone) for s in (32, 16, 8) for backbone in ("vgg16", "resnet18")),
    ("fcn32s", "alexnet"),
    ("fcn32s", "googlenet"),
  ],
)
def test_fcn_takes_any_size(name, backbone, padding):
  model = models.create(
    name, 3, **models.get(name).TINY | {"backbone": backbone, "padding": padding}
  )
  # Uneven in both ways around the strides, and smaller than one of their steps.
  for size in ((1, 1), (31, 16), (33, 70)):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert outputs.logits.shape == (1, *size, 3)


# At these sizes windows fit exactly: the grid's last element is as far from the edge as its first.
@pytest.mark.parametrize(
  ("name", "backbone", "padding", "size"),
  [
    ("fcn32s", "alexnet", "published", (91, 123)),
    ("fcn32s", "googlenet", "same", (93, 125)),
    ("fcn32s", "vgg16", "published", (58, 90)),
    ("fcn8s", "vgg16", "published", (58, 90)),
    ("fcn8s", "vgg16", "same", (64, 96)),
    ("fcn8s", "resnet18", "same", (65, 97)),
  ],
)
def test_fcn_has_no_handedness(name, backbone, padding, size):
  # With kernels that are their own mirror image a flipped image gives flipped logits, if each map
  # lies where it is thought to. One pixel off would come to two between them.
  knobs = {"backbone": backbone, "padding": padding, "learn_upsampling": False}
  model = models.create(name, 2, **models.get(name).TINY | knobs)
  x = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
  symmetric = jax.tree.map(
    lambda a: a if a.ndim == 1 else (a + a[::-1] + a[:, ::-1] + a[::-1, ::-1]) / 2, draw(model, x)
  )
  apply = jax.jit(model.apply)
  flipped = apply(symmetric, x[:, ::-1, ::-1]).logits
  close(flipped[:, ::-1, ::-1], apply(symmetric, x).logits)


@pytest.mark.parametrize(("msc", "size"), [(False, (17, 33)), (True, (20, 31))])
def test_deeplab_v1_scores_every_eighth_pixel(msc, size):
  model = models.create("deeplab_v1", 3, **models.get("deeplab_v1").TINY, msc=msc, dropout=0.0)
  x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  variables = draw(model, x)

  @jax.jit
  def both(variables, x):
    return [model.apply(variables, x, train=train).logits for train in (True, False)]

  scores, logits = both(variables, x)
  rows, columns = (-(-(n - 1) // 8) + 1 for n in size)
  assert scores.shape == (2, rows, columns, 3)
  assert logits.shape == (2, *size, 3)
  # Corners on corners: scores lie on pixels 0, 8, 16, ...
  every = logits[:, ::8, ::8]
  close(every, scores[:, : every.shape[1], : every.shape[2]])
  # And in between they are interpolated.
  close(logits[:, 4, 0], (scores[:, 0, 0] + scores[:, 1, 0]) / 2)
  label = np.random.default_rng(0).integers(0, 3, (2, *size), np.uint8)
  labels = model.training_labels(label)
  assert labels.shape == scores.shape[:-1]
  np.testing.assert_array_equal(labels[:, : every.shape[1], : every.shape[2]], label[:, ::8, ::8])
  outside = np.ones(labels.shape, bool)
  outside[:, : every.shape[1], : every.shape[2]] = False
  assert (labels[outside] == IGNORE).all()
  assert outside.any() == msc  # there are none at 8 n + 1 pixels


@pytest.mark.parametrize(
  ("name", "size", "block"),
  [("segnet", (70, 37), 32), ("segnet_basic", (37, 50), 16)],
)
def test_segnet_puts_each_maximum_back_in_its_place(name, size, block):
  # With kernels that copy the first channel, all that is left is pooling and unpooling.
  model = models.create(name, 2, **models.get(name).TINY, norm="none")
  x = np.random.default_rng(0).uniform(0.1, 1, (1, *size, 3)).astype(np.float32)

  def copying(a):
    if a.ndim == 1:
      return np.zeros(a.shape, np.float32)
    kernel = np.zeros(a.shape, np.float32)
    kernel[a.shape[0] // 2, a.shape[1] // 2, 0, 0] = 1
    return kernel

  params = jax.tree.map(copying, jax.eval_shape(model.init, jax.random.key(0), x)["params"])
  logits = jax.jit(model.apply)({"params": params}, x).logits
  seen = np.asarray(local_response_norm(denormalize(x)) if name == "segnet_basic" else x)[
    0, :, :, 0
  ]
  expected = np.zeros(size, np.float32)
  for i in range(0, size[0], block):
    for j in range(0, size[1], block):
      part = (slice(i, i + block), slice(j, j + block))
      expected[part] = np.where(seen[part] == seen[part].max(), seen[part], 0)
  np.testing.assert_allclose(logits[0, :, :, 0], expected, rtol=1e-6)
  assert not logits[..., 1].any()


def patches(image, size):
  """Every window of an image [h w c], row by row, and how many rows and columns there are."""
  windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), (0, 1))
  windows = windows.transpose(0, 1, 3, 4, 2)
  return windows.reshape(-1, size, size, image.shape[-1]), windows.shape[:2]


@pytest.mark.parametrize("knobs", [{}, {"patch": 25, "kernels": (2, 3, 2)}], ids=str)
def test_patch_classifier_is_the_same_as_sliding_it(knobs):
  model = models.create("patch_classifier", 3, **models.get("patch_classifier").TINY | knobs)
  edge = model.patch
  x = np.random.default_rng(0).normal(size=(1, edge + 4, edge + 7, 2)).astype(np.float32)
  variables = draw(model, x)
  train = jax.jit(lambda v, x: model.apply(v, x, train=True).logits)
  # Patches one by one go through strided pools, an image through dilated kernels.
  windows, grid = patches(x[0], edge)
  assert grid == (5, 8)
  one_by_one = train(variables, windows).reshape(1, *grid, 3)
  close(train(variables, x), one_by_one)
  # In evaluation every pixel has a patch, of the mirrored image.
  mirrored = np.pad(x[0], [(edge // 2, edge // 2)] * 2 + [(0, 0)], mode="reflect")
  windows, grid = patches(mirrored, edge)
  one_by_one = train(variables, windows).reshape(1, *x.shape[1:3], 3)
  close(jax.jit(model.apply)(variables, x).logits, one_by_one)
  label = np.arange(x[0, :, :, 0].size).reshape(1, *x.shape[1:3])
  middle = edge // 2
  np.testing.assert_array_equal(
    model.training_labels(label), label[:, middle:-middle, middle:-middle]
  )


def test_the_published_patch_at_some_pixels():
  model = models.create("patch_classifier", 2)
  x = np.random.default_rng(0).normal(size=(1, 30, 21, 1)).astype(np.float32)
  variables = draw(model, x)
  logits = jax.jit(model.apply)(variables, x).logits
  # An image smaller than the margin is mirrored back and forth.
  mirrored = np.pad(x, [(0, 0), (47, 47), (47, 47), (0, 0)], mode="reflect")
  pixels = [(0, 0), (7, 13), (18, 5), (29, 20)]
  windows = np.concatenate([mirrored[:, i : i + 95, j : j + 95] for i, j in pixels])
  expected = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, windows).logits
  assert expected.shape == (4, 1, 1, 2)
  close(np.stack([logits[0, i, j] for i, j in pixels]), expected[:, 0, 0], atol=1e-4)


def test_dense_layers_of_the_patch_classifier_are_matrix_products():
  model = models.create("patch_classifier", 3, **models.get("patch_classifier").TINY)
  x = np.random.default_rng(0).normal(size=(4, 15, 15, 2)).astype(np.float32)
  variables = draw(model, x)
  outputs, state = model.apply(
    variables, x, train=True, capture_intermediates=True, mutable=["intermediates"]
  )
  last = np.maximum(state["intermediates"]["Conv_1"]["__call__"][0], 0)
  b, h, w, c = last.shape
  pooled = last.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
  fc1, fc2 = (variables["params"][name] for name in ("fc1", "fc2"))
  assert fc1["kernel"].shape[:2] == pooled.shape[1:3] == (2, 2)
  hidden = pooled.reshape(b, -1) @ fc1["kernel"].reshape(-1, 8) + fc1["bias"][None]
  logits = np.maximum(hidden, 0) @ fc2["kernel"].reshape(8, 3) + fc2["bias"][None]
  close(outputs.logits[:, 0, 0], logits)


def test_crops_without_a_whole_patch_are_refused():
  model = models.create("patch_classifier", 2)
  message = r"a crop of 94 x 200 holds no patch of 95; set augment.crop=\(95, 95\)"
  with pytest.raises(InputError, match=message):
    jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=True), jnp.zeros((1, 94, 200, 1))
    )
