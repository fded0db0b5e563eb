"""Networks equal independent implementations on the same weights; see tests/golden/README.md."""

import math
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden import formula
from helpers.golden import check, load, weights

from jseg.backbones import VGG16, AlexNet, GoogLeNet, ResNet
from jseg.images import normalize
from jseg.models import create
from jseg.models.deeplab_v1 import DeepLabV1
from jseg.models.segnet import SegNet, SegNetBasic
from jseg.models.unet import UNet
from jseg.models.unet3d import UNet3D
from jseg.nn import resize_bilinear
from jseg.weights import LayerTarget, convert, recognize
from jseg.weights.source_model import CAFFE_BGR


def image(meta):
  given = {"scale": 1, "offset": 0} | meta["input"]
  x = formula.image(given["name"], tuple(given["shape"]))
  return np.moveaxis(x * np.float32(given["scale"]) + np.float32(given["offset"]), 1, -1)


def translate(tensors, layer):
  """Our variables, and the names that `layer`, source name -> LayerTarget or None, doesn't know."""
  names = {name.rpartition(".")[0] for name in tensors}
  layers = {name: layer(name) for name in names}
  return convert(tensors, {name: layer for name, layer in layers.items() if layer})


def count(params, norms=True):
  flat = flatten_dict(params, sep="/")
  return sum(math.prod(a.shape) for name, a in flat.items() if norms or "Norm" not in name)


def apply(model, variables, x, **options):
  return jax.jit(lambda variables, x: model.apply(variables, x, **options))(variables, x)


def run(model, variables, x, **options):
  """The outputs, of variables that are checked."""
  check(model, variables, x, **options)
  return apply(model, variables, x, **options)


def compare(ours, reference, stride=1):
  channels, pixels = stride if isinstance(stride, list) else (1, stride)
  every = slice(None, None, pixels)
  ours = np.asarray(ours)[(slice(None), *[every] * (ours.ndim - 2), slice(None, None, channels))]
  np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * reference.std())


def imported(meta, pattern=""):
  """What `jseg.weights` makes of the reference's tensors, for the reference's own images."""
  tensors = weights(meta, pattern)
  source = recognize(tensors)
  variables, unused = convert(tensors, source.layers)
  assert not unused
  return variables, source


def recognized(meta):
  """Our network and its variables."""
  variables, source = imported(meta)
  (name,) = source.networks
  assert source.num_classes == 21
  assert count(variables["params"]) == meta["parameters"]
  return create(name, 21, **source.networks[name]), variables, source


# Nominal strides of the references' maps; others have names here too.
STAGES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32, "inception5b": 32}


@pytest.mark.parametrize(
  ("name", "model", "parameters"),
  [
    ("alexnet", AlexNet(), 2_469_696),
    ("vgg16", VGG16(), 14_714_688),
    ("vgg16_bn", VGG16(norm="batch"), 14_723_136),
    ("alexnet_fc", AlexNet(fc=(4096, 4096), fc_padding="VALID"), 57_003_840),
    ("vgg16_timm", VGG16((8, 16, 32, 64, 64), fc=(4096, 4096), fc_padding="VALID"), 29_861_032),
    ("googlenet", GoogLeNet(norm="batch", branch3_kernel=3, last_pool=2, lrn=False), 5_599_904),
    ("resnet18", ResNet(18), 11_176_512),
    ("resnet50", ResNet(50), 23_508_032),
    ("resnet50_dilated", ResNet(50, 8, keep_first_rate=True), 23_508_032),
  ],
)
def test_backbone(name, model, parameters):
  results, meta = load(name)
  variables, source = imported(meta)
  assert re.sub("_(dilated|fc|timm)$", "", name) in source.description
  assert source.description.startswith("timm") == name.endswith("timm")
  variables = {key: tree.get("backbone", {}) for key, tree in variables.items()}
  assert count(variables["params"]) == parameters == meta["parameters"]
  features = run(model, variables, image(meta))
  for key, reference in results.items():
    ours = features[STAGES[key]] if key in STAGES else features.named[key]
    compare(ours, reference, meta["steps"][key])


@pytest.fixture(scope="module")
def fcn_backbone():
  """Tensors made once: they are half a gigabyte."""
  return weights(load("fcn8s")[1], "conv|fc")


@pytest.mark.parametrize(
  ("name", "knobs", "parameters"),
  [
    ("fcn32s", {}, 136_152_917),
    ("fcn16s", {}, 134_815_994),
    ("fcn8s", {}, 134_489_759),
    ("fcn8s_at_once", {"at_once": True}, 134_489_759),
  ],
)
def test_fcn(name, knobs, parameters, fcn_backbone):
  results, meta = load(name)
  tensors = weights(meta, "score|upscore") | fcn_backbone
  source = recognize(tensors)
  variables, unused = convert(tensors, source.layers)
  assert not unused
  assert source.num_classes == 21
  assert source.networks == {name.removesuffix("_at_once"): {}}
  assert ("at_once" in source.note) == name.startswith("fcn8s")
  params = variables["params"]
  assert count(params) == parameters == meta["parameters"]
  model = create(name.removesuffix("_at_once"), 21, **knobs)
  logits = run(model, {"params": params}, image(meta)).logits
  assert logits.shape == (1, 61, 83, 21)
  compare(logits, results["logits"], meta["stride"])


def segnet_layer(name):
  kind, side, block, layer = re.fullmatch(r"(Conv|BN)(En|De)(\d)(\d)", name).groups()
  if name == "BNDe11":
    return None
  ours = f"{'conv' if kind == 'Conv' else 'norm'}{block}_{layer}"
  ours = f"backbone/{ours}" if side == "En" else f"{ours}_d"
  return LayerTarget(ours, "norm" if kind == "BN" else "conv")


@pytest.mark.parametrize("name", ["segnet", "segnet_odd"])
def test_segnet(name):
  results, meta = load(name)
  variables, unused = translate(weights(meta), segnet_layer)
  assert sorted(unused) == sorted(meta["unused"])
  assert count(variables["params"]) == 29_449_355
  compare(run(SegNet(11), variables, image(meta)).logits, results["logits"], meta["stride"])


def segnet_basic_layer(name):
  if name == "conv_classifier":
    return LayerTarget("classifier")
  kind = "norm" if name.endswith("_bn") else "conv"
  end = "_d" if "decode" in name else ""
  return LayerTarget(f"{kind}{re.search(r'[0-9]', name)[0]}{end}", kind)


def test_segnet_basic():
  results, meta = load("segnet_basic")
  variables, unused = translate(weights(meta), segnet_basic_layer)
  assert not unused
  assert count(variables["params"]) == 1_416_075
  logits = run(SegNetBasic(11), variables, normalize(image(meta))).logits
  compare(logits, results["logits"], meta["stride"])


def skips_first(tensors, pattern):
  """For references that put upsampled channels before the skipped ones, as many as come out."""
  return {
    name: np.roll(a, len(a), axis=1) if re.fullmatch(pattern, name) else a
    for name, a in tensors.items()
  }


def unet_layer(name):
  if name == "last":
    return LayerTarget("Conv_18")
  pattern = r"(down|up)_path\.(\d)\.(?:(?:conv_block\.)?block\.(\d)|up)"
  side, i, j = re.fullmatch(pattern, name).groups()
  if j is None:
    return LayerTarget(f"UpConv_{i}", "transposed")
  return LayerTarget(f"Conv_{(0 if side == 'down' else 10) + 2 * int(i) + int(j) // 2}")


def test_unet():
  results, meta = load("unet")
  tensors = skips_first(weights(meta), r"up_path.*block\.0\.weight")
  variables, unused = translate(tensors, unet_layer)
  assert not unused
  assert count(variables["params"]) == 31_030_658
  model = UNet(2, padding="VALID", norm="none")
  compare(run(model, variables, image(meta), train=True).logits, results["logits"])


def test_unet_on_resnet():
  results, meta = load("unet_resnet34")
  assert meta["parameters"] == 24_439_269
  model, variables, source = recognized(meta)
  assert source.description == "segmentation_models.pytorch's Unet on resnet34"
  compare(run(model, variables, image(meta)).logits, results["logits"], meta["stride"])


def unet3d_layer(name):
  _, i, layer = name.split(".")
  if layer == "conv_fc":
    return LayerTarget("Conv_14")
  if layer == "upconv":
    return LayerTarget(f"UpConv_{int(i) - 3}", "transposed")
  place = 2 * int(i) + int(layer[-1]) - 1
  return (
    LayerTarget(f"Norm_{place}", "norm") if layer.startswith("bn") else LayerTarget(f"Conv_{place}")
  )


def test_unet3d_unpadded():
  results, meta = load("unet3d")
  variables, unused = translate(weights(meta), unet3d_layer)
  assert not unused
  # One input channel; the paper's count, with three, is of the next test.
  assert count(variables["params"], norms=False) == 19_069_955 - 2 * 27 * 32
  model = UNet3D(3, padding="VALID", norm="frozen_batch")
  compare(run(model, variables, image(meta), train=True).logits, results["logits"])


UNET3D_BLOCKS = (
  *("a_block1", "a_block2", "a_block3", "bottleNeck"),
  *("s_block3", "s_block2", "s_block1"),
)


def unet3d_padded_layer(name):
  block, layer = name.split(".")
  i = UNET3D_BLOCKS.index(block)
  if layer == "conv3":
    return LayerTarget("Conv_14")
  if layer == "upconv1":
    return LayerTarget(f"UpConv_{i - 4}", "transposed")
  place = 2 * i + int(layer[-1]) - 1
  return (
    LayerTarget(f"Norm_{place}", "norm") if layer.startswith("bn") else LayerTarget(f"Conv_{place}")
  )


def test_unet3d():
  results, meta = load("unet3d_padded")
  tensors = skips_first(weights(meta), r"s_block\d\.conv1\.weight")
  # Here the two convolutions of a decoder block share a norm, "bn".
  for name in [name for name in tensors if ".bn." in name]:
    shared = tensors.pop(name)
    tensors |= {name.replace(".bn.", f".bn{i}."): shared for i in (1, 2)}
  variables, unused = translate(tensors, unet3d_padded_layer)
  assert not unused
  assert count(variables["params"], norms=False) == 19_069_955
  compare(run(UNet3D(3), variables, image(meta)).logits, results["logits"], meta["stride"])


def deeplab_layer(name):
  if match := re.fullmatch(r"block_(\d)\.conv(\d)", name):
    return LayerTarget("backbone/conv{}_{}".format(*match.groups()))
  return LayerTarget({"conv6": "backbone/fc6", "conv7": "backbone/fc7", "conv8": "fc8"}[name])


def deeplab_msc_layer(name):
  if match := re.fullmatch(r"features(\d)\.(\d)", name):
    return LayerTarget(f"backbone/conv{match[1]}_{int(match[2]) // 2 + 1}")
  if match := re.fullmatch(r"MSc(\d)(?:\.(\d)|_score)", name):
    layer = {"0": 1, "3": 2, None: 3}[match[2]]
    return LayerTarget(f"msc{int(match[1]) - 1}_{layer}")
  return LayerTarget({"fc.1": "backbone/fc6", "fc.4": "backbone/fc7", "score": "fc8"}[name])


@pytest.mark.parametrize(
  ("name", "msc", "layer", "parameters"),
  [
    ("deeplab_v1", False, deeplab_layer, 20_505_429),
    ("deeplab_v1_msc", True, deeplab_msc_layer, 20_505_429 + 1_206_121),
  ],
)
def test_deeplab_v1(name, msc, layer, parameters):
  results, meta = load(name)
  variables, unused = translate(weights(meta), layer)
  assert not unused
  assert count(variables["params"]) == parameters == meta["parameters"]
  model = DeepLabV1(21, msc=msc, dropout=0.0)
  x = image(meta)
  compare(run(model, variables, x, train=True).logits, results["scores"])
  if "logits" in results:
    compare(run(model, variables, x).logits, results["logits"], meta["stride"])


@pytest.mark.parametrize(
  ("name", "parameters"),
  [("fcn_resnet50", 35_322_218), ("deeplab_v3_resnet50", 42_004_074)],
)
def test_torchvision(name, parameters):
  results, meta = load(name)
  assert meta["parameters"] == parameters
  model, variables, _ = recognized(meta)
  outputs = run(model, variables, image(meta))
  assert outputs.logits.shape == outputs.aux["aux"].shape == (1, 33, 297, 21)
  compare(outputs.logits, results["logits"], meta["steps"]["logits"])
  compare(outputs.aux["aux"], results["aux_logits"], meta["steps"]["aux_logits"])


def scored(logits, scores, **options):
  """Logits are the reference's complete scores, interpolated."""
  compare(logits, np.asarray(resize_bilinear(scores, logits.shape[1:3], **options)))


def deeplab_v2_vgg16_layer(name):
  block, i = name.split(".")
  if block == "features":
    pooled = [n for n in (4, 9, 16, 23) if n < int(i)]
    first = pooled[-1] + 1 if pooled else 0
    return LayerTarget(f"backbone/conv{len(pooled) + 1}_{(int(i) - first) // 2 + 1}")
  return LayerTarget(f"fc{6 + int(i) // 3}_{block[-1]}")


def test_deeplab_v2_on_vgg16():
  results, meta = load("deeplab_v2_vgg16")
  variables, unused = translate(weights(meta), deeplab_v2_vgg16_layer)
  assert not unused
  assert count(variables["params"]) == 37_877_652 == meta["parameters"]
  model = create("deeplab_v2", 21, backbone="vgg16", scales=(1.0,))
  scored(run(model, variables, image(meta)).logits, results["scores"])


@pytest.mark.parametrize(
  ("name", "scales"), [("deeplab_v2", (1.0,)), ("deeplab_v2_msc", (1.0, 0.75, 0.5))]
)
def test_deeplab_v2_at_one_scale_and_at_the_largest_of_three(name, scales):
  results, meta = load(name)
  assert meta["parameters"] == 44_048_532
  model, variables, _ = recognized(meta)
  assert model.scales == scales
  scored(run(model, variables, image(meta)).logits, results["scores"])


def test_deeplab_v3_at_either_stride_with_the_same_weights():
  (at16, meta), (at8, same) = load("deeplab_v3"), load("deeplab_v3_os8")
  assert all(meta[key] == same[key] for key in ("state_dict", "scale", "input"))
  assert meta["parameters"] == 58_040_661
  model, variables, _ = recognized(meta)
  x = image(meta)
  scored(run(model, variables, x).logits, at16["scores"])
  scored(apply(model.clone(output_stride=8), variables, x).logits, at8["scores"])


def test_pspnet():
  results, meta = load("pspnet_resnet50")
  assert meta["parameters"] == 49_081_578
  model, variables, _ = recognized(meta)
  assert count({k: v for k, v in variables["params"].items() if k != "aux"}) == 46_716_373
  outputs = run(model, variables, image(meta))
  compare(outputs.logits, results["logits"], meta["stride"])
  scored(outputs.logits, results["scores"], align_corners=True)
  scored(outputs.aux["aux"], results["aux_scores"], align_corners=True)


def test_refinenet():
  results, meta = load("refinenet_resnet50")
  assert meta["parameters"] == 99_060_309
  model, variables, _ = recognized(meta)
  scored(run(model, variables, image(meta)).logits, results["scores"])


@pytest.mark.parametrize(
  ("name", "channels"),
  [("fcn8s", "BGR"), ("deeplab_v2_msc", "BGR"), ("pspnet_resnet50", ""), ("fcn_resnet50", "")],
)
def test_preprocessing(name, channels):
  """BGR in 0..255 less the mean, or ours."""
  source = recognize({n: np.empty(shape, bool) for n, shape in load(name)[1]["state_dict"]})
  assert (source.preprocessing == CAFFE_BGR) == (channels == "BGR")
  assert source.preprocessing is None or CAFFE_BGR.bgr
